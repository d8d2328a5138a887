//! The paged KV cache: one arena of blocks per layer, shared by all sequences.
//!
//! The scheduler assigns blocks to sequences. Keys and values of 32 positions are stored as panels,
//! so that attention uses the same kernels as the linear layers.

use half::bf16;

use crate::{
    batching::{BLOCK_TOKENS, BlockId},
    engine::local::shape::HeadWidths,
};

use super::kernels::{Aligned, PANEL, Panel, Precision, lane};

// A panel of keys holds one block of positions.
const _: () = assert!(BLOCK_TOKENS == PANEL);

impl HeadWidths {
    /// Panels that hold the values of one head.
    pub(super) fn value_panels(self) -> usize {
        self.head.div_ceil(PANEL)
    }

    /// Numbers per head in a block: keys as `[head][position]`, then per panel the values as
    /// `[position][value]`.
    fn part(self) -> usize {
        BLOCK_TOKENS * (self.head + self.value_panels() * PANEL)
    }

    /// Numbers per block, over all KV heads.
    fn block(self) -> usize {
        self.kv_heads * self.part()
    }

    /// Bytes of a block in one layer, for products of this precision.
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
/// For rounded products, keys and values are stored in bf16: as precise as bf16 products and more
/// than q8. With many sequences, a step reads more of them than of the weights.
#[derive(Clone, Debug)]
pub(super) struct KvArena {
    layers: Layers,
    heads: HeadWidths,
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
    /// Writes them to a block. `number` converts a value; `lane` maps its index to that in a panel.
    fn write<T: Copy + Default>(
        &self,
        heads: HeadWidths,
        block: &mut [T],
        number: impl Fn(f32) -> T,
        lane: impl Fn(usize) -> usize,
    ) {
        if self.slot == 0 {
            // Positions not written yet are read with weight 0, so they must hold finite numbers; an
            // earlier sequence may have left NaN.
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
    /// An arena of so many blocks for products of this precision. The system allocates memory when a
    /// block is first written.
    pub(super) fn new(
        layers: usize,
        heads: HeadWidths,
        precision: Precision,
        blocks: usize,
    ) -> Self {
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

    /// Blocks per layer.
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

    /// The keys of one head in a block: a panel with `head` inputs.
    pub(super) fn keys(&self, layer: usize, block: BlockId, kv_head: usize) -> Panel<'_> {
        let from = block.index() * self.heads.block() + kv_head * self.heads.part();
        self.panel(layer, from, self.heads.head)
    }

    /// One panel of a head's values in a block, with 32 inputs.
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
