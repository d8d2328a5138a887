//! The paged KV cache: one arena of blocks for each layer, shared by all sequences.
//!
//! Which sequence uses which block is the scheduler's business; here a block is a place. Keys and
//! values of 32 positions lie as panels, so that attention runs at the speed of the products.

use half::bf16;

use super::kernels::{Aligned, PANEL, Panel};
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

    /// Numbers of one head's part of a block: `[head][position]` keys, then for each panel
    /// `[position][value]` values.
    fn part(self) -> usize {
        BLOCK_TOKENS * (self.head + self.value_panels() * PANEL)
    }

    /// Numbers of a block of all KV heads.
    fn block(self) -> usize {
        self.kv_heads * self.part()
    }

    /// Bytes that a block takes in one layer.
    pub(super) fn bytes_per_block(self, kind: KvKind) -> usize {
        let bytes = match kind {
            KvKind::F32 => size_of::<f32>(),
            KvKind::Bf16 => size_of::<u16>(),
        };
        self.block() * bytes
    }
}

/// What keys and values are kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KvKind {
    /// As they were computed.
    F32,
    /// Rounded: attention over many sequences is bound by reading them.
    Bf16,
}

/// Keys and values, per layer: blocks of `[kv_head][keys, then values]`.
#[derive(Clone, Debug)]
pub(super) struct KvArena {
    layers: Layers,
    heads: Heads,
    blocks: usize,
}

#[derive(Clone, Debug)]
enum Layers {
    F32(Vec<Aligned<f32>>),
    Bf16(Vec<Aligned<u16>>),
}

impl KvArena {
    /// An arena of so many blocks. Memory is taken from the system as blocks are written first.
    pub(super) fn new(layers: usize, heads: Heads, kind: KvKind, blocks: usize) -> Self {
        let numbers = blocks * heads.block();
        let layers = match kind {
            KvKind::F32 => Layers::F32((0..layers).map(|_| Aligned::zeros(numbers)).collect()),
            KvKind::Bf16 => Layers::Bf16((0..layers).map(|_| Aligned::zeros(numbers)).collect()),
        };
        Self {
            layers,
            heads,
            blocks,
        }
    }

    /// Blocks of a layer.
    pub(super) fn blocks(&self) -> usize {
        self.blocks
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
        let block = block.index() * heads.block()..(block.index() + 1) * heads.block();
        let new = New { slot, keys, values };
        match &mut self.layers {
            Layers::F32(layers) => {
                new.write(heads, &mut layers[layer][block], |value| value, |at| at);
            }
            Layers::Bf16(layers) => {
                let round = |value| bf16::from_f32(value).to_bits();
                // As `Panel::Bf16` lies.
                let place = |at: usize| at % (PANEL / 2) * 2 + at / (PANEL / 2);
                new.write(heads, &mut layers[layer][block], round, place);
            }
        }
    }

    /// The keys of one head in a block.
    pub(super) fn keys(&self, layer: usize, block: BlockId, kv_head: usize) -> Panel<'_> {
        let from = block.index() * self.heads.block() + kv_head * self.heads.part();
        self.panel(layer, from, self.heads.head * BLOCK_TOKENS)
    }

    /// A panel of the values of one head in a block.
    pub(super) fn values(
        &self,
        layer: usize,
        block: BlockId,
        kv_head: usize,
        panel: usize,
    ) -> Panel<'_> {
        let head = block.index() * self.heads.block() + kv_head * self.heads.part();
        let from = head + BLOCK_TOKENS * (self.heads.head + panel * PANEL);
        self.panel(layer, from, BLOCK_TOKENS * PANEL)
    }

    fn panel(&self, layer: usize, from: usize, count: usize) -> Panel<'_> {
        match &self.layers {
            Layers::F32(layers) => Panel::F32(&layers[layer][from..][..count]),
            Layers::Bf16(layers) => Panel::Bf16(&layers[layer][from..][..count]),
        }
    }
}

/// What is written for one position.
struct New<'a> {
    slot: usize,
    keys: &'a [f32],
    values: &'a [f32],
}

impl New<'_> {
    /// Writes into a block; `place` tells where in a row of a panel an output lies.
    fn write<T: Copy + Default>(
        &self,
        heads: Heads,
        block: &mut [T],
        round: impl Fn(f32) -> T,
        place: impl Fn(usize) -> usize,
    ) {
        let slot = self.slot;
        if slot == 0 {
            // Positions to come are read and weigh nothing, so they must hold numbers; what an
            // earlier sequence left may be none.
            block.fill(T::default());
        }
        let parts = block.chunks_exact_mut(heads.part());
        let keys = self.keys.chunks_exact(heads.head);
        let values = self.values.chunks_exact(heads.head);
        for ((part, key), value) in parts.zip(keys).zip(values) {
            let (key_part, value_part) = part.split_at_mut(heads.head * BLOCK_TOKENS);
            let slots = key_part.iter_mut().skip(place(slot)).step_by(BLOCK_TOKENS);
            for (to, key) in slots.zip(key) {
                *to = round(*key);
            }
            let panels = value_part.chunks_exact_mut(BLOCK_TOKENS * PANEL);
            for (panel, value) in panels.zip(value.chunks(PANEL)) {
                let row = &mut panel[slot * PANEL..][..PANEL];
                for (at, value) in value.iter().enumerate() {
                    row[place(at)] = round(*value);
                }
            }
        }
    }
}
