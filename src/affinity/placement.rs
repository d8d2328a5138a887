//! Where prompt prefixes went, and where the next job goes.
//!
//! A job follows the longest prompt prefix of it that is known. One that shares nothing goes where the hash
//! of its first block points, so that routers which know nothing of each other agree. Where a
//! worker has been given more than its part, the one that was given least takes the job, and its
//! prompt prefix with it: the bound is on the work that is given out, with older work forgotten by
//! halves, since a router sees what it places and not what is done.

use std::collections::{BTreeMap, HashMap};

use crate::broker::AffinityQueue;

use super::Assignment;

/// Most blocks whose place is known; those used longest ago are forgotten.
const KNOWN_MAX: usize = 200_000;
/// Work beyond its part that a worker may be given, as a share of the mean.
const EXCESS_MAX: f64 = 0.05;
/// Work, in blocks, by which any worker may be ahead: a few long prompts.
const AHEAD_MAX: f64 = 256.0;
/// Seconds after which work that was given out counts half.
const HALF_LIFE_S: f64 = 300.0;

/// Memory and balance of one tier.
#[derive(Debug)]
pub struct Placement {
    known_max: usize,
    /// The affinity queue of a block, and when it was last used.
    known: HashMap<u64, (AffinityQueue, u64)>,
    by_use: BTreeMap<u64, u64>,
    clock: u64,
    /// Work given to each affinity queue, in blocks.
    given: [f64; AffinityQueue::COUNT],
    /// When it was last halved on, in seconds.
    at_s: f64,
}

impl Default for Placement {
    fn default() -> Self {
        Self::new(KNOWN_MAX)
    }
}

impl Placement {
    /// An empty memory for so many blocks.
    pub fn new(known_max: usize) -> Self {
        Self {
            known_max,
            known: HashMap::new(),
            by_use: BTreeMap::new(),
            clock: 0,
            given: [0.0; AffinityQueue::COUNT],
            at_s: 0.0,
        }
    }

    /// The affinity queue for a job at an instant in seconds, which only rises; `None` for one without a prompt prefix
    /// worth sharing, or when nobody takes affinity queues.
    pub fn place(
        &mut self,
        prefix: &[u64],
        assignment: &Assignment,
        now_s: f64,
    ) -> Option<AffinityQueue> {
        let first = *prefix.first()?;
        self.forget_work(now_s);
        let mut known = 0;
        let mut affinity_queue = None;
        for block in prefix {
            let Some((holder, _)) = self.known.get(block) else {
                break;
            };
            known += 1;
            affinity_queue = Some(*holder);
        }
        // A affinity queue that nobody takes any more is as good as none.
        let affinity_queue =
            affinity_queue.filter(|affinity_queue| assignment.owner(*affinity_queue).is_some());
        let affinity_queue = affinity_queue.or_else(|| points_to(first, assignment))?;
        let work = |known: usize| (prefix.len() - known + 1) as f64;
        let workers = assignment.workers();
        let mut of_worker = vec![0.0; workers];
        for affinity_queue in AffinityQueue::ALL {
            if let Some(owner) = assignment.owner(affinity_queue) {
                of_worker[owner] += self.given[affinity_queue.index()];
            }
        }
        let mean = of_worker.iter().sum::<f64>() / workers as f64;
        let bound = mean * (1.0 + EXCESS_MAX) + AHEAD_MAX;
        let owner = assignment.owner(affinity_queue)?;
        let (affinity_queue, known) = if of_worker[owner] + work(known) <= bound {
            (affinity_queue, known)
        } else {
            self.least_given(&of_worker, assignment)
                .filter(|least| assignment.owner(*least) != Some(owner))
                .map_or((affinity_queue, known), |least| (least, 0))
        };
        self.given[affinity_queue.index()] += work(known);
        self.remember(prefix, affinity_queue);
        Some(affinity_queue)
    }

    /// The affinity queue given least of the worker given least.
    fn least_given(&self, of_worker: &[f64], assignment: &Assignment) -> Option<AffinityQueue> {
        let with_lanes = (0..of_worker.len()).filter(|at| {
            let mut affinity_queues = assignment.queues_at(Some(*at));
            affinity_queues.next().is_some()
        });
        let least = with_lanes.min_by(|a, b| of_worker[*a].total_cmp(&of_worker[*b]))?;
        let given = |affinity_queue: &AffinityQueue| self.given[affinity_queue.index()];
        assignment
            .queues_at(Some(least))
            .min_by(|a, b| given(a).total_cmp(&given(b)))
    }

    fn forget_work(&mut self, now_s: f64) {
        let passed_s = (now_s - self.at_s).max(0.0);
        self.at_s = now_s;
        let rest = (-passed_s / HALF_LIFE_S).exp2();
        self.given.iter_mut().for_each(|given| *given *= rest);
    }

