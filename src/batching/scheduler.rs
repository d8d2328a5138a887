//! The scheduler: who runs, in which blocks, and what the next step computes.

use std::time::Duration;

use super::{
    cost::StepSize,
    pace::Pace,
    pool::{BlockId, BlockPool},
    prefix::BLOCK_TOKENS,
    queue::Queue,
    sequence::{Request, Sequence, SequenceId, blocks_for},
};

/// What a scheduler never exceeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Sequences that run at once; no more than fit a step with one token each.
    pub batch_max: usize,
    /// Sequences that wait; those that ran before and were put back may exceed it.
    pub waiting_max: usize,
    /// Tokens computed in one step.
    pub step_tokens_max: usize,
    /// Blocks of the KV cache.
    pub kv_blocks: usize,
    /// Seconds that a step may take where it holds up running answers; `None` for no limit.
    pub step_seconds_max: Option<f64>,
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
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Sequences that leave the queue with this step; one that was put back comes again.
    pub admitted: Vec<SequenceId>,
    /// Sequences that lost their blocks to others and wait to be computed again.
    pub preempted: Vec<SequenceId>,
    /// What to compute: decodes, then prefill in order of turn.
    pub shares: Vec<Share>,
    /// How large the step is.
    pub size: StepSize,
}

/// Plans steps for sequences that come and go.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pace: Pace,
    pool: BlockPool,
    queue: Queue,
    /// In the order of their turns.
    running: Vec<Sequence>,
    /// Number of the last step planned.
    step: u64,
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
            pace: Pace::new(limits.step_seconds_max),
            pool: BlockPool::new(limits.kv_blocks),
            queue: Queue::default(),
            running: Vec::new(),
            step: 0,
        }
    }

    /// Sequences that wait.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// True when one more may wait.
    pub fn has_room(&self) -> bool {
        self.queue.len() < self.limits.waiting_max
    }

    /// True when there is nothing to plan.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.running.is_empty()
    }

    /// Blocks that running sequences use.
    pub fn blocks_used(&self) -> usize {
        self.pool.len() - self.pool.available()
    }

    /// Lets a sequence wait for its turn. Time is told on one clock, here and in [`Self::plan`].
    ///
    /// # Errors
    /// [`Refusal`] when it may not.
    pub fn enqueue(&mut self, request: Request, now: Duration) -> Result<(), Refusal> {
        let has_tokens = !request.tokens.is_empty() && request.tokens.len() < request.tokens_max;
        if !has_tokens || blocks_for(request.tokens_max) > self.limits.kv_blocks {
            return Err(Refusal::NeverFits);
        }
        if !self.has_room() {
            return Err(Refusal::QueueFull);
        }
        self.queue.push(Sequence::new(request, now));
        Ok(())
    }

    /// Adds the token that was chosen after a yielding share.
    pub fn append(&mut self, id: SequenceId, token: u32) {
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

    /// Takes a sequence out, wherever it stands: it has finished or is not wanted any more. Tells
    /// how many of its prompt's tokens were computed, and not found in the cache.
    pub fn leave(&mut self, id: SequenceId) -> usize {
        let at = self.running.iter().position(|sequence| sequence.id == id);
        let sequence = match at {
            Some(at) => Some(self.running.remove(at)),
            None => self.queue.remove(id),
        };
        sequence.map_or(0, |mut sequence| {
            sequence.release(&mut self.pool);
            // What was computed twice was asked for once.
            sequence.prompt_tokens_computed.min(sequence.prompt_tokens)
        })
    }

    /// After a failed step, of which nothing can be trusted: forgets every block and takes out the
    /// running sequences, whose ids it gives; the waiting ones go on waiting.
    pub fn reset(&mut self) -> Vec<SequenceId> {
        self.pool = BlockPool::new(self.limits.kv_blocks);
        self.running.drain(..).map(|running| running.id).collect()
    }

    /// The tokens that a planned share computes, and the block table of its sequence.
    pub fn chunk(&self, share: &Share) -> Option<(&[u32], &[BlockId])> {
        let sequence = self.running.iter().find(|running| running.id == share.id)?;
        let tokens = sequence.tokens.get(share.from..share.from + share.tokens)?;
        Some((tokens, &sequence.blocks))
    }

    /// Takes in how long a planned step took.
    pub fn observe(&mut self, plan: &Plan, seconds: f64) {
        self.pace.observe(plan.size, seconds);
    }

    /// Plans the next step and takes its tokens as computed. An empty plan means that nothing runs
    /// or waits.
    pub fn plan(&mut self, now: Duration) -> Plan {
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

    /// Admits from the head of the queue only: a long sequence is not overtaken for ever by short
    /// ones. The head must find room for its known tokens beside what the running ones still need
    /// for theirs and a block more for each.
    fn admit(&mut self, now: Duration, plan: &mut Plan) {
        let promised = |running: &[Sequence]| -> usize {
            let still = |sequence: &Sequence| {
                1 + sequence
                    .blocks_wanted()
                    .saturating_sub(sequence.blocks.len())
            };
            running.iter().map(still).sum()
        };
        while self.running.len() < self.limits.batch_max {
            let Some(next) = self.queue.next(now, &self.pace) else {
                return;
            };
            if !self.running.is_empty() {
                let (held, used) = next.blocks_held(&self.pool);
                // Unused blocks that it finds are not there for others any more.
                let available = self.pool.available() - (held - used);
                let wanted = next.blocks_wanted() - held + promised(&self.running);
                let all = self.running.iter().map(Sequence::decode_size);
                let decodes = all.fold(next.decode_size(), StepSize::and);
                if wanted > available || !self.pace.fits(decodes) {
                    return;
                }
            }
            let (id, turn) = (next.id, next.turn);
            let next = self
                .queue
                .remove(id)
                .expect("it was just seen in the queue");
            let at = self.running.partition_point(|running| running.turn < turn);
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
            // Only those whose turn is later lose their blocks, and they are planned later.
            while at < self.running.len() && !self.make_room(at, 1) {
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
            // Also what another sequence computes in this very step: in every layer all keys and
            // values are written before any token attends.
            sequence.reuse(&mut self.pool);
            let from = sequence.computed;
            let left = self.limits.step_tokens_max - plan.size.tokens;
            let most = left.min(sequence.tokens.len() - from);
            let tokens = self.pace.prefill_tokens(decodes, plan.size, from, most);
            if tokens == 0 {
                return;
            }
            let is_last_planned =
                |running: &[Sequence], step| running.last().is_none_or(|last| last.step == step);
            while !self.make_room(at, tokens)
                && at + 1 < self.running.len()
                && !is_last_planned(&self.running, self.step)
            {
                self.preempt_last(plan);
            }
            let room = self.running[at].blocks.len() * BLOCK_TOKENS - from;
            if room == 0 {
                return;
            }
            self.share(at, tokens.min(room), plan);
            at += 1;
        }
    }

    /// Takes blocks until so many more tokens of a running sequence fit; false when none is left.
    fn make_room(&mut self, at: usize, tokens: usize) -> bool {
        let sequence = &mut self.running[at];
        while sequence.blocks.len() < blocks_for(sequence.computed + tokens) {
            match self.pool.take() {
                Some(block) => sequence.blocks.push(block),
                None => return false,
            }
        }
        true
    }

    /// Puts the running sequence whose turn is last back into the queue; it is computed again
    /// later, as far as its blocks are gone by then.
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
        plan.shares.push(Share {
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
