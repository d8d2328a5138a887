//! The paged KV cache: one arena of blocks for each layer, shared by all sequences.
//!
//! Which sequence uses which block is the scheduler's business; here a block is a place. Keys and
//! values of 32 positions lie as panels, so that attention runs at the speed of the products.

use half::bf16;

use crate::batching::{BLOCK_TOKENS, BlockId};

use super::kernels::{Aligned, PANEL, Panel, Precision, lane};

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

    /// Numbers of one head's part of a block: `[head][position]` keys, then for each panel
    /// `[position][value]` values.
    fn part(self) -> usize {
        BLOCK_TOKENS * (self.head + self.value_panels() * PANEL)
    }

    /// Numbers of a block of all KV heads.
    fn block(self) -> usize {
        self.kv_heads * self.part()
    }

    /// Bytes that a block takes in one layer, beside products of that precision.
    pub(super) fn bytes_per_block(self, precision: Precision) -> usize {
        let bytes = match precision {
            Precision::F32 => size_of::<f32>(),
            Precision::Bf16 | Precision::Q8 => size_of::<bf16>(),
        };
        self.block() * bytes
    }
}

/// Keys and values, per layer: blocks of `[kv_head][keys, then values]`.
///
/// Where products round their inputs, keys and values are rounded to bf16, which is finer than q8
/// and as fine as the products otherwise: with many sequences a step reads more of them than weights.
#[derive(Clone, Debug)]
pub(super) struct KvArena {
    layers: Layers,
    heads: Heads,
}

#[derive(Clone, Debug)]
enum Layers {
    F32(Vec<Aligned<f32>>),
    Bf16(Vec<Aligned<u16>>),
}

/// One position's keys and values, `[kv_head][head]` each.
struct Position<'a> {
    slot: usize,
    keys: &'a [f32],
    values: &'a [f32],
}

impl Position<'_> {
    /// Writes them to a block of numbers made by `number`, where those of a panel lie as `lane` says.
    fn write<T: Copy + Default>(
        &self,
        heads: Heads,
        block: &mut [T],
        number: impl Fn(f32) -> T,
        lane: impl Fn(usize) -> usize,
    ) {
        if self.slot == 0 {
            // Positions to come are read and weigh nothing, so they must hold numbers; what an
            // earlier sequence left may be none.
            block.fill(T::default());
        }
        let parts = block.chunks_exact_mut(heads.part());
        let keys = self.keys.chunks_exact(heads.head);
        let values = self.values.chunks_exact(heads.head);
        for ((part, key), value) in parts.zip(keys).zip(values) {
            let (key_part, value_part) = part.split_at_mut(heads.head * BLOCK_TOKENS);
            let lanes = key_part.iter_mut().skip(lane(self.slot));
            for (to, key) in lanes.step_by(BLOCK_TOKENS).zip(key) {
                *to = number(*key);
            }
            let panels = value_part.chunks_exact_mut(BLOCK_TOKENS * PANEL);
            for (panel, values) in panels.zip(value.chunks(PANEL)) {
                for (at, value) in values.iter().enumerate() {
                    panel[self.slot * PANEL + lane(at)] = number(*value);
                }
            }
        }
    }
}

impl KvArena {
    /// An arena of so many blocks, beside products of that precision. Memory is taken from the
    /// system as blocks are written first.
    pub(super) fn new(layers: usize, heads: Heads, precision: Precision, blocks: usize) -> Self {
        let numbers = blocks * heads.block();
        Self {
            layers: match precision {
                Precision::F32 => {
                    Layers::F32((0..layers).map(|_| Aligned::zeros(numbers)).collect())
                }
                Precision::Bf16 | Precision::Q8 => {
                    Layers::Bf16((0..layers).map(|_| Aligned::zeros(numbers)).collect())
                }
            },
            heads,
        }
    }

    /// Blocks of a layer.
    pub(super) fn blocks(&self) -> usize {
        let numbers = match &self.layers {
            Layers::F32(layers) => layers.first().map(|layer| layer.len()),
            Layers::Bf16(layers) => layers.first().map(|layer| layer.len()),
        };
        numbers.unwrap_or(0) / self.heads.block()
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
        let place = block.index() * heads.block()..(block.index() + 1) * heads.block();
        let position = Position { slot, keys, values };
        match &mut self.layers {
            Layers::F32(layers) => {
                position.write(heads, &mut layers[layer][place], |value| value, |at| at);
            }
            Layers::Bf16(layers) => {
                let short = |value| bf16::from_f32(value).to_bits();
                position.write(heads, &mut layers[layer][place], short, lane);
            }
        }
    }

    /// The keys of one head in a block: a panel of `head` inputs.
    pub(super) fn keys(&self, layer: usize, block: BlockId, kv_head: usize) -> Panel<'_> {
        let from = block.index() * self.heads.block() + kv_head * self.heads.part();
        self.panel(layer, from, self.heads.head)
    }

    /// One panel of the values of one head in a block: a panel of 32 inputs.
    pub(super) fn values(
        &self,
        layer: usize,
        block: BlockId,
        kv_head: usize,
        panel: usize,
    ) -> Panel<'_> {
        let from = block.index() * self.heads.block() + kv_head * self.heads.part();
        let values = from + BLOCK_TOKENS * (self.heads.head + panel * PANEL);
        self.panel(layer, values, BLOCK_TOKENS)
    }

    fn panel(&self, layer: usize, from: usize, inputs: usize) -> Panel<'_> {
        let place = from..from + inputs * PANEL;
        match &self.layers {
            Layers::F32(layers) => Panel::F32(&layers[layer][place]),
            Layers::Bf16(layers) => Panel::Bf16(&layers[layer][place]),
        }
    }
}
