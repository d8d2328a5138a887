//! Placement: remembers where prompt prefixes were sent, and chooses the queue of the next job.
//!
//! A job goes where the longest known part of its prompt prefix went. A job with an unknown prefix goes
//! where the hash of its first block points, so that routers agree without talking to each other. If
//! that worker was given more than its share of work, the least loaded one gets the job, and its prefix
//! from then on. A router knows what it placed and not what is done, so the bound is on placed work,
//! which decays with a half-life.

use std::collections::{BTreeMap, HashMap};

use crate::broker::AffinityQueue;

use super::Assignment;

/// Most blocks that are remembered; the least recently used are forgotten.
const KNOWN_MAX: usize = 200_000;
/// Work beyond its share that a worker may be given, as a fraction of the mean.
const EXCESS_MAX: f64 = 0.05;
/// Work, in blocks, by which any worker may be ahead: a few long prompts.
const AHEAD_MAX: f64 = 256.0;
/// Half-life of placed work in seconds.
const HALF_LIFE_S: f64 = 300.0;

/// The placements of one tier.
#[derive(Debug)]
pub struct Placement {
    known_max: usize,
    /// The affinity queue of a block, and when it was last used.
    known: HashMap<u64, (AffinityQueue, u64)>,
    by_use: BTreeMap<u64, u64>,
    clock: u64,
    /// Work given to each affinity queue, in blocks.
    given: [f64; AffinityQueue::COUNT],
    /// When the work was last decayed, in seconds.
    at_s: f64,
}

impl Default for Placement {
    fn default() -> Self {
        Self::new(KNOWN_MAX)
    }
}

impl Placement {
    /// A placement that remembers at most so many blocks.
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

    /// The queue for a job at a monotonic instant in seconds; `None` for a job whose prompt fills no
    /// block, or when no worker consumes from affinity queues.
    pub fn place(
        &mut self,
        prefix: &[u64],
        assignment: &Assignment,
        now_s: f64,
    ) -> Option<AffinityQueue> {
        let first = *prefix.first()?;
        self.forget_work(now_s);
        let mut known = 0;
        let mut queue = None;
        for block in prefix {
            let Some((holder, _)) = self.known.get(block) else {
                break;
            };
            known += 1;
            queue = Some(*holder);
        }
        // A queue without a worker counts as unknown.
        let queue = queue.filter(|queue| assignment.owner(*queue).is_some());
        let queue = queue.or_else(|| by_hash(first, assignment))?;
        let work = |known: usize| (prefix.len() - known + 1) as f64;
        let workers = assignment.workers();
        let mut of_worker = vec![0.0; workers];
        for queue in AffinityQueue::ALL {
            if let Some(owner) = assignment.owner(queue) {
                of_worker[owner] += self.given[queue.index()];
            }
        }
        let mean = of_worker.iter().sum::<f64>() / workers as f64;
        let bound = mean * (1.0 + EXCESS_MAX) + AHEAD_MAX;
        let owner = assignment.owner(queue)?;
        let (queue, known) = if of_worker[owner] + work(known) <= bound {
            (queue, known)
        } else {
            self.least_given(&of_worker, assignment)
                .filter(|least| assignment.owner(*least) != Some(owner))
                .map_or((queue, known), |least| (least, 0))
        };
        self.given[queue.index()] += work(known);
        self.remember(prefix, queue);
        Some(queue)
    }

    /// The least loaded queue of the least loaded worker.
    fn least_given(&self, of_worker: &[f64], assignment: &Assignment) -> Option<AffinityQueue> {
        let with_queues = (0..of_worker.len()).filter(|at| {
            let mut queues = assignment.queues_at(Some(*at));
            queues.next().is_some()
        });
        let least = with_queues.min_by(|a, b| of_worker[*a].total_cmp(&of_worker[*b]))?;
        let given = |queue: &AffinityQueue| self.given[queue.index()];
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

    fn remember(&mut self, prefix: &[u64], queue: AffinityQueue) {
        // The last block gets the oldest use, so that a prompt prefix is forgotten from its end.
        for block in prefix.iter().rev() {
            self.clock += 1;
            if let Some((_, used)) = self.known.insert(*block, (queue, self.clock)) {
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

/// The queue of an unknown prompt prefix, the same for every router.
fn by_hash(first: u64, assignment: &Assignment) -> Option<AffinityQueue> {
    let weight = |queue: &AffinityQueue| {
        let mut hasher = blake3::Hasher::new();
        hasher
            .update(&first.to_le_bytes())
            .update(&[queue.index() as u8]);
        *hasher.finalize().as_bytes()
    };
    AffinityQueue::ALL
        .into_iter()
        .filter(|queue| assignment.owner(*queue).is_some())
        .max_by_key(weight)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::affinity::placement::*;

    fn fleet(workers: usize) -> Assignment {
        Assignment::among((0..workers).map(|at| format!("worker-{at}")).collect())
    }

    /// A prompt prefix of `blocks` blocks whose first `shared` ones are common to its family.
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
    fn routers_agree_on_unknown_prefixes_and_jobs_follow_known_ones() {
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
    fn a_flood_of_one_prefix_spreads_and_conversations_stay_in_place() {
        let assignment = fleet(4);
        let mut placement = Placement::default();
        let mut jobs = [0; 4];
        for own in 0..4_000 {
            let queue = placement.place(&prefix(7, 8, own, 12), &assignment, 0.0);
            jobs[assignment.owner(queue.expect("a queue")).expect("owned")] += 1;
        }
        let most = jobs.iter().max().copied().unwrap_or(0);
        assert!(most <= 1_200, "{jobs:?}");
        // A continued conversation stays where it was.
        let mut talk = prefix(7, 8, 1 << 12, 12);
        let first = placement.place(&talk, &assignment, 0.0);
        talk.extend([1, 2, 3]);
        assert_eq!(placement.place(&talk, &assignment, 0.0), first);
    }

    #[test]
    fn queues_of_a_departed_worker_go_to_another() {
        let mut placement = Placement::default();
        let before = fleet(8);
        let job = prefix(3, 4, 0, 4);
        placement.place(&job, &before, 0.0);
        // Every queue is assigned to another worker, so the prefix keeps its queue.
        let after = fleet(2);
        let queue = placement.place(&job, &after, 1.0).expect("a queue");
        assert!(after.owner(queue).is_some());
    }

    proptest! {
        /// No worker is given more than its share, the allowed excess and one job, and memory stays
        /// within its limit.
        #[test]
        fn the_bound_holds(
            jobs in prop::collection::vec((0_u64..4, 0_u64..9, 0_u64..1_000, 1_u64..40), 1..300),
            workers in 2_usize..7,
        ) {
            let assignment = fleet(workers);
            let mut placement = Placement::new(500);
            for (family, shared, own, blocks) in jobs {
                placement.place(&prefix(family, shared, own, blocks), &assignment, 0.0);
                let given = |at| assignment.queues_at(Some(at)).map(|queue| placement.given[queue.index()]).sum::<f64>();
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
