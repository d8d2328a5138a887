//! Attention of each sequence over its blocks of the KV cache, on the CPU.
//!
//! Scores are queries times a panel of keys; outputs are weights times panels of values. A row's
//! result depends only on its query and on the keys and values up to its position, summed in the
//! order of positions: the batch and the chunking of a prompt change no bit.

use crate::{
    batching::{BLOCK_TOKENS, BlockId},
    engine::local::shape::HeadWidths,
};

use super::{
    arena::KvArena,
    kernels::{
        InputRows, Isa, PANEL, SharedColumns, Softmax, is_worth_sharing, multiply, share,
        softmax_block,
    },
};

/// Query positions per task.
const TILE: usize = 16;

/// Queries at consecutive positions of one sequence, with its blocks.
pub(super) struct Queries<'a> {
    /// `[row][heads * head]`, with any stride between rows.
    pub(super) rows: &'a [f32],
    pub(super) row_stride: usize,
    /// The sequence's block table.
    pub(super) blocks: &'a [BlockId],
    /// Position of the first row.
    pub(super) first: usize,
    /// Sliding window in tokens, the current one included; `None` is unlimited.
    pub(super) window: Option<usize>,
}

impl Queries<'_> {
    fn count(&self) -> usize {
        self.rows.len() / self.row_stride
    }

    /// The positions visible to the query at `position`.
    fn seen(&self, position: usize) -> std::ops::Range<usize> {
        let window = self.window.unwrap_or(position + 1);
        (position + 1).saturating_sub(window)..position + 1
    }
}

/// One layer's keys and values.
#[derive(Clone, Copy)]
pub(super) struct LayerCache<'a> {
    pub(super) arena: &'a KvArena,
    pub(super) layer: usize,
}

/// Some rows of one sequence for one KV head.
struct AttentionTask<'a> {
    queries: &'a Queries<'a>,
    rows: std::ops::Range<usize>,
    kv_head: usize,
    /// Output row of the first of the rows.
    to: usize,
}

/// Buffers of one thread.
#[derive(Default)]
struct TaskScratch {
    queries: Vec<f32>,
    scores: Vec<[f32; PANEL]>,
    softmax: Vec<Softmax>,
    /// `[panel of values][query]`.
    sums: Vec<[f32; PANEL]>,
}

/// Writes `[row][heads * head]`, the rows of all sequences in order.
pub(super) fn attend(
    isa: Isa,
    heads: HeadWidths,
    cache: LayerCache<'_>,
    sequences: &[Queries<'_>],
    output: &mut [f32],
) {
    let mut tasks = Vec::new();
    let (mut to, mut multiplications) = (0, 0);
    for queries in sequences {
        let count = queries.count();
        multiplications += count * (queries.first + count) * heads.heads * heads.head;
        for from in (0..count).step_by(TILE) {
            let rows = from..count.min(from + TILE);
            tasks.extend((0..heads.kv_heads).map(|kv_head| AttentionTask {
                queries,
                rows: rows.clone(),
                kv_head,
                to: to + from,
            }));
        }
        to += count;
    }
    let columns = SharedColumns::new(output, heads.heads * heads.head);
    let work = |scratch: &mut TaskScratch, task: &AttentionTask<'_>| {
        run(isa, heads, cache, task, scratch, &columns)
    };
    if is_worth_sharing(multiplications) {
        share(tasks.len(), TaskScratch::default, |scratch, at| {
            work(scratch, &tasks[at])
        });
    } else {
        let mut scratch = TaskScratch::default();
        tasks.iter().for_each(|task| work(&mut scratch, task));
    }
}

fn run(
    isa: Isa,
    heads: HeadWidths,
    cache: LayerCache<'_>,
    task: &AttentionTask<'_>,
    scratch: &mut TaskScratch,
    output: &SharedColumns<'_>,
) {
    let (queries, head) = (task.queries, heads.head);
    let group = heads.group();
    let count = task.rows.len() * group;
    let scale = 1.0 / (head as f32).sqrt();
    scratch.queries.clear();
    for row in task.rows.clone() {
        let heads_of_row = row * queries.row_stride + task.kv_head * group * head;
        let values = &queries.rows[heads_of_row..][..group * head];
        scratch
            .queries
            .extend(values.iter().map(|value| value * scale));
    }
    scratch.softmax.clear();
    scratch.softmax.resize(count, Softmax::default());
    scratch.sums.clear();
    scratch
        .sums
        .resize(count * heads.value_panels(), [0.0; PANEL]);
    let positions = queries.first + task.rows.start..queries.first + task.rows.end;
    let first_block = queries.seen(positions.start).start / BLOCK_TOKENS;
    for block in first_block..positions.end.div_ceil(BLOCK_TOKENS) {
        let place = queries.blocks[block];
        let keys = cache.arena.keys(cache.layer, place, task.kv_head);
        scratch.scores.clear();
        scratch.scores.resize(count, [0.0; PANEL]);
        let rows = InputRows::F32(&scratch.queries);
        multiply(isa, keys, rows, head, &mut scratch.scores);
        for (query, scores) in scratch.scores.iter_mut().enumerate() {
            let seen = queries.seen(positions.start + query / group);
            hide(scores, block * BLOCK_TOKENS, &seen);
            let shrink = softmax_block(isa, &mut scratch.softmax[query], scores);
            if shrink != 1.0 {
                for sums in scratch.sums.iter_mut().skip(query).step_by(count) {
                    sums.iter_mut().for_each(|sum| *sum *= shrink);
                }
            }
        }
        let weights = InputRows::F32(scratch.scores.as_flattened());
        for (panel, sums) in scratch.sums.chunks_exact_mut(count).enumerate() {
            let values = cache.arena.values(cache.layer, place, task.kv_head, panel);
            multiply(isa, values, weights, BLOCK_TOKENS, sums);
        }
    }
    for (at, sums) in scratch.sums.iter_mut().enumerate() {
        let (panel, query) = (at / count, at % count);
        let sum = scratch.softmax[query].sum;
        sums.iter_mut().for_each(|value| *value /= sum);
        let column = (task.kv_head * group + query % group) * head + panel * PANEL;
        let width = PANEL.min(head - panel * PANEL);
        output.write(task.to + query / group, column, &sums[..width]);
    }
}

