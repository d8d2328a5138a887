//! Attention of each sequence over its own KV cache, on the CPU.
//!
//! A row's result depends on its query and on the keys and values before it, added up in the order
//! of their positions: neither other sequences nor the way a prompt was cut into chunks changes a bit.

use rayon::prelude::*;

/// Keys and values of one sequence, per layer, position after position.
#[derive(Clone, Debug)]
pub struct KvCache {
    /// Per layer: `[position][kv_head][head]`.
    pub(super) keys: Vec<Vec<f32>>,
    pub(super) values: Vec<Vec<f32>>,
    pub(super) tokens: usize,
}

impl KvCache {
    /// An empty cache with room for some tokens; it grows beyond them where needed.
    pub(super) fn new(layers: usize, token_width: usize, tokens: usize) -> Self {
        let empty = || {
            (0..layers)
                .map(|_| Vec::with_capacity(tokens * token_width))
                .collect()
        };
        Self {
            keys: empty(),
            values: empty(),
            tokens: 0,
        }
    }

    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.tokens
    }

    /// True before the first step.
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }
}

/// Widths of one attention layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head: usize,
}

/// Queries of consecutive positions of one sequence, with its keys and values.
pub(super) struct Queries<'a> {
    /// `[row][heads * head]`, with any stride between rows.
    pub(super) rows: &'a [f32],
    pub(super) row_stride: usize,
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
    /// Position of the first row.
    pub(super) first: usize,
    /// Tokens looked back on, the current one included; `None` is all.
    pub(super) window: Option<usize>,
}

/// Writes `[row][heads * head]`.
pub(super) fn attend(heads: Heads, queries: &Queries<'_>, output: &mut [f32]) {
    let group = heads.heads / heads.kv_heads;
    let part = group * heads.head;
    output
        .par_chunks_mut(part)
        .enumerate()
        .for_each_init(Vec::new, |scores, (at, output)| {
            let (row, kv_head) = (at / heads.kv_heads, at % heads.kv_heads);
            let position = queries.first + row;
            let start = queries
                .window
                .map_or(0, |window| (position + 1).saturating_sub(window));
            let query = &queries.rows[row * queries.row_stride + kv_head * part..][..part];
            for (query, output) in query
                .chunks_exact(heads.head)
                .zip(output.chunks_exact_mut(heads.head))
            {
                let span = Span {
                    stride: heads.kv_heads * heads.head,
                    offset: kv_head * heads.head,
                    positions: start..position + 1,
                };
                attend_one(query, queries.keys, queries.values, &span, scores, output);
            }
        });
}

/// The positions that one query sees, and where their values lie.
struct Span {
    stride: usize,
    offset: usize,
    positions: std::ops::Range<usize>,
}

impl Span {
    fn rows<'a>(&self, tensor: &'a [f32], head: usize) -> impl Iterator<Item = &'a [f32]> {
        let (stride, offset) = (self.stride, self.offset);
        self.positions
            .clone()
            .map(move |position| &tensor[position * stride + offset..][..head])
    }
}

fn attend_one(
    query: &[f32],
    keys: &[f32],
    values: &[f32],
    span: &Span,
    scores: &mut Vec<f32>,
    output: &mut [f32],
) {
    let scale = 1.0 / (query.len() as f32).sqrt();
    scores.clear();
    scores.extend(
        span.rows(keys, query.len())
            .map(|key| dot(query, key) * scale),
    );
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    output.fill(0.0);
    for (score, value) in scores.iter().zip(span.rows(values, query.len())) {
        let weight = (score - highest).exp();
        sum += weight;
        for (output, value) in output.iter_mut().zip(value) {
            *output += weight * value;
        }
    }
    for output in output {
        *output /= sum;
    }
}

/// Eight partial sums, so that the compiler can keep them in one register.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 8;
    let mut sums = [0.0f32; LANES];
    let (a_lanes, b_lanes) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = a_lanes
        .remainder()
        .iter()
        .zip(b_lanes.remainder())
        .map(|(a, b)| a * b)
        .sum();
    for (a, b) in a_lanes.zip(b_lanes) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + tail
}
