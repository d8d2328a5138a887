//! The order in which tenants' jobs go: start-time fair queueing (Goyal, Vin and Cheng 1996) by tokens,
//! within each tenant's limits.
//!
//! Pure: held jobs in, those that may go out. A job's start tag is the later of the clock and its
//! tenant's last finish tag; its finish tag lies its tokens, divided by the tenant's weight, after that.
//! The smallest start tag goes first and sets the clock. So a tenant that was idle is served at once, one
//! that was not gets its share by weight, and nobody saves up turns.

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

/// Turns of one tier.
#[derive(Debug, Default)]
pub(super) struct Turns {
    clock: f64,
    /// Finish tags that lie ahead of the clock.
    ends: HashMap<Tenant, f64>,
}

/// What a tenant may still send.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    pub running: u32,
    pub tokens: u64,
}

impl From<&TenantLoad> for Load {
    fn from(load: &TenantLoad) -> Self {
        Self {
            running: load.running,
            tokens: load.tokens_last_minute,
        }
    }
}

impl Load {
    /// Counts a job in if its tenant's limits allow it. One that asks for more tokens than a minute has
    /// goes when nothing else went within the last.
    fn take(&mut self, terms: Option<&TenantLimits>, tokens: u32) -> bool {
        let tokens = u64::from(tokens);
        if let Some(terms) = terms {
            let is_full = terms.running_max.is_some_and(|most| self.running >= most);
            let is_spent = terms
                .tokens_per_minute
                .is_some_and(|most| self.tokens > 0 && self.tokens + tokens > most.into());
            if is_full || is_spent {
                return false;
            }
        }
        self.running += 1;
        self.tokens += tokens;
        true
    }
}

impl Turns {
    /// Chooses up to `room` of the held jobs, which come in each tenant's own order, and counts them
    /// against `loads`.
    pub(super) fn choose(
        &mut self,
        held: Vec<DeferredJob>,
        room: usize,
        terms: &HashMap<Tenant, TenantLimits>,
        loads: &mut HashMap<Tenant, Load>,
    ) -> Vec<JobId> {
        let mut waiting: HashMap<Tenant, VecDeque<DeferredJob>> = HashMap::new();
        for job in held {
            waiting
                .entry(job.tenant.clone())
                .or_default()
                .push_back(job);
        }
        let mut next: BinaryHeap<Reverse<(Tag, Tenant)>> = waiting
            .keys()
            .map(|tenant| Reverse((self.start(tenant), tenant.clone())))
            .collect();
        let mut chosen = Vec::with_capacity(room.min(1024));
        while chosen.len() < room {
            let Some(Reverse((start, tenant))) = next.pop() else {
                break;
            };
            let Some(job) = waiting.get_mut(&tenant).and_then(VecDeque::pop_front) else {
                continue;
            };
            let terms = terms.get(&tenant);
            let load = loads.entry(tenant.clone()).or_default();
            if !load.take(terms, job.tokens) {
                continue;
            }
            self.clock = start.0;
            let weight = terms.map_or(1.0, |terms| terms.weight);
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

    fn terms(name: &str, change: impl Fn(&mut TenantLimits)) -> (Tenant, TenantLimits) {
        let mut terms = TenantLimits::of(tenant(name));
        change(&mut terms);
        (tenant(name), terms)
    }

    fn count(chosen: &[JobId], of: &[DeferredJob]) -> usize {
        of.iter().filter(|job| chosen.contains(&job.job)).count()
    }

    #[test]
    fn a_newcomer_goes_before_a_flood_that_has_had_its_share() {
        let mut turns = Turns::default();
        let flood = jobs("flood", 1000, 100);
        let none = HashMap::new();
        let first = turns.choose(flood[..500].to_vec(), 400, &none, &mut HashMap::new());
        assert_eq!(first.len(), 400, "alone it has everything");
        let trickle = jobs("trickle", 2, 100);
        let held = [&flood[400..], &trickle[..]].concat();
        let second = turns.choose(held, 4, &none, &mut HashMap::new());
        assert_eq!(count(&second, &trickle), 2);
        assert!(
            trickle
                .iter()
                .any(|job| job.job == second[0] || job.job == second[1])
        );
    }

    #[test]
    fn limits_hold_and_are_no_reason_to_leave_room_unused() {
        let terms = HashMap::from([
            terms("few", |terms| terms.running_max = Some(3)),
            terms("poor", |terms| terms.tokens_per_minute = Some(250)),
            terms("tiny", |terms| terms.tokens_per_minute = Some(10)),
        ]);
        let (few, poor, tiny) = (
            jobs("few", 9, 1),
            jobs("poor", 9, 100),
            jobs("tiny", 9, 100),
        );
        let free = jobs("free", 50, 100);
        let held = [few.clone(), poor.clone(), tiny.clone(), free.clone()].concat();
        let running = Load {
            running: 1,
            tokens: 0,
        };
        let mut loads = HashMap::from([(tenant("few"), running)]);
        let chosen = Turns::default().choose(held, 40, &terms, &mut loads);
        assert_eq!(count(&chosen, &few), 2, "one ran already");
        assert_eq!(count(&chosen, &poor), 2, "200 of 250 tokens");
        assert_eq!(
            count(&chosen, &tiny),
            1,
            "too large for any minute, so alone in one"
        );
        assert_eq!(count(&chosen, &free), 35, "the rest of the room");
    }

    proptest! {
        /// While both wait, tenants get tokens by weight, whatever their jobs' sizes; each one's own order
        /// is kept, and all of the room is used.
        #[test]
        fn shares_follow_weights(
            weight in 1_u32..8,
            sizes in prop::collection::vec((1_u32..400, 1_u32..400), 300),
            rooms in prop::collection::vec(1_usize..40, 1..12),
        ) {
            let terms = HashMap::from([terms("b", |terms| terms.weight = weight.into())]);
            let mut held: HashMap<&str, Vec<DeferredJob>> = HashMap::new();
            for (a, b) in sizes {
                held.entry("a").or_default().extend(jobs("a", 1, a));
                held.entry("b").or_default().extend(jobs("b", 1, b));
            }
            let mut turns = Turns::default();
            let mut tokens = HashMap::from([("a", 0.0), ("b", 0.0)]);
            for room in rooms {
                if held.values().any(|jobs| jobs.len() < 2 * room) {
                    break;
                }
                let offered = [held["a"].clone(), held["b"].clone()].concat();
                let chosen = turns.choose(offered, room, &terms, &mut HashMap::new());
                prop_assert_eq!(chosen.len(), room);
                for (name, jobs) in &mut held {
                    let count = count(&chosen, jobs);
                    let taken: Vec<_> = jobs.drain(..count).collect();
                    prop_assert!(taken.iter().all(|job| chosen.contains(&job.job)), "in its order");
                    *tokens.get_mut(name).expect("both") += taken.iter().map(|job| f64::from(job.tokens)).sum::<f64>();
                }
                // Never further apart than a largest job of each (theorem 1 of the paper).
                let apart = tokens["a"] - tokens["b"] / f64::from(weight);
                prop_assert!(apart.abs() <= 400.0 + 400.0 / f64::from(weight), "{apart}");
            }
        }
    }
}
