//! The order in which waiting jobs are claimed: jobs that share a prompt prefix go together.

use std::{cmp::Reverse, collections::VecDeque};

use crate::affinity::{PromptPrefix, shared_blocks};

/// Waiting jobs that are compared for one place.
const COMPARED_MAX: usize = 64;
/// Times that a job may be passed over for jobs that share a prompt prefix.
const PASSED_OVER_MAX: u32 = 8;

/// The facts that order a waiting job.
#[derive(Debug, Default)]
pub(super) struct OrderKey {
    pub prefix: PromptPrefix,
    /// Times that a later job was taken first.
    pub passed_over: u32,
}

/// A waiting item with its key.
pub(super) trait Ordered {
    fn order_key(&mut self) -> &mut OrderKey;
}

/// Takes `count` items out: the first, then those that share most of its prompt prefix, so that the
/// prefix is computed once and stays cached while they run. No item is passed over more than
/// [`PASSED_OVER_MAX`] times, and items that share nothing keep their order.
pub(super) fn take_together<T: Ordered>(waiting: &mut VecDeque<T>, count: usize) -> Vec<T> {
    let mut taken = Vec::with_capacity(count.min(waiting.len()));
    let Some(mut leader) = waiting.pop_front().filter(|_| count > 0) else {
        return taken;
    };
    let prefix = leader.order_key().prefix.clone();
    taken.push(leader);
    while taken.len() < count && !waiting.is_empty() {
        let must_be_next = waiting[0].order_key().passed_over >= PASSED_OVER_MAX;
        let near = waiting
            .iter_mut()
            .take(COMPARED_MAX)
            .map(|one| shared_blocks(&prefix, &one.order_key().prefix))
            .enumerate();
        // Of equals the earliest.
        let best = near.max_by_key(|(at, shared)| (*shared, Reverse(*at)));
        let at = best.filter(|_| !must_be_next).map_or(0, |(at, _)| at);
        for passed in waiting.iter_mut().take(at) {
            passed.order_key().passed_over += 1;
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
        key: OrderKey,
    }

    impl Ordered for Job {
        fn order_key(&mut self) -> &mut OrderKey {
            &mut self.key
        }
    }

    fn queue(prefixes: &[&[u64]]) -> VecDeque<Job> {
        let job = |(name, prefix): (usize, &&[u64])| Job {
            name,
            key: OrderKey {
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
    fn jobs_that_share_a_prefix_are_taken_together() {
        let mut jobs = queue(&[&[1, 2], &[9], &[1, 3], &[], &[1, 2, 4]]);
        assert_eq!(take(&mut jobs, 3), [0, 4, 2]);
        assert_eq!(take(&mut jobs, 9), [1, 3]);
        assert!(take(&mut jobs, 1).is_empty());
        let mut jobs = queue(&[&[1]]);
        assert!(take(&mut jobs, 0).is_empty());
    }

    #[test]
    fn jobs_that_share_nothing_keep_their_order() {
        let mut jobs = queue(&[&[5], &[6], &[], &[7]]);
        assert_eq!(take(&mut jobs, 3), [0, 1, 2]);
    }

    proptest! {
        /// The first job is always taken, none is passed over too often, lost or taken twice.
        #[test]
        fn no_job_starves(
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
                prop_assert!(waiting.iter().all(|job| job.key.passed_over <= PASSED_OVER_MAX));
                taken.extend(some);
            }
            taken.sort_unstable();
            prop_assert_eq!(taken, (0..jobs.len()).collect::<Vec<_>>());
        }
    }
}
