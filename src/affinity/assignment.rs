//! Which worker consumes from which affinity queues: a function of the live workers, so that all
//! processes agree.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::{broker::AffinityQueue, job::Tier, store::WorkerRecord};

/// A tier's affinity queues and their workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// Names, sorted.
    workers: Vec<String>,
    /// The position of each affinity queue's worker among the names.
    owners: Vec<usize>,
}

impl Assignment {
    /// Assigns a tier's affinity queues to its live workers that consume from them; where they serve
    /// several models, to the workers of the most common one. `None` with fewer than two: a single
    /// worker has all prompt prefixes in its cache.
    pub fn of(workers: &[WorkerRecord], tier: Tier, now: DateTime<Utc>) -> Option<Self> {
        let mut by_model: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
        for worker in workers {
            let takes_part =
                worker.takes_affinity_queues && !worker.draining && worker.lease_until > now;
            if worker.tier == tier && takes_part {
                let model = (worker.model.as_str(), worker.revision.as_str());
                by_model
                    .entry(model)
                    .or_default()
                    .push(worker.worker.clone());
            }
        }
        let names = by_model.into_values().max_by_key(Vec::len)?;
        (names.len() >= 2).then(|| Self::among(names))
    }

    /// Rendezvous hashing with bounded loads: each queue goes to the worker with the highest hash of
    /// both among those below the maximum. A worker that joins or leaves moves few of the others' queues.
    pub fn among(mut workers: Vec<String>) -> Self {
        workers.sort_unstable();
        workers.dedup();
        let queues_max = AffinityQueue::COUNT.div_ceil(workers.len().max(1));
        let mut taken = vec![0; workers.len()];
        let mut owners = Vec::with_capacity(AffinityQueue::COUNT);
        for queue in AffinityQueue::ALL {
            let free = (0..workers.len()).filter(|at| taken[*at] < queues_max);
            let Some(owner) = free.max_by_key(|at| weight(queue, &workers[*at])) else {
                break;
            };
            taken[owner] += 1;
            owners.push(owner);
        }
        Self { workers, owners }
    }

    /// The queues of a worker.
    pub fn queues_of(&self, worker: &str) -> Vec<AffinityQueue> {
        let at = self.workers.iter().position(|name| name == worker);
        self.queues_at(at).collect()
    }

    /// The number of workers.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// The position of a queue's worker, below [`Self::workers`].
    pub fn owner(&self, queue: AffinityQueue) -> Option<usize> {
        self.owners.get(queue.index()).copied()
    }

    /// The queues of the worker at a position.
    pub fn queues_at(&self, worker: Option<usize>) -> impl Iterator<Item = AffinityQueue> {
        AffinityQueue::ALL
            .into_iter()
            .filter(move |queue| worker.is_some() && self.owner(*queue) == worker)
    }
}

/// The hash of a queue and a worker.
fn weight(queue: AffinityQueue, worker: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(&[queue.index() as u8])
        .update(worker.as_bytes());
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;

    use crate::affinity::assignment::*;

    fn worker(name: &str, change: impl FnOnce(&mut WorkerRecord)) -> WorkerRecord {
        let now = Utc::now();
        let mut worker = WorkerRecord {
            worker: name.to_owned(),
            tier: Tier::Small,
            model: "m".to_owned(),
            revision: "r".to_owned(),
            batch_max: 4,
            context_tokens: None,
            running: 0,
            draining: false,
            takes_affinity_queues: true,
            lease_until: now + TimeDelta::minutes(1),
            seen_at: now,
        };
        change(&mut worker);
        worker
    }

    #[test]
    fn only_live_workers_of_one_model_are_assigned_queues() {
        let now = Utc::now();
        let two = [worker("a", |_| {}), worker("b", |_| {})];
        let both = Assignment::of(&two, Tier::Small, now).expect("two");
        assert_eq!(both.workers(), 2);
        assert_eq!(
            both.queues_of("a").len() + both.queues_of("b").len(),
            AffinityQueue::COUNT
        );
        assert_eq!(Assignment::of(&two, Tier::Large, now), None);
        let changes: [fn(&mut WorkerRecord); 5] = [
            |w| w.draining = true,
            |w| w.takes_affinity_queues = false,
            |w| w.lease_until = Utc::now() - TimeDelta::seconds(1),
            |w| w.tier = Tier::Large,
            |w| w.revision = "other".to_owned(),
        ];
        for change in changes {
            let pair = [worker("a", |_| {}), worker("b", change)];
            assert_eq!(Assignment::of(&pair, Tier::Small, now), None);
        }
        // While a fleet changes to another model, the majority gets the queues.
        let new = |w: &mut WorkerRecord| w.revision = "new".to_owned();
        let five = [
            worker("a", |_| {}),
            worker("b", |_| {}),
            worker("c", new),
            worker("d", new),
            worker("e", new),
        ];
        let assigned = Assignment::of(&five, Tier::Small, now).expect("three");
        assert_eq!(assigned.workers(), 3);
        assert!(assigned.queues_of("a").is_empty() && !assigned.queues_of("e").is_empty());
    }

    proptest! {
        /// Every queue has one worker, no worker has more than its maximum, and the order of the workers
        /// does not matter.
        #[test]
        fn queues_are_assigned_evenly(names in prop::collection::hash_set("[a-z0-9-]{1,12}", 1..12)) {
            let names: Vec<String> = names.into_iter().collect();
            let assigned = Assignment::among(names.clone());
            let counts: Vec<usize> = names.iter().map(|name| assigned.queues_of(name).len()).collect();
            prop_assert_eq!(counts.iter().sum::<usize>(), AffinityQueue::COUNT);
            prop_assert!(counts.iter().all(|count| *count <= AffinityQueue::COUNT.div_ceil(names.len())));
            let back: Vec<String> = names.into_iter().rev().collect();
            prop_assert_eq!(assigned, Assignment::among(back));
        }
    }

    /// Over many fleets a worker that leaves moves few queues besides its own.
    #[test]
    fn few_queues_move_when_a_worker_leaves() {
        let mut moved = 0;
        for fleet in 0..200 {
            let names: Vec<String> = (0..4).map(|at| format!("{fleet}-{at}")).collect();
            let before = Assignment::among(names.clone());
            let after = Assignment::among(names[1..].to_vec());
            moved += names[1..]
                .iter()
                .flat_map(|name| {
                    before
                        .queues_of(name)
                        .into_iter()
                        .map(move |queue| (name, queue))
                })
                .filter(|(name, queue)| !after.queues_of(name).contains(queue))
                .count();
        }
        // Of the six queues that need not move, less than one does on average.
        assert!(moved < 200, "{moved} queues of others moved in 200 fleets");
    }
}
