//! The paged KV cache: one arena of blocks for each layer, shared by all sequences.
//!
//! Which sequence uses which block is the scheduler's business; here a block is a place. Keys and
//! values of 32 positions lie as panels, so that attention runs at the speed of the products.

use super::kernels::{Aligned, PANEL};
use crate::batching::{BLOCK_TOKENS, BlockId};

// A panel of keys is a block of positions.
const _: () = assert!(BLOCK_TOKENS == PANEL);

/// Widths of one attention layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head: usize,
}

impl Heads {
    /// Panels that the values of one head fill.
    pub(super) fn value_panels(self) -> usize {
        self.head.div_ceil(PANEL)
    }

    /// Floats of one head's part of a block: `[head][position]` keys, then for each panel
    /// `[position][value]` values.
    fn part(self) -> usize {
        BLOCK_TOKENS * (self.head + self.value_panels() * PANEL)
    }

    /// Floats of a block of all KV heads.
    fn block(self) -> usize {
        self.kv_heads * self.part()
    }

    /// Bytes that a block takes in one layer.
    pub(super) fn bytes_per_block(self) -> usize {
        self.block() * size_of::<f32>()
    }
}

/// Keys and values, per layer: blocks of `[kv_head][keys, then values]`.
#[derive(Clone, Debug)]
pub(super) struct KvArena {
    layers: Vec<Aligned<f32>>,
    heads: Heads,
}

impl KvArena {
    /// An arena of so many blocks. Memory is taken from the system as blocks are written first.
    pub(super) fn new(layers: usize, heads: Heads, blocks: usize) -> Self {
        let floats = blocks * heads.block();
        Self {
            layers: (0..layers).map(|_| Aligned::zeros(floats)).collect(),
            heads,
        }
    }

    /// Blocks of a layer.
    pub(super) fn blocks(&self) -> usize {
        self.layers
            .first()
            .map_or(0, |layer| layer.len() / self.heads.block())
    }

    /// Writes the keys and values, `[kv_head][head]` each, of a position.
    pub(super) fn write(
        &mut self,
        layer: usize,
        (block, slot): (BlockId, usize),
        keys: &[f32],
        values: &[f32],
    ) {
        let heads = self.heads;
        let block = &mut self.layers[layer][block.index() * heads.block()..][..heads.block()];
        if slot == 0 {
            // Positions to come are read and weigh nothing, so they must hold numbers; what an
            // earlier sequence left may be none.
            block.fill(0.0);
        }
        let parts = block.chunks_exact_mut(heads.part());
        let keys = keys.chunks_exact(heads.head);
        let values = values.chunks_exact(heads.head);
        for ((part, key), value) in parts.zip(keys).zip(values) {
            let (key_part, value_part) = part.split_at_mut(heads.head * BLOCK_TOKENS);
            let slots = key_part.iter_mut().skip(slot).step_by(BLOCK_TOKENS);
            for (to, key) in slots.zip(key) {
                *to = *key;
            }
            let panels = value_part.chunks_exact_mut(BLOCK_TOKENS * PANEL);
            for (panel, value) in panels.zip(value.chunks(PANEL)) {
                panel[slot * PANEL..][..value.len()].copy_from_slice(value);
            }
        }
    }

    /// Keys and values of one head in a block.
    pub(super) fn part(&self, layer: usize, block: BlockId, kv_head: usize) -> (&[f32], &[f32]) {
        let from = block.index() * self.heads.block() + kv_head * self.heads.part();
        let part = &self.layers[layer][from..][..self.heads.part()];
        part.split_at(self.heads.head * BLOCK_TOKENS)
    }
}
