//! The scheduler against a memory that remembers which beginning each slot of a block belongs to.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::{batching::PrefixHash, job::Priority};

const LIMITS: Limits = Limits {
    batch_max: 2,
    waiting_max: 3,
    step_tokens_max: 8,
    kv_blocks: 4,
    step_seconds_max: None,
};

const START: Duration = Duration::ZERO;

fn request(id: u64, prompt_tokens: usize, tokens_max: usize) -> Request {
    Request {
        id: SequenceId(id),
        tokens: vec![id as u32; prompt_tokens],
        tokens_max,
        scope: None,
        priority: Priority::Normal,
        due: None,
    }
}

fn share(id: u64, from: usize, tokens: usize, yields: bool) -> Share {
    Share {
        id: SequenceId(id),
        from,
        tokens,
        yields,
    }
}

/// Plans a step and appends a token to each sequence that yields.
fn step(scheduler: &mut Scheduler, now: Duration) -> Plan {
    let plan = scheduler.plan(now);
    for share in plan.shares.iter().filter(|share| share.yields) {
        scheduler.append(share.id, 7);
    }
    plan
}

#[test]
fn decodes_come_first_and_prompts_fill_the_step() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.enqueue(request(1, 3, 10), START).expect("room");
    assert_eq!(step(&mut scheduler, START).shares, [share(1, 0, 3, true)]);
    scheduler.enqueue(request(2, 12, 20), START).expect("room");
    let expected = [
        [share(1, 3, 1, true), share(2, 0, 7, false)],
        [share(1, 4, 1, true), share(2, 7, 5, true)],
        [share(1, 5, 1, true), share(2, 12, 1, true)],
    ];
    for shares in expected {
        assert_eq!(step(&mut scheduler, START).shares, shares);
    }
    assert_eq!(scheduler.leave(SequenceId(1)), 3);
    assert_eq!(step(&mut scheduler, START).shares, [share(2, 13, 1, true)]);
    assert_eq!(scheduler.leave(SequenceId(2)), 12);
    assert!(scheduler.is_idle());
    assert_eq!(scheduler.plan(START), Plan::default());
}

#[test]
fn refuses_what_never_fits_and_what_finds_the_queue_full() {
    let mut scheduler = Scheduler::new(LIMITS);
    for (prompt, most) in [(1, 4 * 32 + 1), (0, 4), (4, 4)] {
        let refused = scheduler.enqueue(request(1, prompt, most), START);
        assert_eq!(refused, Err(Refusal::NeverFits));
    }
    for id in 0..3 {
        scheduler.enqueue(request(id, 1, 4), START).expect("room");
    }
    assert_eq!(
        scheduler.enqueue(request(3, 1, 4), START),
        Err(Refusal::QueueFull)
    );
    scheduler.leave(SequenceId(1));
    scheduler
        .enqueue(request(3, 1, 4), START)
        .expect("room again");
    assert_eq!(
        scheduler.plan(START).admitted,
        [SequenceId(0), SequenceId(2)]
    );
}

#[test]
fn a_shared_beginning_is_computed_once_even_within_one_step() {
    let limits = Limits {
        batch_max: 8,
        step_tokens_max: 512,
        kv_blocks: 64,
        ..LIMITS
    };
    let mut scheduler = Scheduler::new(limits);
    let scoped = |id: u64, tail: u32, scope: &str| {
        let mut request = request(id, 0, 200);
        request.tokens = (0..100).chain([tail; 5]).collect();
        request.scope = Some(PrefixHash::of_scope(&[scope]));
        request
    };
    for (id, tail, scope) in [(1, 900, "a"), (2, 901, "a"), (3, 900, "b")] {
        scheduler
            .enqueue(scoped(id, tail, scope), START)
            .expect("room");
    }
    let plan = step(&mut scheduler, START);
    let whole = [
        share(1, 0, 105, true),
        share(2, 96, 9, true),
        share(3, 0, 105, true),
    ];
    assert_eq!(plan.shares, whole, "another tenant's blocks are not used");
    assert_eq!(
        [1, 2, 3].map(|id| scheduler.leave(SequenceId(id))),
        [105, 9, 105]
    );
    // Gone, but not forgotten: and the last token is computed although its block is known.
    let mut again = scoped(4, 0, "a");
    again.tokens.truncate(96);
    scheduler.enqueue(again, START).expect("room");
    assert_eq!(step(&mut scheduler, START).shares, [share(4, 64, 32, true)]);
}

