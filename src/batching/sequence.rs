//! A sequence as the scheduler sees it: its tokens, its blocks, its turn.

use std::time::Duration;

use super::{
    cost::StepSize,
    pool::{BlockId, BlockPool},
    prefix::{BLOCK_TOKENS, PrefixHash},
};
use crate::job::Priority;

/// Identifies a sequence within one scheduler; ids are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// A sequence that wants to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its identity.
    pub id: SequenceId,
    /// Its prompt, at least one token.
    pub tokens: Vec<u32>,
    /// Tokens of prompt and completion together, at most.
    pub tokens_max: usize,
    /// Where its blocks may be shared; `None` for nowhere.
    pub scope: Option<PrefixHash>,
    /// High goes before normal.
    pub priority: Priority,
    /// When its answer is due, on the scheduler's clock.
    pub due: Option<Duration>,
}

/// Whose turn comes first: the class, then the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    pub(super) class: Class,
    pub(super) arrival: SequenceId,
}

/// High before normal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    High,
    Normal,
}

/// A sequence that waits or runs.
#[derive(Clone, Debug)]
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    /// Prompt, then what was generated.
    pub(super) tokens: Vec<u32>,
    pub(super) prompt_tokens: usize,
    pub(super) tokens_max: usize,
    pub(super) priority: Priority,
    pub(super) due: Option<Duration>,
    pub(super) arrived: Duration,
    pub(super) turn: Turn,
    /// Tokens in the KV cache once the planned steps are computed.
    pub(super) computed: usize,
    /// The block table: the block of positions 0 to 31, of 32 to 63, and so on.
    pub(super) blocks: Vec<BlockId>,
    /// Prompt tokens computed, and not found in the cache; what is computed again counts again.
    pub(super) prompt_tokens_computed: usize,
    /// Of the beginnings that end with a full block, as far as they were needed; first the scope.
    prefixes: Vec<PrefixHash>,
    /// Number of the last step it takes part in.
    pub(super) step: u64,
}

impl Sequence {
    pub(super) fn new(request: Request, arrived: Duration) -> Self {
        let turn = Turn {
            class: Class::Normal,
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
            turn,
            computed: 0,
            blocks: Vec::new(),
            prompt_tokens_computed: 0,
            prefixes: request.scope.into_iter().collect(),
            step: 0,
        }
    }

    /// True when only its last token is to be computed and that is one that it generated.
    pub(super) fn is_decoding(&self) -> bool {
        self.tokens.len() > self.prompt_tokens && self.computed + 1 == self.tokens.len()
    }

    /// Its next token's part of a step.
    pub(super) fn decode_size(&self) -> StepSize {
        StepSize::of(self.tokens.len() - 1, 1)
    }

    /// Blocks that its known tokens and one more need.
    pub(super) fn blocks_wanted(&self) -> usize {
        blocks_for(self.tokens.len() + 1)
    }

    /// The name and the tokens of the beginning that ends with a full block, where blocks are shared.
    fn prefix(&mut self, block: usize) -> Option<(PrefixHash, &[u32; BLOCK_TOKENS])> {
        let (parts, _) = self.tokens.as_chunks::<BLOCK_TOKENS>();
        while self.prefixes.len() <= block + 1 {
            let last = *self.prefixes.last()?;
            self.prefixes
                .push(last.then(parts.get(self.prefixes.len() - 1)?));
        }
        Some((self.prefixes[block + 1], parts.get(block)?))
    }

    /// Number of blocks at its beginning that the pool holds, and of those that somebody uses. The
    /// last token is always computed, since its logits are wanted.
    pub(super) fn blocks_held(&mut self, pool: &BlockPool) -> (usize, usize) {
        let (mut held, mut used) = (0, 0);
        for block in 0..(self.tokens.len() - 1) / BLOCK_TOKENS {
            let found = self
                .prefix(block)
                .and_then(|(name, tokens)| pool.is_used(name, tokens));
            let Some(is_used) = found else { break };
            held += 1;
            used += usize::from(is_used);
        }
        (held, used)
    }

    /// Takes over blocks that the pool holds for the positions that follow.
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

    /// Takes the tokens as computed and lets the pool know the blocks that they fill.
    pub(super) fn advance(&mut self, tokens: usize, pool: &mut BlockPool) {
        let full = self.computed / BLOCK_TOKENS;
        let of_prompt = |upto: usize| upto.min(self.prompt_tokens);
        self.prompt_tokens_computed += of_prompt(self.computed + tokens) - of_prompt(self.computed);
        self.computed += tokens;
        for block in full..self.computed / BLOCK_TOKENS {
            let id = self.blocks[block];
            if let Some((name, tokens)) = self.prefix(block) {
                pool.note(id, name, tokens);
            }
        }
    }

    /// Gives all blocks back, the last first: a beginning is worth more than what follows it.
    pub(super) fn release(&mut self, pool: &mut BlockPool) {
        while let Some(block) = self.blocks.pop() {
            pool.release(block);
        }
        self.computed = 0;
    }
}

/// Blocks that so many positions fill.
pub(super) fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}
