//! The scheduler: which sequences run, in which blocks, and what the next step computes.

use std::time::Duration;

use super::{
    cost::StepSize,
    pool::{BlockId, BlockPool},
    prefix::BLOCK_TOKENS,
    queue::WaitingQueue,
    sequence::{Request, ScheduledSequence, SequenceId, blocks_for},
    step_budget::StepBudget,
};

/// Limits that a scheduler never exceeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Limits {
    /// Sequences that run at once; at most one per token of a step.
    pub batch_max: usize,
    /// Sequences that wait; preempted ones may exceed it.
    pub waiting_max: usize,
    /// Tokens per step.
    pub step_tokens_max: usize,
    /// Blocks of the KV cache.
    pub kv_blocks: usize,
    /// Seconds per step while decodes run; `None` for no limit.
    pub step_seconds_max: Option<f64>,
}

/// Why a sequence is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EnqueueError {
    /// Retry later: the queue is full.
    QueueFull,
    /// Never: it has no token, or does not fit the KV cache even alone.
    NeverFits,
}

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StepShare {
    /// The sequence.
    pub id: SequenceId,
    /// Its tokens in the KV cache before the step.
    pub from: usize,
    /// Tokens to compute.
    pub tokens: usize,
    /// True when the step computes the last known token, so that the next one can be sampled.
    pub yields: bool,
}

/// One step.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// Sequences admitted with this step, preempted ones included.
    pub admitted: Vec<SequenceId>,
    /// Sequences that lost their blocks and wait to be recomputed.
    pub preempted: Vec<SequenceId>,
    /// What to compute: decodes, then prefill in scheduling order.
    pub shares: Vec<StepShare>,
    /// Size of the step.
    pub size: StepSize,
}

/// Plans steps for sequences that join and leave at any time.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    step_budget: StepBudget,
    pool: BlockPool,
    queue: WaitingQueue,
    /// In scheduling order.
    running: Vec<ScheduledSequence>,
    /// Number of the last step planned.
    step: u64,
}

impl Scheduler {
    /// A scheduler without sequences. `batch_max` is lowered to the tokens of a step, since every
    /// running sequence must be able to compute one token per step.
    pub(crate) fn new(limits: Limits) -> Self {
        let batch_max = limits.batch_max.min(limits.step_tokens_max);
        Self {
            limits: Limits {
                batch_max,
                ..limits
            },
            step_budget: StepBudget::new(limits.step_seconds_max),
            pool: BlockPool::new(limits.kv_blocks),
            queue: WaitingQueue::default(),
            running: Vec::new(),
            step: 0,
        }
    }

    /// Number of waiting sequences.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// True when another sequence may wait.
    pub(crate) fn can_enqueue(&self) -> bool {
        self.queue.len() < self.limits.waiting_max
    }