#[test]
fn of_equal_priority_the_first_goes_first_and_no_flood_starves_the_others() {
    let limits = Limits {
        batch_max: 1,
        waiting_max: 1_000,
        ..LIMITS
    };
    let mut scheduler = Scheduler::new(limits);
    let high = |id| Request {
        priority: Priority::High,
        ..request(id, 1, 2)
    };
    scheduler.enqueue(request(0, 1, 2), START).expect("room");
    scheduler.enqueue(high(1), START).expect("room");
    let (mut order, mut now) = (Vec::new(), START);
    for id in 2..40 {
        scheduler.enqueue(high(id), now).expect("room");
        let plan = step(&mut scheduler, now);
        order.extend(plan.shares.iter().map(|share| share.id.0));
        scheduler.leave(plan.shares[0].id);
        now += Duration::from_secs(1);
    }
    assert_eq!(
        order[..10],
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
        "high before normal"
    );
    assert_eq!(order[10], 0, "after ten seconds its turn has come");
}

#[test]
fn what_is_due_soon_goes_before_what_came_first() {
    let limits = Limits {
        batch_max: 1,
        waiting_max: 100,
        kv_blocks: 100,
        ..LIMITS
    };
    let mut scheduler = Scheduler::new(limits);
    for at in 0..20 {
        let size = StepSize::of(at, 1 + at);
        let plan = Plan {
            size,
            ..Plan::default()
        };
        scheduler.observe(&plan, 0.1);
    }
    let due = |id, seconds| Request {
        due: Some(Duration::from_secs(seconds)),
        ..request(id, 1, 12)
    };
    scheduler.enqueue(request(0, 1, 12), START).expect("room");
    scheduler.enqueue(due(1, 9), START).expect("room");
    scheduler.enqueue(due(2, 2), START).expect("room");
    // Ten steps of 0.1 s are a second; twice that is left for the last one.
    let order: Vec<_> = (0..3)
        .map(|_| {
            let id = step(&mut scheduler, START + Duration::from_millis(500)).shares[0].id;
            scheduler.leave(id);
            id.0
        })
        .collect();
    assert_eq!(order, [2, 0, 1]);
}

#[test]
fn when_blocks_run_out_the_last_turn_is_put_back_and_finishes_later() {
    let limits = Limits {
        step_tokens_max: 64,
        ..LIMITS
    };
    let mut scheduler = Scheduler::new(limits);
    for id in 0..2 {
        scheduler.enqueue(request(id, 20, 90), START).expect("room");
    }
    let (mut generated, mut put_back) = ([0, 0], Vec::new());
    while !scheduler.is_idle() {
        let plan = step(&mut scheduler, START);
        put_back.extend(plan.preempted.iter().map(|id| id.0));
        for share in plan.shares.iter().filter(|share| share.yields) {
            let count = &mut generated[share.id.0 as usize];
            *count += 1;
            if *count == 70 {
                scheduler.leave(share.id);
            }
        }
    }
    assert_eq!(put_back, [1], "three blocks each do not fit four");
    assert_eq!(generated, [70, 70]);
}

/// A machine whose steps cost what they cost, for the pace to find out.
fn machine_seconds(size: StepSize) -> f64 {
    0.008 + 0.0012 * size.tokens as f64 + 4e-7 * size.attended as f64
}

#[test]
fn a_long_prompt_among_decodes_delays_no_token_beyond_the_target() {
    let limits = Limits {
        batch_max: 64,
        waiting_max: 1_000,
        step_tokens_max: 512,
        kv_blocks: 4_000,
        step_seconds_max: Some(0.08),
    };
    let mut scheduler = Scheduler::new(limits);
    let mut longest = Vec::new();
    for round in 0..600u64 {
        if round % 6 == 0 {
            scheduler
                .enqueue(request(round, 40, 140), START)
                .expect("room");
        }
        if round == 300 {
            scheduler
                .enqueue(request(10_000, 1_000, 1_010), START)
                .expect("room");
        }
        let plan = step(&mut scheduler, START);
        let seconds = machine_seconds(plan.size);
        let holds_up = plan.shares.first().is_some_and(|share| share.tokens == 1);
        if holds_up && round > 50 {
            longest.push(seconds);
        }
        scheduler.observe(&plan, seconds);
        let is_done = |sequence: &&Sequence| sequence.tokens.len() == sequence.tokens_max;
        let done: Vec<_> = scheduler
            .running
            .iter()
            .filter(is_done)
            .map(|s| s.id)
            .collect();
        for id in done {
            scheduler.leave(id);
        }
    }
    let slowest = longest.iter().copied().fold(0.0, f64::max);
    assert!(slowest < 0.088, "a token waited {slowest} s");
    assert!(slowest > 0.06, "the target is made use of: {slowest} s");
    assert!(
        scheduler.queue.remove(SequenceId(10_000)).is_none(),
        "the long prompt ran"
    );
}

