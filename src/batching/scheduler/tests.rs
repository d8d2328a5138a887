//! Single cases of the scheduler.

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

fn share(id: u64, from: usize, tokens: usize, yields: bool) -> StepShare {
    StepShare {
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
    scheduler
        .enqueue(request(1, 3, 10), START)
        .expect("accepted");
    assert_eq!(step(&mut scheduler, START).shares, [share(1, 0, 3, true)]);
    scheduler
        .enqueue(request(2, 12, 20), START)
        .expect("accepted");
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
fn oversized_sequences_and_a_full_queue_are_refused() {
    let mut scheduler = Scheduler::new(LIMITS);
    for (prompt, most) in [(1, 4 * 32 + 1), (0, 4), (4, 4)] {
        let refused = scheduler.enqueue(request(1, prompt, most), START);
        assert_eq!(refused, Err(EnqueueError::NeverFits));
    }
    for id in 0..3 {
        scheduler
            .enqueue(request(id, 1, 4), START)
            .expect("accepted");
    }
    assert_eq!(
        scheduler.enqueue(request(3, 1, 4), START),
        Err(EnqueueError::QueueFull)
    );
    scheduler.leave(SequenceId(1));
    scheduler
        .enqueue(request(3, 1, 4), START)
        .expect("accepted");
    assert_eq!(
        scheduler.plan(START).admitted,
        [SequenceId(0), SequenceId(2)]
    );
}

#[test]
fn a_shared_prefix_is_computed_once_even_within_one_step() {
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
            .expect("accepted");
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
    // Its blocks stay cached after it left; the last token is computed although its block is cached.
    let mut again = scoped(4, 0, "a");
    again.tokens.truncate(96);
    scheduler.enqueue(again, START).expect("accepted");
    assert_eq!(step(&mut scheduler, START).shares, [share(4, 64, 32, true)]);
}

#[test]
fn equal_priority_is_first_come_first_served_and_ageing_prevents_starvation() {
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
    scheduler
        .enqueue(request(0, 1, 2), START)
        .expect("accepted");
    scheduler.enqueue(high(1), START).expect("accepted");
    let (mut order, mut now) = (Vec::new(), START);
    for id in 2..40 {
        scheduler.enqueue(high(id), now).expect("accepted");
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
    assert_eq!(order[10], 0, "it ages to high priority after ten seconds");
}

#[test]
fn urgent_sequences_run_first() {
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
    scheduler
        .enqueue(request(0, 1, 12), START)
        .expect("accepted");
    scheduler.enqueue(due(1, 9), START).expect("accepted");
    scheduler.enqueue(due(2, 2), START).expect("accepted");
    // Ten steps of 0.1 s take one second; the last sequence has less than twice that left.
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
fn without_free_blocks_the_last_sequence_is_preempted_and_finishes_later() {
    let limits = Limits {
        step_tokens_max: 64,
        ..LIMITS
    };
    let mut scheduler = Scheduler::new(limits);
    for id in 0..2 {
        scheduler
            .enqueue(request(id, 20, 90), START)
            .expect("accepted");
    }
    let (mut generated, mut preempted) = ([0, 0], Vec::new());
    while !scheduler.is_idle() {
        let plan = step(&mut scheduler, START);
        preempted.extend(plan.preempted.iter().map(|id| id.0));
        for share in plan.shares.iter().filter(|share| share.yields) {
            let count = &mut generated[share.id.0 as usize];
            *count += 1;
            if *count == 70 {
                scheduler.leave(share.id);
            }
        }
    }
    assert_eq!(preempted, [1], "three blocks each do not fit four");
    assert_eq!(generated, [70, 70]);
}

/// Step times of a simulated machine.
fn machine_seconds(size: StepSize) -> f64 {
    0.008 + 0.0012 * size.tokens as f64 + 4e-7 * size.attended as f64
}

#[test]
fn a_long_prompt_delays_no_decode_beyond_the_target() {
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
                .expect("accepted");
        }
        if round == 300 {
            scheduler
                .enqueue(request(10_000, 1_000, 1_010), START)
                .expect("accepted");
        }
        let plan = step(&mut scheduler, START);
        let seconds = machine_seconds(plan.size);
        let delays_decodes = plan.shares.first().is_some_and(|share| share.tokens == 1);
        if delays_decodes && round > 50 {
            longest.push(seconds);
        }
        scheduler.observe(&plan, seconds);
        let is_done = |sequence: &&ScheduledSequence| sequence.tokens.len() == sequence.tokens_max;
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
    assert!(slowest > 0.06, "the target is not used: {slowest} s");
    assert!(
        scheduler.queue.remove(SequenceId(10_000)).is_none(),
        "the long prompt ran"
    );
}

#[test]
fn after_a_failed_step_waiting_sequences_run_with_an_empty_cache() {
    let mut scheduler = Scheduler::new(LIMITS);
    for id in 0..3 {
        scheduler
            .enqueue(request(id, 4, 8), START)
            .expect("accepted");
    }
    scheduler.plan(START);
    assert_eq!(scheduler.reset(), [SequenceId(0), SequenceId(1)]);
    assert_eq!((scheduler.waiting(), scheduler.blocks_used()), (1, 0));
    assert_eq!(step(&mut scheduler, START).shares, [share(2, 0, 4, true)]);
}
