//! A step in the device's layout: all indices in one array, so that one upload suffices.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};

use crate::{
    batching::BLOCK_TOKENS,
    engine::local::{
        forward::{Chunk, LogitRows},
        shape::HeadWidths,
    },
};

/// Widest head that the attention kernel has shared memory for.
pub(super) const HEAD_MAX: usize = 256;

impl HeadWidths {
    /// Query rows that a block of the attention kernel computes: as many as its shared memory holds.
    pub(super) fn tile_rows(self) -> usize {
        1024 / self.head.clamp(64, HEAD_MAX)
    }
}

/// A step's indices, on the host and on the device.
#[derive(Debug)]
pub(super) struct DeviceStep {
    pub(super) step: Step,
    pub(super) on_device: Tensor,
}

/// What the kernels for keys, values and attention read besides their tensors.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepOperands<'a> {
    pub(super) widths: HeadWidths,
    /// `[position * head / 2]`, in f32.
    pub(super) cosines: &'a Tensor,
    /// As `cosines`.
    pub(super) sines: &'a Tensor,
    /// Norm of each head's queries or keys (Qwen3), in f32.
    pub(super) norm: Option<&'a Tensor>,
    /// Added under the root of that norm.
    pub(super) epsilon: f32,
    pub(super) indices: &'a DeviceStep,
}

/// One chunk's place in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChunkSpan {
    /// Index of its first token in the step.
    pub(super) first: usize,
    pub(super) tokens: usize,
    /// Position of its first token.
    pub(super) from: usize,
    /// Start of its block table among the tables.
    pub(super) table: usize,
}

/// The indices of a step, section after section.
#[derive(Debug)]
pub(super) struct Step {
    words: Vec<u32>,
    pub(super) spans: Vec<ChunkSpan>,
    pub(super) sections: Sections,
}

/// Where the sections of the array are.
#[derive(Clone, Debug, Default)]
pub(super) struct Sections {
    /// Token ids.
    pub(super) tokens: Range<usize>,
    /// Per token its block times 32 plus its index in the block.
    pub(super) slots: Range<usize>,
    /// Per token its position in the sequence.
    pub(super) positions: Range<usize>,
    /// Rows whose logits are requested.
    pub(super) wanted: Range<usize>,
    /// Four numbers per chunk, as in [`ChunkSpan`].
    pub(super) spans: Range<usize>,
    /// Pairs of a chunk and the first query row of an attention tile.
    pub(super) tasks: Range<usize>,
    /// The chunks' block tables.
    pub(super) tables: Range<usize>,
}

impl Step {
    /// Lays out checked chunks: each table covers its chunk's positions.
    pub(super) fn new(chunks: &[Chunk<'_>], widths: HeadWidths) -> Self {
        let mut step = Self {
            words: Vec::new(),
            spans: spans(chunks),
            sections: Sections::default(),
        };
        let placed = || chunks.iter().flat_map(positions);
        step.sections.tokens =
            step.add(chunks.iter().flat_map(|chunk| chunk.tokens.iter().copied()));
        step.sections.slots = step.add(placed().map(|(chunk, position)| {
            let block = chunk.blocks[position / BLOCK_TOKENS].0;
            block * BLOCK_TOKENS as u32 + (position % BLOCK_TOKENS) as u32
        }));
        step.sections.positions = step.add(placed().map(|(_, position)| position as u32));
        let wanted = wanted(chunks, &step.spans);
        step.sections.wanted = step.add(wanted.into_iter().map(|row| row as u32));
        let spans = step.spans.clone();
        step.sections.spans = step.add(spans.iter().flat_map(|span| {
            [span.first, span.tokens, span.from, span.table].map(|number| number as u32)
        }));
        step.sections.tasks = step.add(spans.iter().enumerate().flat_map(|(at, span)| {
            let rows = (0..span.tokens * widths.group()).step_by(widths.tile_rows());
            rows.flat_map(move |row| [at as u32, row as u32])
        }));
        step.sections.tables = step.add(
            chunks
                .iter()
                .flat_map(|chunk| chunk.blocks.iter().map(|block| block.0)),
        );
        step
    }

    fn add(&mut self, words: impl Iterator<Item = u32>) -> Range<usize> {
        let from = self.words.len();
        self.words.extend(words);
        from..self.words.len()
    }

    /// The words of a section.
    pub(super) fn words(&self, section: &Range<usize>) -> &[u32] {
        &self.words[section.clone()]
    }

    /// Uploads the whole array.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn upload(&self, device: &Device) -> Result<Tensor> {
        Tensor::from_slice(&self.words, self.words.len(), device)
    }
}

fn spans(chunks: &[Chunk<'_>]) -> Vec<ChunkSpan> {
    let (mut first, mut table) = (0, 0);
    chunks
        .iter()
        .map(|chunk| {
            let span = ChunkSpan {
                first,
                tokens: chunk.tokens.len(),
                from: chunk.from,
                table,
            };
            first += chunk.tokens.len();
            table += chunk.blocks.len();
            span
        })
        .collect()
}

fn positions<'a, 'b>(chunk: &'a Chunk<'b>) -> impl Iterator<Item = (&'a Chunk<'b>, usize)> {
    chunk.positions().map(move |position| (chunk, position))
}

fn wanted(chunks: &[Chunk<'_>], spans: &[ChunkSpan]) -> Vec<usize> {
    let rows = chunks.iter().zip(spans).map(|(chunk, span)| {
        let end = span.first + span.tokens;
        match chunk.rows {
            LogitRows::None => end..end,
            LogitRows::Last => end - 1..end,
            LogitRows::All => span.first..end,
        }
    });
    rows.flatten().collect()
}

#[cfg(test)]
mod tests {
    use crate::batching::BlockId;
    use crate::engine::local::gpu::step::*;

    /// A prompt's second chunk and a decoding sequence, with every index written out.
    #[test]
    fn lays_out_what_the_kernels_read() {
        let widths = HeadWidths {
            heads: 6,
            kv_heads: 2,
            head: 256,
        };
        let (prompt, decoded) = ([BlockId(7), BlockId(3)], [BlockId(5)]);
        let chunks = [
            Chunk {
                tokens: &[11, 12, 13],
                from: 31,
                blocks: &prompt,
                rows: LogitRows::None,
            },
            Chunk {
                tokens: &[14],
                from: 9,
                blocks: &decoded,
                rows: LogitRows::Last,
            },
        ];
        let step = Step::new(&chunks, widths);
        let sections = &step.sections;
        assert_eq!(step.words(&sections.tokens), [11, 12, 13, 14]);
        assert_eq!(
            step.words(&sections.slots),
            [7 * 32 + 31, 3 * 32, 3 * 32 + 1, 5 * 32 + 9]
        );
        assert_eq!(step.words(&sections.positions), [31, 32, 33, 9]);
        assert_eq!(step.words(&sections.wanted), [3]);
        assert_eq!(step.words(&sections.spans), [0, 3, 31, 0, 3, 1, 9, 2]);
        // Nine query rows of three heads in tiles of four, then three rows of one token.
        assert_eq!(step.words(&sections.tasks), [0, 0, 0, 4, 0, 8, 1, 0]);
        assert_eq!(step.words(&sections.tables), [7, 3, 5]);
    }
}
