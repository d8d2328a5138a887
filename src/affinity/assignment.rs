//! Which worker takes which lanes: everybody who knows the living workers comes to the same.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::{broker::Lane, job::Tier, store::WorkerRecord};

/// Lanes and their workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// Names, sorted.
    workers: Vec<String>,
    /// The position of each lane's worker among the names.
    owners: Vec<usize>,
}

impl Assignment {
    /// The assignment of a tier's lanes to those of its workers that take jobs from lanes and are alive;
    /// where they serve several models, to those of the one that most serve. `None` with fewer than
    /// two of them: one worker holds all beginnings there are.
    pub fn of(workers: &[WorkerRecord], tier: Tier, now: DateTime<Utc>) -> Option<Self> {
        let mut by_model: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
        for worker in workers {
            let takes_part = worker.takes_lanes && !worker.draining && worker.lease_until > now;
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

    /// Deals the lanes out: each goes to the worker with the highest hash of both that has room, and all
    /// have room for the same number. A worker that comes or goes moves few of the others' lanes.
    pub fn among(mut workers: Vec<String>) -> Self {
        workers.sort_unstable();
        workers.dedup();
        let room = Lane::COUNT.div_ceil(workers.len().max(1));
        let mut taken = vec![0; workers.len()];
        let mut owners = Vec::with_capacity(Lane::COUNT);
        for lane in Lane::ALL {
            let free = (0..workers.len()).filter(|at| taken[*at] < room);
            let Some(owner) = free.max_by_key(|at| weight(lane, &workers[*at])) else {
                break;
            };
            taken[owner] += 1;
            owners.push(owner);
        }
        Self { workers, owners }
    }

    /// The lanes of a worker.
    pub fn lanes_of(&self, worker: &str) -> Vec<Lane> {
        let at = self.workers.iter().position(|name| name == worker);
        self.lanes_at(at).collect()
    }

    /// The number of workers.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// The position of a lane's worker, below [`Self::workers`].
    pub fn owner(&self, lane: Lane) -> Option<usize> {
        self.owners.get(lane.index()).copied()
    }

    /// The lanes of the worker at a position.
    pub fn lanes_at(&self, worker: Option<usize>) -> impl Iterator<Item = Lane> {
        Lane::ALL
            .into_iter()
            .filter(move |lane| worker.is_some() && self.owner(*lane) == worker)
    }
}

/// What a lane and a worker are to each other: as good as chance, and the same everywhere.
fn weight(lane: Lane, worker: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(&[lane.index() as u8])
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
            takes_lanes: true,
            lease_until: now + TimeDelta::minutes(1),
            seen_at: now,
        };
        change(&mut worker);
        worker
    }

    #[test]
    fn only_living_workers_of_one_model_take_part() {
        let now = Utc::now();
        let two = [worker("a", |_| {}), worker("b", |_| {})];
        let both = Assignment::of(&two, Tier::Small, now).expect("two");
        assert_eq!(both.workers(), 2);
        assert_eq!(
            both.lanes_of("a").len() + both.lanes_of("b").len(),
            Lane::COUNT
        );
        assert_eq!(Assignment::of(&two, Tier::Large, now), None);
        let changes: [fn(&mut WorkerRecord); 5] = [
            |w| w.draining = true,
            |w| w.takes_lanes = false,
            |w| w.lease_until = Utc::now() - TimeDelta::seconds(1),
            |w| w.tier = Tier::Large,
            |w| w.revision = "other".to_owned(),
        ];
        for change in changes {
            let pair = [worker("a", |_| {}), worker("b", change)];
            assert_eq!(Assignment::of(&pair, Tier::Small, now), None);
        }
        // While a fleet changes over to another model, the lanes are the majority's.
        let new = |w: &mut WorkerRecord| w.revision = "new".to_owned();
        let five = [
            worker("a", |_| {}),
            worker("b", |_| {}),
            worker("c", new),
            worker("d", new),
            worker("e", new),
        ];
        let dealt = Assignment::of(&five, Tier::Small, now).expect("three");
        assert_eq!(dealt.workers(), 3);
        assert!(dealt.lanes_of("a").is_empty() && !dealt.lanes_of("e").is_empty());
    }

    proptest! {
        /// Every lane has one worker, no worker has two lanes more than another, and the order in which
        /// the workers are told does not matter.
        #[test]
        fn lanes_are_dealt_evenly(names in prop::collection::hash_set("[a-z0-9-]{1,12}", 1..12)) {
            let names: Vec<String> = names.into_iter().collect();
            let dealt = Assignment::among(names.clone());
            let counts: Vec<usize> = names.iter().map(|name| dealt.lanes_of(name).len()).collect();
            prop_assert_eq!(counts.iter().sum::<usize>(), Lane::COUNT);
            prop_assert!(counts.iter().all(|count| *count <= Lane::COUNT.div_ceil(names.len())));
            let back: Vec<String> = names.into_iter().rev().collect();
            prop_assert_eq!(dealt, Assignment::among(back));
        }
    }

    /// Over many fleets a worker that leaves moves, beside its own, few lanes.
    #[test]
    fn few_lanes_move_when_a_worker_goes() {
        let mut moved = 0;
        for fleet in 0..200 {
            let names: Vec<String> = (0..4).map(|at| format!("{fleet}-{at}")).collect();
            let before = Assignment::among(names.clone());
            let after = Assignment::among(names[1..].to_vec());
            moved += names[1..]
                .iter()
                .flat_map(|name| {
                    before
                        .lanes_of(name)
                        .into_iter()
                        .map(move |lane| (name, lane))
                })
                .filter(|(name, lane)| !after.lanes_of(name).contains(lane))
                .count();
        }
        // Of the six lanes that need not move, less than one does on average.
        assert!(moved < 200, "{moved} lanes of others moved in 200 fleets");
    }
}
