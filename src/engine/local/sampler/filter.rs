//! Temperature, top-k, top-p and min-p, and the draw.
//!
//! Never sorts the whole vocabulary: one pass with a rising threshold finds the few most likely
//! tokens; where a nucleus is larger than that, its end is found in a bucket of similar weights.

use std::cmp::Ordering;

use crate::{
    engine::local::cpu::kernels::{Isa, softmax_sums, softmax_weights},
    job::Sampling,
};

/// Number of tokens searched first for a nucleus; peaked distributions need no more.
const NUCLEUS_FIRST: usize = 128;
/// Buckets for the tokens of a flat distribution; the last takes the rest.
const BUCKETS: usize = 2048;
/// Buckets per factor e in weight.
const BUCKETS_PER_UNIT: f32 = 64.0;
/// Weights summed as a block before a draw looks at them one by one.
const BLOCK: usize = 512;

/// Sampling parameters of one request, applied in transformers' order: temperature, top-k, top-p,
/// min-p.
#[derive(Clone, Copy, Debug)]
pub(super) struct SamplingFilter {
    /// Inverse temperature; finite, so that the most likely token keeps its weight.
    scale: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
}

/// A token with its logit or weight.
type TokenScore<T> = (u32, T);

impl SamplingFilter {
    /// `None` for a greedy request.
    pub(super) fn of(sampling: &Sampling) -> Option<Self> {
        (sampling.temperature > 0.0).then(|| Self {
            scale: sampling.temperature.recip().min(f32::MAX),
            top_k: sampling.top_k as usize,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
        })
    }

    /// Draws a token by weight; `point` is in 0..1, `highest` the highest logit.
    pub(super) fn draw(&self, logits: &[f32], highest: f32, point: f64) -> usize {
        let Some(kept) = self.kept(logits, highest) else {
            let mut weights = vec![0.0; logits.len()];
            softmax_weights(Isa::best(), logits, highest, self.scale, &mut weights);
            return draw_of_all(&weights, point);
        };
        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        let mut point = point * total;
        let drawn = kept.iter().find(|(_, weight)| {
            point -= weight;
            point < 0.0
        });
        // Rounding may leave the point just past the last token.
        drawn
            .or(kept.last())
            .map_or(0, |(token, _)| *token as usize)
    }

    /// The tokens that pass the filter, by ascending id, with weights relative to the most likely;
    /// `None` when all pass.
    pub(super) fn kept(&self, logits: &[f32], highest: f32) -> Option<Vec<TokenScore<f64>>> {
        let mut kept = if (1..logits.len()).contains(&self.top_k) {
            let mut kept = self.weighted(most_likely(logits, self.top_k), highest);
            let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
            if self.top_p < 1.0 {
                let enough = reaching(&kept, total * f64::from(self.top_p));
                kept.truncate(enough.unwrap_or(kept.len()));
            }
            kept
        } else if self.top_p < 1.0 {
            self.nucleus(logits, highest)
        } else if self.min_p > 0.0 {
            // Tokens excluded here are below `min_p` by more than rounding.
            let least = highest + (self.min_p.ln() - 1e-3) / self.scale;
            let scored = (0..).zip(logits.iter().copied());
            self.weighted(
                scored.filter(|(_, logit)| *logit >= least).collect(),
                highest,
            )
        } else {
            return None;
        };
        // Forbidden tokens have no weight.
        kept.retain(|(_, weight)| *weight > 0.0 && *weight >= f64::from(self.min_p));
        kept.sort_unstable_by_key(|(token, _)| *token);
        Some(kept)
    }

    fn weighted(&self, scored: Vec<TokenScore<f32>>, highest: f32) -> Vec<TokenScore<f64>> {
        let weight = |logit: f32| (f64::from(logit - highest) * f64::from(self.scale)).exp();
        scored
            .into_iter()
            .map(|(token, logit)| (token, weight(logit)))
            .collect()
    }

    /// The smallest set of most likely tokens with total probability `top_p`.
    fn nucleus(&self, logits: &[f32], highest: f32) -> Vec<TokenScore<f64>> {
        let total = softmax_sums(Isa::best(), logits, highest, self.scale).weights;
        let target = total * f64::from(self.top_p);
        let mut first = self.weighted(most_likely(logits, NUCLEUS_FIRST), highest);
        if let Some(enough) = reaching(&first, target) {
            first.truncate(enough);
            return first;
        }
        let mut weights = vec![0.0; logits.len()];
        softmax_weights(Isa::best(), logits, highest, self.scale, &mut weights);
        let rank = |logit: f32| {
            let below = (highest - logit) * self.scale * BUCKETS_PER_UNIT;
            (below as usize).min(BUCKETS - 1)
        };
        let last = last_of_nucleus(logits, &weights, rank, target);
        (0..)
            .zip(logits.iter().copied())
            .filter(|scored| by_likelihood(scored, &last).is_le())
            .map(|(token, _)| (token, f64::from(weights[token as usize])))
            .collect()
    }
}

