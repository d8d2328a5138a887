//! A sequence as the scheduler sees it: its tokens, its blocks, its order.

use std::time::Duration;

use super::{
    cost::StepSize,
    pool::{BlockId, BlockPool},
    prefix::{BLOCK_TOKENS, PrefixHash},
};
use crate::job::Priority;

/// Identifies a sequence within one scheduler; ids are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SequenceId(pub u64);

/// A sequence to be scheduled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// Its id.
    pub id: SequenceId,
    /// The prompt, at least one token.
    pub tokens: Vec<u32>,
    /// Most tokens of prompt and completion together.
    pub tokens_max: usize,
    /// The scope in which its blocks are shared; `None` disables sharing.
    pub scope: Option<PrefixHash>,
    /// High runs before normal.
    pub priority: Priority,
    /// When the answer is due, on the scheduler's clock.
    pub due: Option<Duration>,
}

/// Scheduling order: by class, then by arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ScheduleOrder {
    pub(super) class: PriorityClass,
    pub(super) arrival: SequenceId,
}

/// High runs before normal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PriorityClass {
    High,
    Normal,
}

/// A waiting or running sequence.
#[derive(Clone, Debug)]
pub(super) struct ScheduledSequence {
    pub(super) id: SequenceId,
    /// Prompt, then generated tokens.
    pub(super) tokens: Vec<u32>,
    pub(super) prompt_tokens: usize,
    pub(super) tokens_max: usize,
    pub(super) priority: Priority,
    pub(super) due: Option<Duration>,
    pub(super) arrived: Duration,
    pub(super) order: ScheduleOrder,
    /// Tokens in the KV cache once the planned steps are computed.
    pub(super) computed: usize,
    /// Block table: the block of positions 0 to 31, of 32 to 63, and so on.
    pub(super) blocks: Vec<BlockId>,
    /// Prompt tokens computed rather than found in the cache; recomputed ones count again.
    pub(super) prompt_tokens_computed: usize,
    /// Hashes of the prefixes that end with a full block, as far as needed; the scope first.
    prefixes: Vec<PrefixHash>,
    /// Number of the last step it takes part in.
    pub(super) step: u64,
}

impl ScheduledSequence {
    pub(super) fn new(request: Request, arrived: Duration) -> Self {
        let order = ScheduleOrder {
            class: PriorityClass::Normal,
            arrival: request.id,
        };
        Self {
            id: request.id,
            prompt_tokens: request.tokens.len(),
            tokens: request.tokens,
            tokens_max: request.tokens_max,
            priority: request.priority,
            due: request.due,
            arrived,
            order,
            computed: 0,
            blocks: Vec::new(),
            prompt_tokens_computed: 0,
            prefixes: request.scope.into_iter().collect(),
            step: 0,
        }
    }

    /// True when the only token left to compute is one that it generated.
    pub(super) fn is_decoding(&self) -> bool {
        self.tokens.len() > self.prompt_tokens && self.computed + 1 == self.tokens.len()
    }

    /// Size of its next token's share of a step.
    pub(super) fn decode_size(&self) -> StepSize {
        StepSize::of(self.tokens.len() - 1, 1)
    }

    /// Blocks needed for its known tokens and one more.
    pub(super) fn blocks_wanted(&self) -> usize {
        blocks_for(self.tokens.len() + 1)
    }

    /// Hash and tokens of a full block, where blocks are shared.
    fn prefix(&mut self, block: usize) -> Option<(PrefixHash, &[u32; BLOCK_TOKENS])> {
        let (parts, _) = self.tokens.as_chunks::<BLOCK_TOKENS>();
        while self.prefixes.len() <= block + 1 {
            let last = *self.prefixes.last()?;
            self.prefixes
                .push(last.then(parts.get(self.prefixes.len() - 1)?));
        }
        Some((self.prefixes[block + 1], parts.get(block)?))
    }

    /// Counts the leading blocks that the pool holds, and how many of those are in use. The last token
    /// is always computed, since its logits are needed.
    pub(super) fn cached_blocks(&mut self, pool: &BlockPool) -> (usize, usize) {
        let (mut cached, mut used) = (0, 0);
        for block in 0..(self.tokens.len() - 1) / BLOCK_TOKENS {
            let found = self
                .prefix(block)
                .and_then(|(name, tokens)| pool.is_used(name, tokens));
            let Some(is_used) = found else { break };
            cached += 1;
            used += usize::from(is_used);
        }
        (cached, used)
    }

    /// Reuses blocks that the pool holds for the next positions.
    pub(super) fn reuse(&mut self, pool: &mut BlockPool) {
        while self.computed == self.blocks.len() * BLOCK_TOKENS
            && self.computed + BLOCK_TOKENS < self.tokens.len()
        {
            let found = self
                .prefix(self.blocks.len())
                .and_then(|(name, tokens)| pool.reuse(name, tokens));
            let Some(block) = found else { return };
            self.blocks.push(block);
            self.computed += BLOCK_TOKENS;
        }
    }

    /// Counts tokens as computed and records the blocks that they fill.
    pub(super) fn advance(&mut self, tokens: usize, pool: &mut BlockPool) {
        let full = self.computed / BLOCK_TOKENS;
        let of_prompt = |upto: usize| upto.min(self.prompt_tokens);
        self.prompt_tokens_computed += of_prompt(self.computed + tokens) - of_prompt(self.computed);
        self.computed += tokens;
        for block in full..self.computed / BLOCK_TOKENS {
            let id = self.blocks[block];
            if let Some((name, tokens)) = self.prefix(block) {
                pool.record(id, name, tokens);
            }
        }
    }

    /// Releases all blocks, the last first, so that the start of the prefix is evicted last.
    pub(super) fn release(&mut self, pool: &mut BlockPool) {
        while let Some(block) = self.blocks.pop() {
            pool.release(block);
        }
        self.computed = 0;
    }
}

/// Blocks needed for so many positions.
pub(super) fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}