    fn remember(&mut self, prefix: &[u64], affinity_queue: AffinityQueue) {
        // The last block is used first, so that a prompt prefix is forgotten from its end.
        for block in prefix.iter().rev() {
            self.clock += 1;
            if let Some((_, used)) = self.known.insert(*block, (affinity_queue, self.clock)) {
                self.by_use.remove(&used);
            }
            self.by_use.insert(self.clock, *block);
        }
        while self.known.len() > self.known_max {
            let Some((_, oldest)) = self.by_use.pop_first() else {
                return;
            };
            self.known.remove(&oldest);
        }
    }
}

/// Where a prompt prefix that nobody has seen goes: the same affinity queue for every router.
fn points_to(first: u64, assignment: &Assignment) -> Option<AffinityQueue> {
    let weight = |affinity_queue: &AffinityQueue| {
        let mut hasher = blake3::Hasher::new();
        hasher
            .update(&first.to_le_bytes())
            .update(&[affinity_queue.index() as u8]);
        *hasher.finalize().as_bytes()
    };
    AffinityQueue::ALL
        .into_iter()
        .filter(|affinity_queue| assignment.owner(*affinity_queue).is_some())
        .max_by_key(weight)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::affinity::placement::*;

    fn fleet(workers: usize) -> Assignment {
        Assignment::among((0..workers).map(|at| format!("worker-{at}")).collect())
    }

    /// A prompt prefix of `blocks` that shares its first `shared` with every one of the same family.
    fn prefix(family: u64, shared: u64, own: u64, blocks: u64) -> Vec<u64> {
        let of = |at| {
            if at < shared {
                family << 32 | at
            } else {
                own << 48 | family << 32 | at | 1 << 31
            }
        };
        (0..blocks).map(of).collect()
    }

    #[test]
    fn routers_agree_on_what_they_have_not_seen_and_jobs_follow_what_they_have() {
        let assignment = fleet(3);
        let (mut one, mut other) = (Placement::default(), Placement::default());
        for family in 0..50 {
            let job = |own| prefix(family, 4, own, 6);
            let first = one.place(&job(1), &assignment, 0.0);
            assert!(first.is_some());
            assert_eq!(first, other.place(&job(2), &assignment, 0.0));
            assert_eq!(first, one.place(&job(3), &assignment, 0.0));
        }
        assert_eq!(one.place(&[], &assignment, 0.0), None);
        assert_eq!(one.place(&[1], &Assignment::among(Vec::new()), 0.0), None);
    }

    #[test]
    fn a_flood_of_one_beginning_spreads_and_each_place_keeps_what_it_was_given() {
        let assignment = fleet(4);
        let mut placement = Placement::default();
        let mut jobs = [0; 4];
        for own in 0..4_000 {
            let affinity_queue = placement.place(&prefix(7, 8, own, 12), &assignment, 0.0);
            jobs[assignment
                .owner(affinity_queue.expect("a affinity_queue"))
                .expect("owned")] += 1;
        }
        let most = jobs.iter().max().copied().unwrap_or(0);
        assert!(most <= 1_200, "{jobs:?}");
        // A conversation that goes on stays where it was.
        let mut talk = prefix(7, 8, 1 << 12, 12);
        let first = placement.place(&talk, &assignment, 0.0);
        talk.extend([1, 2, 3]);
        assert_eq!(placement.place(&talk, &assignment, 0.0), first);
    }

    #[test]
    fn lanes_of_a_worker_that_left_are_not_used_for_a_worker_more() {
        let mut placement = Placement::default();
        let before = fleet(8);
        let job = prefix(3, 4, 0, 4);
        placement.place(&job, &before, 0.0);
        // All affinity queues find another worker, so the prompt prefix's affinity queue stays and its worker may change.
        let after = fleet(2);
        let affinity_queue = placement
            .place(&job, &after, 1.0)
            .expect("a affinity_queue");
        assert!(after.owner(affinity_queue).is_some());
    }

    proptest! {
        /// Whatever comes, no worker is given more than its part, the allowed excess and one job, and memory
        /// stays within its limit.
        #[test]
        fn the_bound_holds(
            jobs in prop::collection::vec((0_u64..4, 0_u64..9, 0_u64..1_000, 1_u64..40), 1..300),
            workers in 2_usize..7,
        ) {
            let assignment = fleet(workers);
            let mut placement = Placement::new(500);
            for (family, shared, own, blocks) in jobs {
                placement.place(&prefix(family, shared, own, blocks), &assignment, 0.0);
                let given = |at| assignment.queues_at(Some(at)).map(|affinity_queue| placement.given[affinity_queue.index()]).sum::<f64>();
                let all: Vec<f64> = (0..workers).map(given).collect();
                let mean = all.iter().sum::<f64>() / workers as f64;
                let most = mean * (1.0 + EXCESS_MAX) + AHEAD_MAX + 41.0;
                prop_assert!(all.iter().all(|one| *one <= most), "{:?}", all);
                prop_assert!(placement.known.len() <= 500);
                prop_assert_eq!(placement.known.len(), placement.by_use.len());
            }
        }
    }
}
