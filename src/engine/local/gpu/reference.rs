//! The kernels of `paged.cu` in plain Rust: used where no kernel runs, and as the reference in tests.

use half::bf16;

use crate::{batching::BLOCK_TOKENS, engine::local::shape::HeadWidths};

use super::step::ChunkSpan;

/// Element type of tensors.
pub(super) trait Element: Copy + Default {
    fn widen(self) -> f32;
    fn narrow(value: f32) -> Self;
}

impl Element for f32 {
    fn widen(self) -> f32 {
        self
    }

    fn narrow(value: f32) -> Self {
        value
    }
}

impl Element for bf16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }

    fn narrow(value: f32) -> Self {
        Self::from_f32(value)
    }
}

/// Rotates a head's values to their position.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadRotation<'a> {
    /// `[position][head / 2]`.
    pub(super) cosines: &'a [f32],
    /// `[position][head / 2]`.
    pub(super) sines: &'a [f32],
    /// Qwen3's norm before the rotation, `[head]`.
    pub(super) norm: Option<&'a [f32]>,
    pub(super) epsilon: f32,
}

impl HeadRotation<'_> {
    fn apply<E: Element>(&self, head: &[E], position: usize, factor: f32) -> Vec<f32> {
        let mut values: Vec<f32> = head.iter().map(|value| value.widen()).collect();
        let mut scale = factor;
        if let Some(norm) = self.norm {
            let squares: f32 = values.iter().map(|value| value * value).sum();
            scale /= (squares / values.len() as f32 + self.epsilon).sqrt();
            values
                .iter_mut()
                .zip(norm)
                .for_each(|(value, norm)| *value *= norm);
        }
        let half = values.len() / 2;
        let (first, second) = values.split_at_mut(half);
        for (pair, (first, second)) in first.iter_mut().zip(second).enumerate() {
            let (cosine, sine) = (
                self.cosines[position * half + pair] * scale,
                self.sines[position * half + pair] * scale,
            );
            (*first, *second) = (
                *first * cosine - *second * sine,
                *second * cosine + *first * sine,
            );
        }
        values
    }
}

/// Writes the keys and values of a step's tokens into their blocks.
///
/// `qkv` is `[token][heads, then kv_heads of keys, then of values][head]`, the arena
/// `[block][keys, values][kv_head][position in the block][head]`.
pub(super) fn write_kv<E: Element>(
    widths: HeadWidths,
    rotation: HeadRotation<'_>,
    (slots, positions): (&[u32], &[u32]),
    qkv: &[E],
    arena: &mut [E],
) {
    let HeadWidths {
        heads,
        kv_heads,
        head,
    } = widths;
    for ((row, slot), position) in qkv.chunks_exact(widths.row()).zip(slots).zip(positions) {
        let (_, keys_and_values) = row.split_at(heads * head);
        let (keys, values) = keys_and_values.split_at(kv_heads * head);
        for kv_head in 0..kv_heads {
            let own = kv_head * head..(kv_head + 1) * head;
            let rotated = rotation.apply(&keys[own.clone()], *position as usize, 1.0);
            let to = widths.kv_offset(*slot as usize, KvHalf::Keys, kv_head);
            for (to, key) in arena[to..to + head].iter_mut().zip(rotated) {
                *to = E::narrow(key);
            }
            let to = widths.kv_offset(*slot as usize, KvHalf::Values, kv_head);
            arena[to..to + head].copy_from_slice(&values[own]);
        }
    }
}

/// Selects the keys or the values of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KvHalf {
    Keys,
    Values,
}

impl HeadWidths {
    /// Offset in the arena of one head's values in a slot.
    fn kv_offset(self, slot: usize, half: KvHalf, kv_head: usize) -> usize {
        let block = (slot / BLOCK_TOKENS * 2 + half as usize) * self.kv_heads + kv_head;
        (block * BLOCK_TOKENS + slot % BLOCK_TOKENS) * self.head
    }
}

/// Softmax attention of each query over the positions visible to it; returns `[token][heads][head]`.
///
/// `window` is in tokens, the current one included; 0 is unlimited.
pub(super) fn attend<E: Element>(
    widths: HeadWidths,
    rotation: HeadRotation<'_>,
    window: usize,
    (spans, tables): (&[ChunkSpan], &[u32]),
    qkv: &[E],
    arena: &[E],
) -> Vec<E> {
    let head = widths.head;
    let scale = 1.0 / (head as f32).sqrt();
    let mut output = Vec::new();
    for span in spans {
        let table = &tables[span.table..];
        let slot = |position: usize| {
            table[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS
        };
        let rows = qkv.chunks_exact(widths.row()).skip(span.first);
        for (row, position) in rows.zip(span.from..span.from + span.tokens) {
            let first = match window {
                0 => 0,
                window => (position + 1).saturating_sub(window),
            };
            for at in 0..widths.heads {
                let kv_head = at / widths.group();
                let query = rotation.apply(&row[at * head..(at + 1) * head], position, scale);
                let scores: Vec<f32> = (first..=position)
                    .map(|seen| {
                        let key = widths.kv_offset(slot(seen), KvHalf::Keys, kv_head);
                        let pairs = query.iter().zip(&arena[key..key + head]);
                        pairs.map(|(query, key)| query * key.widen()).sum()
                    })
                    .collect();
                let peak = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let (mut sum, mut result) = (0.0, vec![0.0; head]);
                for (seen, score) in (first..=position).zip(scores) {
                    let weight = (score - peak).exp();
                    sum += weight;
                    let value = widths.kv_offset(slot(seen), KvHalf::Values, kv_head);
                    for (to, value) in result.iter_mut().zip(&arena[value..value + head]) {
                        *to += weight * value.widen();
                    }
                }
                output.extend(result.into_iter().map(|value| E::narrow(value / sum)));
            }
        }
    }
    output
}

/// SwiGLU: `[row][gates, then ups]` to `[row][width]`.
pub(super) fn swiglu<E: Element>(width: usize, gate_up: &[E]) -> Vec<E> {
    let rows = gate_up.chunks_exact(2 * width);
    rows.flat_map(|row| {
        let (gates, ups) = row.split_at(width);
        gates.iter().zip(ups).map(|(gate, up)| {
            let gate = gate.widen();
            E::narrow(gate / (1.0 + (-gate).exp()) * up.widen())
        })
    })
    .collect()
}