    /// True when no sequence waits or runs.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.running.is_empty()
    }

    /// Blocks that running sequences use.
    pub(crate) fn blocks_used(&self) -> usize {
        self.pool.len() - self.pool.available()
    }

    /// Adds a sequence to the waiting queue. `now` is on the same clock as in [`Self::plan`].
    ///
    /// # Errors
    /// [`EnqueueError`] when it is not accepted.
    pub(crate) fn enqueue(&mut self, request: Request, now: Duration) -> Result<(), EnqueueError> {
        let has_tokens = !request.tokens.is_empty() && request.tokens.len() < request.tokens_max;
        if !has_tokens || blocks_for(request.tokens_max) > self.limits.kv_blocks {
            return Err(EnqueueError::NeverFits);
        }
        if !self.can_enqueue() {
            return Err(EnqueueError::QueueFull);
        }
        self.queue.push(ScheduledSequence::new(request, now));
        Ok(())
    }

    /// Appends the token sampled after a yielding share.
    pub(crate) fn append(&mut self, id: SequenceId, token: u32) {
        if let Some(sequence) = self.running.iter_mut().find(|sequence| sequence.id == id) {
            debug_assert!(
                sequence.computed == sequence.tokens.len(),
                "it did not yield"
            );
            debug_assert!(
                sequence.tokens.len() < sequence.tokens_max,
                "it should have left"
            );
            sequence.tokens.push(token);
        }
    }

    /// Removes a finished or cancelled sequence, running or waiting. Returns how many of its prompt's
    /// tokens were computed rather than found in the cache.
    pub(crate) fn leave(&mut self, id: SequenceId) -> usize {
        let at = self.running.iter().position(|sequence| sequence.id == id);
        let sequence = match at {
            Some(at) => Some(self.running.remove(at)),
            None => self.queue.remove(id),
        };
        sequence.map_or(0, |mut sequence| {
            sequence.release(&mut self.pool);
            // Tokens recomputed after a preemption count once.
            sequence.prompt_tokens_computed.min(sequence.prompt_tokens)
        })
    }

    /// Recovers from a failed step, whose results cannot be trusted: drops all cached blocks, removes
    /// the running sequences and returns their ids. Waiting ones stay.
    pub(crate) fn reset(&mut self) -> Vec<SequenceId> {
        self.pool = BlockPool::new(self.limits.kv_blocks);
        self.running.drain(..).map(|running| running.id).collect()
    }

    /// The tokens of a planned share and the block table of its sequence.
    pub(crate) fn chunk(&self, share: &StepShare) -> Option<(&[u32], &[BlockId])> {
        let sequence = self.running.iter().find(|running| running.id == share.id)?;
        let tokens = sequence.tokens.get(share.from..share.from + share.tokens)?;
        Some((tokens, &sequence.blocks))
    }

    /// Records the duration of a planned step.
    pub(crate) fn observe(&mut self, plan: &Plan, seconds: f64) {
        self.step_budget.observe(plan.size, seconds);
    }

    /// Plans the next step and counts its tokens as computed. The plan is empty when no sequence runs
    /// or waits.
    pub(crate) fn plan(&mut self, now: Duration) -> Plan {
        self.step += 1;
        let mut plan = Plan::default();
        self.admit(now, &mut plan);
        self.plan_decodes(&mut plan);
        let decodes = plan.size;
        self.plan_prefill(decodes, &mut plan);
        debug_assert!(
            plan.shares.len() <= self.limits.batch_max,
            "a batch exceeds its limit"
        );
        debug_assert!(
            plan.size.tokens <= self.limits.step_tokens_max,
            "a step exceeds its limit"
        );
        plan
    }

    /// Admits from the head of the queue only, so that short sequences cannot overtake a long one
    /// forever. The head needs blocks for its known tokens, besides those that running sequences still
    /// need for theirs and one more block each.
    fn admit(&mut self, now: Duration, plan: &mut Plan) {
        let promised = |running: &[ScheduledSequence]| -> usize {
            let still = |sequence: &ScheduledSequence| {
                1 + sequence
                    .blocks_wanted()
                    .saturating_sub(sequence.blocks.len())
            };
            running.iter().map(still).sum()
        };
        while self.running.len() < self.limits.batch_max {
            let Some(next) = self.queue.next(now, &self.step_budget) else {
                return;
            };
            if !self.running.is_empty() {
                let (cached, used) = next.cached_blocks(&self.pool);
                // Cached blocks that it reuses are no longer available to others.
                let available = self.pool.available() - (cached - used);
                let wanted = next.blocks_wanted() - cached + promised(&self.running);
                let all = self.running.iter().map(ScheduledSequence::decode_size);
                let decodes = all.fold(next.decode_size(), StepSize::and);
                if wanted > available || !self.step_budget.fits(decodes) {
                    return;
                }
            }
            let (id, order) = (next.id, next.order);
            let next = self
                .queue
                .remove(id)
                .expect("it was just found in the queue");
            let at = self
                .running
                .partition_point(|running| running.order < order);
            self.running.insert(at, next);
            plan.admitted.push(id);
        }
    }

    fn plan_decodes(&mut self, plan: &mut Plan) {
        let mut at = 0;
        while at < self.running.len() {
            if !self.running[at].is_decoding() {
                at += 1;
                continue;
            }
            // Only sequences later in order lose their blocks, and those are not planned yet.
            while at < self.running.len() && !self.grow_blocks(at, 1) {
                self.preempt_last(plan);
            }
            if at < self.running.len() {
                self.share(at, 1, plan);
            }
            at += 1;
        }
    }

    fn plan_prefill(&mut self, decodes: StepSize, plan: &mut Plan) {
        let mut at = 0;
        while at < self.running.len() {
            if self.running[at].step == self.step {
                at += 1;
                continue;
            }
            let sequence = &mut self.running[at];
            // Also finds blocks that another sequence computes in this step: in every layer, all keys and
            // values are written before any token attends.
            sequence.reuse(&mut self.pool);
            let from = sequence.computed;
            let left = self.limits.step_tokens_max - plan.size.tokens;
            let most = left.min(sequence.tokens.len() - from);
            let tokens = self
                .step_budget
                .prefill_tokens(decodes, plan.size, from, most);
            if tokens == 0 {
                return;
            }
            let is_last_planned = |running: &[ScheduledSequence], step| {
                running.last().is_none_or(|last| last.step == step)
            };
            while !self.grow_blocks(at, tokens)
                && at + 1 < self.running.len()
                && !is_last_planned(&self.running, self.step)
            {
                self.preempt_last(plan);
            }
            let capacity = self.running[at].blocks.len() * BLOCK_TOKENS - from;
            if capacity == 0 {
                return;
            }
            self.share(at, tokens.min(capacity), plan);
            at += 1;
        }
    }

    /// Takes blocks for so many more tokens of a running sequence; false when none is left.
    fn grow_blocks(&mut self, at: usize, tokens: usize) -> bool {
        let sequence = &mut self.running[at];
        while sequence.blocks.len() < blocks_for(sequence.computed + tokens) {
            match self.pool.take() {
                Some(block) => sequence.blocks.push(block),
                None => return false,
            }
        }
        true
    }

    /// Moves the last running sequence back to the queue. When it runs again, it recomputes what is
    /// no longer cached.
    fn preempt_last(&mut self, plan: &mut Plan) {
        if let Some(mut last) = self.running.pop() {
            debug_assert!(last.step != self.step, "it has a share in this step");
            last.release(&mut self.pool);
            plan.admitted.retain(|admitted| *admitted != last.id);
            plan.preempted.push(last.id);
            self.queue.push(last);
        }
    }

    fn share(&mut self, at: usize, tokens: usize, plan: &mut Plan) {
        let sequence = &mut self.running[at];
        let from = sequence.computed;
        sequence.advance(tokens, &mut self.pool);
        sequence.step = self.step;
        plan.size = plan.size.and(StepSize::of(from, tokens));
        plan.shares.push(StepShare {
            id: sequence.id,
            from,
            tokens,
            yields: sequence.computed == sequence.tokens.len(),
        });
    }
}

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