#[test]
fn after_a_failed_step_the_waiting_go_on_with_an_empty_cache() {
    let mut scheduler = Scheduler::new(LIMITS);
    for id in 0..3 {
        scheduler.enqueue(request(id, 4, 8), START).expect("room");
    }
    scheduler.plan(START);
    assert_eq!(scheduler.reset(), [SequenceId(0), SequenceId(1)]);
    assert_eq!((scheduler.waiting(), scheduler.blocks_used()), (1, 0));
    assert_eq!(step(&mut scheduler, START).shares, [share(2, 0, 4, true)]);
}

/// One arrival of the property test.
#[derive(Clone, Debug)]
struct Arrival {
    gap: usize,
    /// Beginning shared with others of the same family, then a tail of its own.
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

/// A sequence as the test follows it.
struct Followed {
    request: Request,
    tokens: Vec<u32>,
    computed: usize,
    patience: usize,
    is_admitted: bool,
}

/// What a step wrote where: each slot remembers the whole beginning it was computed from.
struct Memory(Vec<[Option<blake3::Hash>; BLOCK_TOKENS]>);

impl Memory {
    fn beginning(followed: &Followed, position: usize) -> blake3::Hash {
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

    /// Writes all shares, then reads all: as the layers of a model do.
    fn compute(
        &mut self,
        scheduler: &Scheduler,
        plan: &Plan,
        known: &BTreeMap<SequenceId, Followed>,
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
                block[position % BLOCK_TOKENS] = Some(Self::beginning(followed, position));
            }
        }
        for share in &plan.shares {
            let (_, blocks) = scheduler.chunk(share).expect("planned");
            for position in 0..share.from + share.tokens {
                let found =
                    self.0[blocks[position / BLOCK_TOKENS].index()][position % BLOCK_TOKENS];
                let expected = Self::beginning(&known[&share.id], position);
                assert_eq!(
                    found,
                    Some(expected),
                    "{share:?} reads another's position {position}"
                );
            }
        }
    }
}

/// Every law that a single step has.
fn check(scheduler: &Scheduler, plan: &Plan, known: &mut BTreeMap<SequenceId, Followed>) {
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
        assert!(!plan.preempted.contains(&share.id), "put back and planned");
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
    fn every_sequence_finishes_within_the_limits_in_turn_and_reads_its_own_past(
        batch_max in 1usize..9,
        step_tokens_max in 1usize..80,
        kv_blocks in 5usize..16,
        arrivals in prop::collection::vec(arrivals(), 1..50),
    ) {
        let limits = Limits { batch_max, waiting_max: 16, step_tokens_max, kv_blocks, step_seconds_max: None };
        let mut scheduler = Scheduler::new(limits);
        let mut memory = Memory(vec![[None; BLOCK_TOKENS]; kv_blocks]);
        let mut known: BTreeMap<SequenceId, Followed> = BTreeMap::new();
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
                        let followed = Followed {
                            tokens: request.tokens.clone(),
                            computed: 0,
                            patience: arrival.patience,
                            is_admitted: false,
                            request,
                        };
                        known.insert(followed.request.id, followed);
                    }
                    Err(Refusal::NeverFits) => prop_assert!(request.tokens_max > 32 * kv_blocks),
                    Err(Refusal::QueueFull) => prop_assert!(scheduler.waiting() >= 16),
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
                // What a model would choose: it depends on the whole past and on nothing else.
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
            prop_assert!(order.is_sorted(), "of one priority, admitted in another order than they came");
        }
    }
}
