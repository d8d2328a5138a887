//! The scheduler: a bounded queue, admission by reservation, one mixed step at a time.

use std::collections::VecDeque;

/// Identifies a sequence within one scheduler; ids are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// What a scheduler never exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sequences that run at once; no more than fit a step with one token each.
    pub batch_max: usize,
    /// Sequences that wait.
    pub waiting_max: usize,
    /// Tokens computed in one step.
    pub step_tokens_max: usize,
    /// Tokens that the running sequences may keep in the KV cache, together.
    pub kv_tokens_max: usize,
}

/// A sequence that wants to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its identity.
    pub id: SequenceId,
    /// Tokens of its prompt, at least one.
    pub prompt_tokens: usize,
    /// Tokens of prompt and completion together, at most; the KV cache is reserved for all of them,
    /// so that a sequence once admitted always finishes.
    pub tokens_max: usize,
}

/// Why a sequence may not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Later: as many wait already as may.
    QueueFull,
    /// Never: it would not fit the KV cache even alone, or has no token.
    NeverFits,
}

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Whose part it is.
    pub id: SequenceId,
    /// Tokens of it in the KV cache before the step.
    pub from: usize,
    /// Tokens to compute.
    pub tokens: usize,
    /// True when the step computes the last known token, so that a new one can be chosen after it.
    pub yields: bool,
}

/// One step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Sequences that leave the queue with this step.
    pub admitted: Vec<SequenceId>,
    /// What to compute: decodes, then prefill in order of arrival.
    pub shares: Vec<Share>,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    request: Request,
    /// Tokens in the KV cache once the planned steps are computed.
    computed: usize,
}

impl Running {
    fn is_decoding(&self) -> bool {
        self.computed >= self.request.prompt_tokens
    }
}

/// Plans steps for sequences that come and go, first come, first admitted.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    waiting: VecDeque<Request>,
    running: Vec<Running>,
    kv_tokens_reserved: usize,
}

impl Scheduler {
    /// A scheduler without sequences. A batch larger than a step's tokens is made smaller, since
    /// every running sequence must be able to compute a token in each step.
    pub fn new(limits: Limits) -> Self {
        let batch_max = limits.batch_max.min(limits.step_tokens_max);
        Self {
            limits: Limits {
                batch_max,
                ..limits
            },
            waiting: VecDeque::new(),
            running: Vec::new(),
            kv_tokens_reserved: 0,
        }
    }

    /// Sequences that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// True when one more may wait.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < self.limits.waiting_max
    }

    /// True when there is nothing to plan.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Lets a sequence wait for its turn.
    ///
    /// # Errors
    /// [`Refusal`] when it may not.
    pub fn enqueue(&mut self, request: Request) -> Result<(), Refusal> {
        let has_tokens = request.prompt_tokens > 0 && request.prompt_tokens < request.tokens_max;
        if !has_tokens || request.tokens_max > self.limits.kv_tokens_max {
            return Err(Refusal::NeverFits);
        }
        if !self.has_room() {
            return Err(Refusal::QueueFull);
        }
        self.waiting.push_back(request);
        Ok(())
    }

    /// Takes a sequence out, wherever it stands: it has finished or is not wanted any more.
    pub fn leave(&mut self, id: SequenceId) {
        self.waiting.retain(|request| request.id != id);
        if let Some(at) = self
            .running
            .iter()
            .position(|sequence| sequence.request.id == id)
        {
            // The order of the others is the order of their arrival: keep it.
            let left = self.running.remove(at);
            self.kv_tokens_reserved -= left.request.tokens_max;
        }
    }

    /// Plans the next step and takes its tokens as computed. An empty plan means that nothing runs
    /// or waits.
    pub fn plan(&mut self) -> Plan {
        let admitted = self.admit();
        let mut shares = Vec::with_capacity(self.running.len());
        let mut tokens_left = self.limits.step_tokens_max;
        for sequence in self
            .running
            .iter_mut()
            .filter(|sequence| sequence.is_decoding())
        {
            debug_assert!(
                sequence.computed < sequence.request.tokens_max,
                "it should have left"
            );
            shares.push(advance(sequence, 1));
            tokens_left -= 1;
        }
        let decoding = shares.len();
        for sequence in &mut self.running {
            // The first pass made decoders of nobody, so those that still prefill are the rest.
            if sequence.is_decoding() {
                continue;
            }
            let tokens = (sequence.request.prompt_tokens - sequence.computed).min(tokens_left);
            if tokens == 0 {
                break;
            }
            shares.push(advance(sequence, tokens));
            tokens_left -= tokens;
        }
        debug_assert!(
            decoding <= self.limits.batch_max,
            "a batch exceeds its limit"
        );
        debug_assert!(
            self.kv_tokens_reserved <= self.limits.kv_tokens_max,
            "the KV cache exceeds its limit"
        );
        Plan { admitted, shares }
    }

    /// Admits from the head of the queue only: a long sequence is not overtaken for ever by short ones.
    fn admit(&mut self) -> Vec<SequenceId> {
        let mut admitted = Vec::new();
        while let Some(next) = self.waiting.front() {
            let kv_tokens = self.kv_tokens_reserved + next.tokens_max;
            if self.running.len() >= self.limits.batch_max || kv_tokens > self.limits.kv_tokens_max
            {
                break;
            }
            self.kv_tokens_reserved = kv_tokens;
            admitted.push(next.id);
            self.running.push(Running {
                request: *next,
                computed: 0,
            });
            self.waiting.pop_front();
        }
        admitted
    }
}

