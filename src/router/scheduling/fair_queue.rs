//! The order in which tenants' jobs go: start-time fair queueing (Goyal, Vin and Cheng 1996) by tokens,
//! within each tenant's limits.
//!
//! Pure: deferred jobs in, the jobs to release out. A job's start tag is the later of the clock and its
//! tenant's last finish tag; its finish tag is its tokens, divided by the tenant's weight, after that.
//! The smallest start tag goes first and sets the clock. So a tenant that was idle is served at once, a
//! busy one gets its share by weight, and idle time saves up no credit.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
};

use crate::{
    job::{JobId, Tenant},
    store::{DeferredJob, TenantLimits, TenantLoad},
};

/// A point of virtual time.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tag(f64);

impl Eq for Tag {}

impl PartialOrd for Tag {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Tag {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// The fair queue of one tier.
#[derive(Debug, Default)]
pub(super) struct FairQueue {
    clock: f64,
    /// Finish tags later than the clock.
    ends: HashMap<Tenant, f64>,
}

/// What counts against a tenant's limits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LoadCount {
    pub running: u32,
    pub tokens: u64,
}

impl From<&TenantLoad> for LoadCount {
    fn from(load: &TenantLoad) -> Self {
        Self {
            running: load.running,
            tokens: load.tokens_last_minute,
        }
    }
}

impl LoadCount {
    /// Counts a job if its tenant's limits allow it. A job with more tokens than the limit of a minute
    /// is allowed when the last minute had none.
    fn take(&mut self, limits: Option<&TenantLimits>, tokens: u32) -> bool {
        let tokens = u64::from(tokens);
        if let Some(limits) = limits {
            let is_full = limits.running_max.is_some_and(|most| self.running >= most);
            let is_over = limits
                .tokens_per_minute
                .is_some_and(|most| self.tokens > 0 && self.tokens + tokens > most.into());
            if is_full || is_over {
                return false;
            }
        }
        self.running += 1;
        self.tokens += tokens;
        true
    }
}

impl FairQueue {
    /// Chooses up to `most` of the deferred jobs, given in each tenant's own order, and counts them in
    /// `loads`.
    pub(super) fn choose(
        &mut self,
        deferred: Vec<DeferredJob>,
        most: usize,
        limits: &HashMap<Tenant, TenantLimits>,
        loads: &mut HashMap<Tenant, LoadCount>,
    ) -> Vec<JobId> {
        let mut waiting: HashMap<Tenant, VecDeque<DeferredJob>> = HashMap::new();
        for job in deferred {
            waiting
                .entry(job.tenant.clone())
                .or_default()
                .push_back(job);
        }
        let mut next: BinaryHeap<Reverse<(Tag, Tenant)>> = waiting
            .keys()
            .map(|tenant| Reverse((self.start(tenant), tenant.clone())))
            .collect();
        let mut chosen = Vec::with_capacity(most.min(1024));
        while chosen.len() < most {
            let Some(Reverse((start, tenant))) = next.pop() else {
                break;
            };
            let Some(job) = waiting.get_mut(&tenant).and_then(VecDeque::pop_front) else {
                continue;
            };
            let limits = limits.get(&tenant);
            let load = loads.entry(tenant.clone()).or_default();
            if !load.take(limits, job.tokens) {
                continue;
            }
            self.clock = start.0;
            let weight = limits.map_or(1.0, |limits| limits.weight);
            let end = start.0 + f64::from(job.tokens.max(1)) / weight;
            self.ends.insert(tenant.clone(), end);
            chosen.push(job.job);
            next.push(Reverse((Tag(end), tenant)));
        }
        let clock = self.clock;
        self.ends.retain(|_, end| *end > clock);
        chosen
    }

