//! What goes into one step of a decoder and what comes out, on the CPU and on a GPU alike.

use std::ops::Range;

use crate::batching::{BLOCK_TOKENS, BlockId};

/// Computes steps; tests substitute a model that fails.
pub(super) trait Forward: Send + 'static {
    fn forward(&mut self, chunks: &[Chunk<'_>]) -> Result<Logits, String>;
}

/// Which rows of logits a sequence needs from a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitRows {
    /// None: the chunk does not complete its prompt.
    None,
    /// The last token's.
    Last,
    /// Every token's.
    All,
}

/// One sequence's tokens in a step.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// The tokens to compute.
    pub tokens: &'a [u32],
    /// Position of the first token; the blocks hold the keys and values of all earlier positions.
    pub from: usize,
    /// The sequence's block table; it must cover every position up to the last token's.
    pub blocks: &'a [BlockId],
    /// The logits to return.
    pub rows: LogitRows,
}

impl Chunk<'_> {
    /// The positions of the tokens.
    pub fn positions(&self) -> Range<usize> {
        self.from..self.from + self.tokens.len()
    }

    /// Checks the chunk against a model's limits.
    ///
    /// # Errors
    /// When a token is not in the vocabulary, the sequence exceeds the context, or the block table
    /// does not cover it or names a block beyond the `blocks` of the KV cache.
    pub(super) fn check(
        &self,
        context_tokens: usize,
        vocabulary: usize,
        blocks: usize,
    ) -> Result<(), String> {
        let tokens = self.positions().end;
        if self.tokens.is_empty() || tokens > context_tokens {
            return Err(format!(
                "a chunk ends at token {tokens}; expected 1 to {context_tokens}"
            ));
        }
        let is_unknown = |token: &&u32| **token as usize >= vocabulary;
        if let Some(token) = self.tokens.iter().find(is_unknown) {
            return Err(format!(
                "token {token} is not in the vocabulary of {vocabulary}"
            ));
        }
        let is_outside = |block: &BlockId| block.index() >= blocks;
        if self.blocks.len() * BLOCK_TOKENS < tokens || self.blocks.iter().any(is_outside) {
            return Err(format!(
                "a table of {} blocks, out of {blocks}, does not hold {tokens} tokens",
                self.blocks.len()
            ));
        }
        Ok(())
    }
}

/// Logits of the requested rows, in the order of the chunks.
#[derive(Clone, Debug)]
pub struct Logits {
    values: Vec<f32>,
    vocabulary: usize,
}

impl Logits {
    /// Wraps `[row][vocabulary]`.
    pub fn new(values: Vec<f32>, vocabulary: usize) -> Self {
        Self { values, vocabulary }
    }

    /// The rows.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.vocabulary)
    }
}