/// Sets the scores of positions that a row must not see to minus infinity.
fn hide(scores: &mut [f32; PANEL], first: usize, seen: &std::ops::Range<usize>) {
    let from = seen.start.saturating_sub(first).min(PANEL);
    let to = seen.end.saturating_sub(first).min(PANEL);
    scores[..from].fill(f32::NEG_INFINITY);
    scores[to.max(from)..].fill(f32::NEG_INFINITY);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::engine::local::cpu::attention::*;
    use crate::engine::local::cpu::kernels::Precision;

    /// Softmax attention by definition, in f64.
    fn reference(
        heads: HeadWidths,
        queries: &[Vec<f32>],
        keys: &[Vec<f32>],
        values: &[Vec<f32>],
        first: usize,
        window: Option<usize>,
    ) -> Vec<f64> {
        let group = heads.group();
        let mut output = Vec::new();
        for (row, query) in queries.iter().enumerate() {
            let position = first + row;
            let start = window.map_or(0, |window| (position + 1).saturating_sub(window));
            for head in 0..heads.heads {
                let query = &query[head * heads.head..][..heads.head];
                let at = head / group * heads.head;
                let scores: Vec<f64> = (start..=position)
                    .map(|p| {
                        let key = &keys[p][at..][..heads.head];
                        let dot = query
                            .iter()
                            .zip(key)
                            .map(|(q, k)| f64::from(*q) * f64::from(*k));
                        (dot.sum::<f64>() / (heads.head as f64).sqrt()).exp()
                    })
                    .collect();
                let sum: f64 = scores.iter().sum();
                output.extend((0..heads.head).map(|value| {
                    let weighted = (start..=position).zip(&scores);
                    let sum_of_values = weighted.map(|(p, s)| s * f64::from(values[p][at + value]));
                    sum_of_values.sum::<f64>() / sum
                }));
            }
        }
        output
    }

    fn rows(count: usize, width: usize, seed: usize) -> Vec<Vec<f32>> {
        let value = |at: usize| ((at * 7_919 + seed * 104_729) % 2_003) as f32 / 500.0 - 2.0;
        (0..count)
            .map(|row| {
                (0..width)
                    .map(|column| value(row * width + column))
                    .collect()
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn matches_softmax_attention_and_chunking_changes_no_bit(
            (kv_heads, group) in (1usize..4, 1usize..4),
            head in prop::sample::select(vec![4usize, 8, 32, 40, 64]),
            tokens in 1usize..100,
            cut in 0.0f64..1.0,
            window in prop::option::of(1usize..50),
            seed in 0usize..1_000,
        ) {
            let heads = HeadWidths { heads: kv_heads * group, kv_heads, head };
            let width = heads.heads * head;
            let queries = rows(tokens, width, seed);
            let keys = rows(tokens, kv_heads * head, seed + 1);
            let values = rows(tokens, kv_heads * head, seed + 2);
            let rounded = |rows: &[Vec<f32>]| -> Vec<Vec<f32>> {
                let round = |value: &f32| half::bf16::from_f32(*value).to_f32();
                rows.iter().map(|row| row.iter().map(round).collect()).collect()
            };
            let kinds = Isa::available()
                .into_iter()
                .flat_map(|isa| [(isa, Precision::F32), (isa, Precision::Bf16)]);
            for (isa, precision) in kinds {
                let expected = match precision {
                    Precision::F32 => reference(heads, &queries, &keys, &values, 0, window),
                    _ => reference(heads, &queries, &rounded(&keys), &rounded(&values), 0, window),
                };
                let mut results = Vec::new();
                for cut in [0, (cut * tokens as f64) as usize] {
                    // Blocks are scattered, and an earlier user left NaN in them.
                    let count = tokens.div_ceil(BLOCK_TOKENS);
                    let blocks: Vec<BlockId> = (0..count).rev().map(|at| BlockId(2 * at as u32)).collect();
                    let mut arena = KvArena::new(1, heads, precision, 2 * count);
                    for block in 0..2 * count as u32 {
                        let rubbish = vec![f32::NAN; kv_heads * head];
                        for slot in 0..BLOCK_TOKENS {
                            arena.write(0, (BlockId(block), slot), &rubbish, &rubbish);
                        }
                    }
                    let mut output = Vec::new();
                    for part in [0..cut, cut..tokens].into_iter().filter(|part| !part.is_empty()) {
                        for p in part.clone() {
                            let place = (blocks[p / BLOCK_TOKENS], p % BLOCK_TOKENS);
                            arena.write(0, place, &keys[p], &values[p]);
                        }
                        let rows = queries[part.clone()].concat();
                        let mut to = vec![0.0; rows.len()];
                        let queries = Queries {
                            rows: &rows,
                            row_stride: width,
                            blocks: &blocks,
                            first: part.start,
                            window,
                        };
                        attend(isa, heads, LayerCache { arena: &arena, layer: 0 }, &[queries], &mut to);
                        output.extend(to);
                    }
                    results.push(output);
                }
                prop_assert_eq!(&results[0], &results[1], "chunking changed bits on {:?}", isa);
                for (found, expected) in results[0].iter().zip(&expected) {
                    prop_assert!((f64::from(*found) - expected).abs() < 1e-5);
                }
            }
        }
    }
}
