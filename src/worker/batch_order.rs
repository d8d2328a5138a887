//! In which order waiting jobs are claimed: those that share a prompt prefix together.

use std::{cmp::Reverse, collections::VecDeque};

use crate::affinity::{PromptPrefix, shared_blocks};

/// Waiting jobs that are looked at for one place.
const LOOKED_AT_MAX: usize = 64;
/// Times that a job may be passed over for others that share a prompt prefix.
const PASSED_OVER_MAX: u32 = 8;

/// What decides when something that waits is taken.
#[derive(Debug, Default)]
pub(super) struct OrderKey {
    pub prefix: PromptPrefix,
    /// Times that others were taken before it though it came first.
    pub passed_over: u32,
}

/// What waits for its turn.
pub(super) trait Ordered {
    fn turn(&mut self) -> &mut OrderKey;
}

/// Takes `count` out: the first in turn, then those that share most with it, so that a step computes
/// their prompt prefix once and the cache holds it while they run. Nobody is passed over more than a few
/// times, and what shares nothing keeps its turn.
pub(super) fn take_together<T: Ordered>(waiting: &mut VecDeque<T>, count: usize) -> Vec<T> {
    let mut taken = Vec::with_capacity(count.min(waiting.len()));
    let Some(mut leader) = waiting.pop_front().filter(|_| count > 0) else {
        return taken;
    };
    let prefix = leader.turn().prefix.clone();
    taken.push(leader);
    while taken.len() < count && !waiting.is_empty() {
        let has_priority = waiting[0].turn().passed_over >= PASSED_OVER_MAX;
        let near = waiting
            .iter_mut()
            .take(LOOKED_AT_MAX)
            .map(|one| shared_blocks(&prefix, &one.turn().prefix))
            .enumerate();
        // Of equals the earliest.
        let best = near.max_by_key(|(at, shared)| (*shared, Reverse(*at)));
        let at = best.filter(|_| !has_priority).map_or(0, |(at, _)| at);
        for passed in waiting.iter_mut().take(at) {
            passed.turn().passed_over += 1;
        }
        taken.extend(waiting.remove(at));
    }
    taken
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::worker::batch_order::*;

    struct Job {
        name: usize,
        turn: OrderKey,
    }

    impl Ordered for Job {
        fn turn(&mut self) -> &mut OrderKey {
            &mut self.turn
        }
    }

    fn queue(prefixes: &[&[u64]]) -> VecDeque<Job> {
        let job = |(name, prefix): (usize, &&[u64])| Job {
            name,
            turn: OrderKey {
                prefix: prefix.to_vec(),
                passed_over: 0,
            },
        };
        prefixes.iter().enumerate().map(job).collect()
    }

    fn take(queue: &mut VecDeque<Job>, count: usize) -> Vec<usize> {
        let taken = take_together(queue, count);
        taken.into_iter().map(|job| job.name).collect()
    }

    #[test]
    fn what_shares_a_beginning_is_taken_with_the_first() {
        let mut jobs = queue(&[&[1, 2], &[9], &[1, 3], &[], &[1, 2, 4]]);
        assert_eq!(take(&mut jobs, 3), [0, 4, 2]);
        assert_eq!(take(&mut jobs, 9), [1, 3]);
        assert!(take(&mut jobs, 1).is_empty());
        let mut jobs = queue(&[&[1]]);
        assert!(take(&mut jobs, 0).is_empty());
    }

    #[test]
    fn jobs_that_share_nothing_keep_their_turn() {
        let mut jobs = queue(&[&[5], &[6], &[], &[7]]);
        assert_eq!(take(&mut jobs, 3), [0, 1, 2]);
    }

    proptest! {
        /// However many share a prompt prefix, the first is taken and nobody is passed over more often than is
        /// allowed; nobody is lost or taken twice.
        #[test]
        fn nobody_starves(
            jobs in prop::collection::vec(prop::collection::vec(0_u64..3, 0..4), 1..80),
            count in 1_usize..6,
        ) {
            let prefixes: Vec<&[u64]> = jobs.iter().map(Vec::as_slice).collect();
            let mut waiting = queue(&prefixes);
            let mut taken = Vec::new();
            while let Some(front) = waiting.front().map(|job| job.name) {
                let some = take(&mut waiting, count);
                prop_assert_eq!(some[0], front);
                prop_assert!(some.len() <= count);
                prop_assert!(waiting.iter().all(|job| job.turn.passed_over <= PASSED_OVER_MAX));
                taken.extend(some);
            }
            taken.sort_unstable();
            prop_assert_eq!(taken, (0..jobs.len()).collect::<Vec<_>>());
        }
    }
}