/// The least likely token of the nucleus whose weight reaches the target; `rank` rises as logits
/// fall. Tokens are sorted into buckets by rank, and only the bucket in which the target is reached
/// is searched token by token.
fn last_of_nucleus(
    logits: &[f32],
    weights: &[f32],
    rank: impl Fn(f32) -> usize,
    target: f64,
) -> TokenScore<f32> {
    let mut sums = vec![0.0_f64; BUCKETS];
    for (logit, weight) in logits.iter().zip(weights) {
        sums[rank(*logit)] += f64::from(*weight);
    }
    let mut reached = 0.0;
    let mut at = 0;
    let last = sums.iter().rposition(|sum| *sum > 0.0).unwrap_or(0);
    while at < last && reached + sums[at] < target {
        reached += sums[at];
        at += 1;
    }
    let scored = (0..).zip(logits.iter().copied());
    let mut bucket: Vec<TokenScore<f32>> = scored.filter(|(_, logit)| rank(*logit) == at).collect();
    let mut rest = bucket.as_mut_slice();
    // Tokens left of the middle are more likely than those right of it; bisect.
    while rest.len() > 1 {
        let middle = rest.len() / 2;
        rest.select_nth_unstable_by(middle, by_likelihood);
        let weight = |(token, _): &TokenScore<f32>| f64::from(weights[*token as usize]);
        let left: f64 = rest[..middle].iter().map(weight).sum();
        if reached + left >= target {
            rest = &mut rest[..middle];
        } else {
            reached += left;
            rest = &mut rest[middle..];
        }
    }
    rest[0]
}

/// How many of the tokens, most likely first, reach the target.
fn reaching(kept: &[TokenScore<f64>], target: f64) -> Option<usize> {
    let mut reached = 0.0;
    let enough = kept.iter().position(|(_, weight)| {
        reached += weight;
        reached >= target
    });
    enough.map(|at| at + 1)
}

/// Orders by likelihood; ties go to the smaller id, so that choices are reproducible.
fn by_likelihood<T: PartialOrd>(a: &TokenScore<T>, b: &TokenScore<T>) -> Ordering {
    let by_rate = b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal);
    by_rate.then(a.0.cmp(&b.0))
}

/// The most likely tokens with their logits, in order.
pub(super) fn most_likely(logits: &[f32], count: usize) -> Vec<TokenScore<f32>> {
    if count == 0 {
        return Vec::new();
    }
    let capacity = (4 * count).max(256).min(logits.len());
    let mut found: Vec<TokenScore<f32>> = Vec::with_capacity(capacity);
    let mut least = f32::NEG_INFINITY;
    for (token, logit) in (0..).zip(logits) {
        // A later token with the same logit as the last one found does not displace it.
        if *logit > least || found.len() < count {
            if found.len() == capacity && capacity > count {
                found.select_nth_unstable_by(count - 1, by_likelihood);
                found.truncate(count);
                least = found[count - 1].1;
                if *logit <= least {
                    continue;
                }
            }
            found.push((token, *logit));
        }
    }
    found.sort_unstable_by(by_likelihood);
    found.truncate(count);
    found
}

/// Draws from all weights.
fn draw_of_all(weights: &[f32], point: f64) -> usize {
    let sum = |block: &[f32]| -> f64 { block.iter().copied().map(f64::from).sum() };
    let sums: Vec<f64> = weights.chunks(BLOCK).map(sum).collect();
    let mut point = point * sums.iter().sum::<f64>();
    let last = sums.iter().rposition(|sum| *sum > 0.0).unwrap_or(0);
    let mut at = 0;
    while at < last && point >= sums[at] {
        point -= sums[at];
        at += 1;
    }
    let block = &weights[at * BLOCK..weights.len().min((at + 1) * BLOCK)];
    let drawn = block.iter().position(|weight| {
        point -= f64::from(*weight);
        point < 0.0
    });
    // Rounding may leave the point just past the last token with weight.
    let drawn = drawn.or(block.iter().rposition(|weight| *weight > 0.0));
    at * BLOCK + drawn.unwrap_or(0)
}