fn advance(sequence: &mut Running, tokens: usize) -> Share {
    let from = sequence.computed;
    sequence.computed += tokens;
    Share {
        id: sequence.request.id,
        from,
        tokens,
        yields: sequence.is_decoding(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        batch_max: 2,
        waiting_max: 3,
        step_tokens_max: 8,
        kv_tokens_max: 40,
    };

    fn request(id: u64, prompt_tokens: usize, tokens_max: usize) -> Request {
        Request {
            id: SequenceId(id),
            prompt_tokens,
            tokens_max,
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

    #[test]
    fn decodes_come_first_and_prompts_fill_the_step() {
        let mut scheduler = Scheduler::new(LIMITS);
        scheduler.enqueue(request(1, 3, 10)).expect("room");
        assert_eq!(scheduler.plan().shares, [share(1, 0, 3, true)]);
        scheduler.enqueue(request(2, 12, 20)).expect("room");
        assert_eq!(
            scheduler.plan().shares,
            [share(1, 3, 1, true), share(2, 0, 7, false)]
        );
        assert_eq!(
            scheduler.plan().shares,
            [share(1, 4, 1, true), share(2, 7, 5, true)]
        );
        assert_eq!(
            scheduler.plan().shares,
            [share(1, 5, 1, true), share(2, 12, 1, true)]
        );
        scheduler.leave(SequenceId(1));
        assert_eq!(scheduler.plan().shares, [share(2, 13, 1, true)]);
        scheduler.leave(SequenceId(2));
        assert!(scheduler.is_idle());
        assert_eq!(scheduler.plan(), Plan::default());
    }

    #[test]
    fn refuses_what_never_fits_and_what_finds_the_queue_full() {
        let mut scheduler = Scheduler::new(LIMITS);
        assert_eq!(
            scheduler.enqueue(request(1, 1, 41)),
            Err(Refusal::NeverFits)
        );
        assert_eq!(scheduler.enqueue(request(1, 0, 4)), Err(Refusal::NeverFits));
        assert_eq!(scheduler.enqueue(request(1, 4, 4)), Err(Refusal::NeverFits));
        for id in 0..3 {
            scheduler.enqueue(request(id, 1, 4)).expect("room");
        }
        assert_eq!(scheduler.enqueue(request(3, 1, 4)), Err(Refusal::QueueFull));
        scheduler.leave(SequenceId(1));
        scheduler.enqueue(request(3, 1, 4)).expect("room again");
        assert_eq!(scheduler.plan().admitted, [SequenceId(0), SequenceId(2)]);
    }

    /// What a run of the scheduler showed.
    #[derive(Default)]
    struct Run {
        admitted: Vec<SequenceId>,
        computed: BTreeMap<SequenceId, usize>,
    }

    /// Plans one step and checks every law that a single step has.
    fn step(
        scheduler: &mut Scheduler,
        known: &BTreeMap<SequenceId, Request>,
        run: &mut Run,
    ) -> Plan {
        let plan = scheduler.plan();
        let limits = scheduler.limits;
        run.admitted.extend(&plan.admitted);
        let tokens: usize = plan.shares.iter().map(|share| share.tokens).sum();
        assert!(tokens <= limits.step_tokens_max, "step over budget");
        assert!(plan.shares.len() <= limits.batch_max, "batch too large");
        let distinct: BTreeSet<_> = plan.shares.iter().map(|share| share.id).collect();
        assert_eq!(
            distinct.len(),
            plan.shares.len(),
            "a sequence twice in a step"
        );
        let reserved: usize = scheduler.running.iter().map(|r| r.request.tokens_max).sum();
        assert_eq!(reserved, scheduler.kv_tokens_reserved);
        assert!(reserved <= limits.kv_tokens_max, "KV cache over capacity");
        let mut prefilling = false;
        for share in &plan.shares {
            let request = known[&share.id];
            let computed = run.computed.entry(share.id).or_default();
            assert_eq!(
                share.from, *computed,
                "no token is computed twice or left out"
            );
            assert!(share.tokens > 0);
            let decodes = share.from >= request.prompt_tokens;
            assert!(!(prefilling && decodes), "a decode after a prefill");
            assert!(!decodes || share.tokens == 1);
            prefilling |= !decodes;
            *computed += share.tokens;
            assert_eq!(share.yields, *computed >= request.prompt_tokens);
        }
        plan
    }

    proptest! {
        #[test]
        fn every_admitted_sequence_finishes_within_the_limits_and_in_turn(
            batch_max in 1usize..9,
            step_tokens_max in 1usize..33,
            kv_tokens_max in 30usize..200,
            arrivals in prop::collection::vec((0usize..4, 1usize..40, 1usize..20, 0usize..30), 1..60),
        ) {
            let limits = Limits { batch_max, waiting_max: 16, step_tokens_max, kv_tokens_max };
            let mut scheduler = Scheduler::new(limits);
            let mut known = BTreeMap::new();
            let mut accepted = Vec::new();
            let mut gone_early = BTreeSet::new();
            let mut left = BTreeMap::new();
            let mut run = Run::default();
            let mut arrivals = arrivals.into_iter().enumerate();
            let mut pending = arrivals.next();
            let mut steps = 0;
            while pending.is_some() || !scheduler.is_idle() {
                steps += 1;
                prop_assert!(steps < 20_000, "no progress");
                // Up to a few arrive between two steps; some of those give up later.
                while let Some((at, (gap, prompt, completion, patience))) = pending {
                    if gap > 0 {
                        pending = Some((at, (gap - 1, prompt, completion, patience)));
                        break;
                    }
                    let id = SequenceId(at as u64);
                    let request = Request { id, prompt_tokens: prompt, tokens_max: prompt + completion };
                    known.insert(id, request);
                    match scheduler.enqueue(request) {
                        Ok(()) => accepted.push(id),
                        Err(Refusal::NeverFits) => prop_assert!(request.tokens_max > kv_tokens_max),
                        Err(Refusal::QueueFull) => prop_assert_eq!(scheduler.waiting(), 16),
                    }
                    if patience < 3 {
                        gone_early.insert(id);
                    }
                    pending = arrivals.next();
                }
                let busy = !scheduler.is_idle();
                let plan = step(&mut scheduler, &known, &mut run);
                prop_assert!(!busy || !plan.shares.is_empty(), "work is there and none is planned");
                for share in plan.shares.iter().filter(|share| share.yields) {
                    let generated: &mut usize = left.entry(share.id).or_default();
                    *generated += 1;
                    let request = known[&share.id];
                    if *generated == request.tokens_max - request.prompt_tokens || gone_early.contains(&share.id) {
                        scheduler.leave(share.id);
                    }
                }
            }
            prop_assert_eq!(&run.admitted, &accepted, "admitted in another order than they came");
            for id in accepted.iter().filter(|id| !gone_early.contains(*id)) {
                let request = known[id];
                prop_assert_eq!(left[id], request.tokens_max - request.prompt_tokens);
            }
        }
    }
}
