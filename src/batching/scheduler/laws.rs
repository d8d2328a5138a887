//! Properties of the scheduler, checked against a simulated cache that records the prefix behind
//! each slot.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::{batching::PrefixHash, job::Priority};

const START: Duration = Duration::ZERO;

/// One arrival of the property test.
#[derive(Clone, Debug)]
struct Arrival {
    gap: usize,
    /// Length of the prefix shared by a family, followed by a tail of its own.
    family: u32,
    shared: usize,
    tail: usize,
    completion: usize,
    scope: Option<u8>,
    is_high: bool,
    /// Leaves after so many generated tokens.
    patience: usize,
}

prop_compose! {
    fn arrivals()(
        gap in 0usize..4,
        family in 0u32..3,
        shared in 0usize..100,
        tail in 1usize..20,
        completion in 1usize..40,
        scope in prop::option::weighted(0.8, 0u8..2),
        is_high in prop::bool::weighted(0.2),
        patience in 0usize..120,
    ) -> Arrival {
        Arrival { gap, family, shared, tail, completion, scope, is_high, patience }
    }
}

impl Arrival {
    fn request(&self, id: u64) -> Request {
        let mut tokens = vec![self.family; self.shared];
        tokens.extend(vec![1_000 + id as u32; self.tail]);
        Request {
            id: SequenceId(id),
            tokens_max: tokens.len() + self.completion,
            tokens,
            scope: self
                .scope
                .map(|scope| PrefixHash::of_scope(&[&scope.to_string()])),
            priority: if self.is_high {
                Priority::High
            } else {
                Priority::Normal
            },
            due: None,
        }
    }
}

/// A sequence as the test tracks it.
struct TrackedSequence {
    request: Request,
    tokens: Vec<u32>,
    computed: usize,
    patience: usize,
    is_admitted: bool,
}

/// What was written where: each slot records the whole prefix that it was computed from.
struct SimulatedCache(Vec<[Option<blake3::Hash>; BLOCK_TOKENS]>);

impl SimulatedCache {
    fn prefix_hash(followed: &TrackedSequence, position: usize) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{:?}", followed.request.scope).as_bytes());
        if followed.request.scope.is_none() {
            hasher.update(&followed.request.id.0.to_le_bytes());
        }
        for token in &followed.tokens[..=position] {
            hasher.update(&token.to_le_bytes());
        }
        hasher.finalize()
    }

    /// Writes all shares, then reads all, as the layers of a model do.
    fn compute(
        &mut self,
        scheduler: &Scheduler,
        plan: &Plan,
        known: &BTreeMap<SequenceId, TrackedSequence>,
    ) {
        for share in &plan.shares {
            let (tokens, blocks) = scheduler.chunk(share).expect("planned");
            let followed = &known[&share.id];
            assert_eq!(
                tokens,
                &followed.tokens[share.from..share.from + share.tokens]
            );
            for position in share.from..share.from + share.tokens {
                let block = &mut self.0[blocks[position / BLOCK_TOKENS].index()];
                if position % BLOCK_TOKENS == 0 {
                    *block = [None; BLOCK_TOKENS];
                }
                block[position % BLOCK_TOKENS] = Some(Self::prefix_hash(followed, position));
            }
        }
        for share in &plan.shares {
            let (_, blocks) = scheduler.chunk(share).expect("planned");
            for position in 0..share.from + share.tokens {
                let found =
                    self.0[blocks[position / BLOCK_TOKENS].index()][position % BLOCK_TOKENS];
                let expected = Self::prefix_hash(&known[&share.id], position);
                assert_eq!(
                    found,
                    Some(expected),
                    "{share:?} reads another's position {position}"
                );
            }
        }
    }
}