    fn start(&self, tenant: &Tenant) -> Tag {
        let end = self.ends.get(tenant).copied().unwrap_or(0.0);
        Tag(end.max(self.clock))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::router::scheduling::fair_queue::*;

    fn tenant(name: &str) -> Tenant {
        name.parse().expect("a name")
    }

    fn jobs(name: &str, count: usize, tokens: u32) -> Vec<DeferredJob> {
        (0..count)
            .map(|_| DeferredJob {
                job: JobId::now(),
                tenant: tenant(name),
                tokens,
            })
            .collect()
    }

    fn limits(name: &str, change: impl Fn(&mut TenantLimits)) -> (Tenant, TenantLimits) {
        let mut limits = TenantLimits::of(tenant(name));
        change(&mut limits);
        (tenant(name), limits)
    }

    fn count(chosen: &[JobId], of: &[DeferredJob]) -> usize {
        of.iter().filter(|job| chosen.contains(&job.job)).count()
    }

    #[test]
    fn a_new_tenant_goes_before_a_flood_that_has_had_its_share() {
        let mut queue = FairQueue::default();
        let flood = jobs("flood", 1000, 100);
        let none = HashMap::new();
        let first = queue.choose(flood[..500].to_vec(), 400, &none, &mut HashMap::new());
        assert_eq!(first.len(), 400, "alone it has everything");
        let trickle = jobs("trickle", 2, 100);
        let deferred = [&flood[400..], &trickle[..]].concat();
        let second = queue.choose(deferred, 4, &none, &mut HashMap::new());
        assert_eq!(count(&second, &trickle), 2);
        assert!(
            trickle
                .iter()
                .any(|job| job.job == second[0] || job.job == second[1])
        );
    }

    #[test]
    fn limits_hold_and_leave_no_place_unused() {
        let limits = HashMap::from([
            limits("few", |limits| limits.running_max = Some(3)),
            limits("poor", |limits| limits.tokens_per_minute = Some(250)),
            limits("tiny", |limits| limits.tokens_per_minute = Some(10)),
        ]);
        let (few, poor, tiny) = (
            jobs("few", 9, 1),
            jobs("poor", 9, 100),
            jobs("tiny", 9, 100),
        );
        let free = jobs("free", 50, 100);
        let deferred = [few.clone(), poor.clone(), tiny.clone(), free.clone()].concat();
        let running = LoadCount {
            running: 1,
            tokens: 0,
        };
        let mut loads = HashMap::from([(tenant("few"), running)]);
        let chosen = FairQueue::default().choose(deferred, 40, &limits, &mut loads);
        assert_eq!(count(&chosen, &few), 2, "one ran already");
        assert_eq!(count(&chosen, &poor), 2, "200 of 250 tokens");
        assert_eq!(
            count(&chosen, &tiny),
            1,
            "over any minute's limit, so alone in one"
        );
        assert_eq!(count(&chosen, &free), 35, "the remaining places");
    }

    proptest! {
        /// While both wait, tenants get tokens by weight, independent of their jobs' sizes; each tenant's
        /// own order is kept, and every place is used.
        #[test]
        fn shares_follow_weights(
            weight in 1_u32..8,
            sizes in prop::collection::vec((1_u32..400, 1_u32..400), 300),
            batches in prop::collection::vec(1_usize..40, 1..12),
        ) {
            let limits = HashMap::from([limits("b", |limits| limits.weight = weight.into())]);
            let mut deferred: HashMap<&str, Vec<DeferredJob>> = HashMap::new();
            for (a, b) in sizes {
                deferred.entry("a").or_default().extend(jobs("a", 1, a));
                deferred.entry("b").or_default().extend(jobs("b", 1, b));
            }
            let mut queue = FairQueue::default();
            let mut tokens = HashMap::from([("a", 0.0), ("b", 0.0)]);
            for places in batches {
                if deferred.values().any(|jobs| jobs.len() < 2 * places) {
                    break;
                }
                let offered = [deferred["a"].clone(), deferred["b"].clone()].concat();
                let chosen = queue.choose(offered, places, &limits, &mut HashMap::new());
                prop_assert_eq!(chosen.len(), places);
                for (name, jobs) in &mut deferred {
                    let count = count(&chosen, jobs);
                    let taken: Vec<_> = jobs.drain(..count).collect();
                    prop_assert!(taken.iter().all(|job| chosen.contains(&job.job)), "in its order");
                    *tokens.get_mut(name).expect("both") += taken.iter().map(|job| f64::from(job.tokens)).sum::<f64>();
                }
                // They differ by at most a largest job of each (theorem 1 of the paper).
                let difference = tokens["a"] - tokens["b"] / f64::from(weight);
                prop_assert!(difference.abs() <= 400.0 + 400.0 / f64::from(weight), "{difference}");
            }
        }
    }
}