/// Properties of a single step.
fn check(scheduler: &Scheduler, plan: &Plan, known: &mut BTreeMap<SequenceId, TrackedSequence>) {
    let limits = scheduler.limits;
    let tokens: usize = plan.shares.iter().map(|share| share.tokens).sum();
    assert!(tokens <= limits.step_tokens_max, "step over budget");
    assert_eq!(tokens, plan.size.tokens);
    assert!(plan.shares.len() <= limits.batch_max, "batch too large");
    let distinct: BTreeSet<_> = plan.shares.iter().map(|share| share.id).collect();
    assert_eq!(
        distinct.len(),
        plan.shares.len(),
        "a sequence twice in a step"
    );
    let tables = scheduler
        .running
        .iter()
        .flat_map(|sequence| &sequence.blocks);
    let used: BTreeSet<_> = tables.collect();
    assert_eq!(
        used.len(),
        scheduler.blocks_used(),
        "blocks are lost or counted twice"
    );
    for id in &plan.preempted {
        known.get_mut(id).expect("known").computed = 0;
    }
    let mut prefilling = false;
    for share in &plan.shares {
        let followed = known.get_mut(&share.id).expect("known");
        assert!(!plan.preempted.contains(&share.id), "preempted and planned");
        let found = share.from - followed.computed;
        let is_reused =
            found > 0 && share.from % BLOCK_TOKENS == 0 && followed.request.scope.is_some();
        assert!(found == 0 || is_reused, "a token is left out");
        assert!(share.tokens > 0 && share.from + share.tokens <= followed.tokens.len());
        let decodes = share.tokens == 1 && share.from + 1 == followed.tokens.len() && found == 0;
        let decodes = decodes && followed.tokens.len() > followed.request.tokens.len();
        assert!(
            !(prefilling && decodes && followed.computed > 0),
            "a decode after a prefill"
        );
        prefilling |= !decodes;
        followed.computed = share.from + share.tokens;
        assert_eq!(share.yields, followed.computed == followed.tokens.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]
    #[test]
    fn sequences_finish_in_order_within_limits_and_read_their_own_prefix(
        batch_max in 1usize..9,
        step_tokens_max in 1usize..80,
        kv_blocks in 5usize..16,
        arrivals in prop::collection::vec(arrivals(), 1..50),
    ) {
        let limits = Limits { batch_max, waiting_max: 16, step_tokens_max, kv_blocks, step_seconds_max: None };
        let mut scheduler = Scheduler::new(limits);
        let mut memory = SimulatedCache(vec![[None; BLOCK_TOKENS]; kv_blocks]);
        let mut known: BTreeMap<SequenceId, TrackedSequence> = BTreeMap::new();
        let mut admitted = BTreeMap::from([(true, Vec::new()), (false, Vec::new())]);
        let mut finished = BTreeSet::new();
        let mut arrivals = arrivals.into_iter().enumerate().peekable();
        let mut steps = 0;
        while arrivals.peek().is_some() || !scheduler.is_idle() {
            steps += 1;
            prop_assert!(steps < 20_000, "no progress");
            while let Some((at, arrival)) = arrivals.peek_mut() {
                if arrival.gap > 0 {
                    arrival.gap -= 1;
                    break;
                }
                let request = arrival.request(*at as u64);
                match scheduler.enqueue(request.clone(), START) {
                    Ok(()) => {
                        let followed = TrackedSequence {
                            tokens: request.tokens.clone(),
                            computed: 0,
                            patience: arrival.patience,
                            is_admitted: false,
                            request,
                        };
                        known.insert(followed.request.id, followed);
                    }
                    Err(EnqueueError::NeverFits) => prop_assert!(request.tokens_max > 32 * kv_blocks),
                    Err(EnqueueError::QueueFull) => prop_assert!(scheduler.waiting() >= 16),
                }
                arrivals.next();
            }
            let is_busy = !scheduler.is_idle();
            let plan = scheduler.plan(START);
            prop_assert!(!is_busy || !plan.shares.is_empty(), "work is there and none is planned");
            for id in &plan.admitted {
                let followed = known.get_mut(id).expect("known");
                if !std::mem::replace(&mut followed.is_admitted, true) {
                    let is_high = followed.request.priority == Priority::High;
                    admitted.get_mut(&is_high).expect("both are there").push(*id);
                }
            }
            check(&scheduler, &plan, &mut known);
            memory.compute(&scheduler, &plan, &known);
            for share in plan.shares.iter().filter(|share| share.yields) {
                let followed = known.get_mut(&share.id).expect("known");
                // A stand-in for the model: depends on all previous tokens and nothing else.
                let token = followed.tokens.iter().fold(7u32, |sum, token| sum.wrapping_mul(31) ^ token) % 50;
                followed.tokens.push(token);
                let generated = followed.tokens.len() - followed.request.tokens.len();
                if followed.tokens.len() == followed.request.tokens_max || generated > followed.patience {
                    let computed = scheduler.leave(share.id);
                    prop_assert!((1..=followed.request.tokens.len()).contains(&computed));
                    finished.insert(share.id);
                } else {
                    scheduler.append(share.id, token);
                }
            }
        }
        prop_assert_eq!(finished.len(), known.len(), "some never finished");
        prop_assert_eq!(scheduler.blocks_used(), 0);
        for order in admitted.values() {
            prop_assert!(order.is_sorted(), "sequences of one priority were admitted out of order");
        }
    }
}
