//! Elementwise functions between the products: norms, SwiGLU and the softmax of attention.

use super::{isa::Isa, panel::PANEL};

/// Partial sums of a long sum: one vector of them, in an order that does not depend on the CPU.
pub(super) const LANES: usize = 16;

/// `e` to the power of `x`, within 2 units in the last place; 0 below -87.3, where f32 underflows.
///
/// Cephes' `expf`: split off the power of two, approximate the rest by a polynomial. It has no branch
/// and no call, so that loops over it are vectorized.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let within = x.clamp(-87.3, 88.0);
    let power = within * std::f32::consts::LOG2_E + ROUND;
    let whole = power - ROUND;
    let rest = within - whole * LN_2_HIGH - whole * LN_2_LOW;
    let mut sum = 1.987_569_1e-4;
    for coefficient in [
        1.398_2e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        sum = sum * rest + coefficient;
    }
    let fraction = sum * rest * rest + rest + 1.0;
    let exponent = (power.to_bits() as i32)
        .wrapping_shl(23)
        .wrapping_add(127 << 23);
    let scale = f32::from_bits(exponent as u32);
    if x < -87.3 { 0.0 } else { fraction * scale }
}

compiled! {
    /// Divides a row by the root of its mean square (plus `epsilon`) and multiplies it by `weight`
    /// (Zhang and Sennrich, 2019).
    fn rms_norm(row: &mut [f32], weight: &[f32], epsilon: f32) {
        let mut sums = [0.0; LANES];
        let mut parts = row.chunks_exact(LANES);
        for part in &mut parts {
            for (sum, value) in sums.iter_mut().zip(part) {
                *sum += value * value;
            }
        }
        let tail: f32 = parts.remainder().iter().map(|value| value * value).sum();
        let mean_square = (sums.iter().sum::<f32>() + tail) / row.len() as f32;
        let scale = 1.0 / (mean_square + epsilon).sqrt();
        for (value, weight) in row.iter_mut().zip(weight) {
            *value *= scale * weight;
        }
    }
}

compiled! {
    /// Rotates pairs of values by the given angles; a head's first half holds the pairs' first values
    /// (Su et al., 2021).
    fn rotate(heads: &mut [f32], cosines: &[f32], sines: &[f32]) {
        for head in heads.chunks_exact_mut(2 * cosines.len()) {
            let (first, second) = head.split_at_mut(cosines.len());
            for (((a, b), cosine), sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
                (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
            }
        }
    }
}

compiled! {
    /// Replaces the gate by `silu(gate) * up` (Shazeer, 2020).
    fn swiglu(gate: &mut [f32], up: &[f32]) {
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = *gate / (1.0 + exp(-*gate)) * *up;
        }
    }
}

/// State of a row's online softmax over blocks of scores (Milakov and Gimelshein, 2018).
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct Softmax {
    highest: f32,
    /// Sum of the weights so far, relative to `highest`.
    pub(in crate::engine) sum: f32,
}

impl Default for Softmax {
    fn default() -> Self {
        Self {
            highest: f32::NEG_INFINITY,
            sum: 0.0,
        }
    }
}

compiled! {
    /// Converts a block of scores to weights relative to the highest score so far, and returns the
    /// factor by which earlier weights must be scaled. Hidden positions have a score of minus
    /// infinity.
    fn softmax_block(row: &mut Softmax, scores: &mut [f32; PANEL]) -> f32 {
        let highest = scores.iter().copied().fold(row.highest, f32::max);
        if highest == f32::NEG_INFINITY {
            scores.fill(0.0);
            return 1.0;
        }
        let shrink = exp(row.highest - highest);
        let mut sums = [0.0; LANES];
        for part in scores.chunks_exact_mut(LANES) {
            for (sum, score) in sums.iter_mut().zip(part) {
                *score = exp(*score - highest);
                *sum += *score;
            }
        }
        *row = Softmax { highest, sum: row.sum * shrink + sums.iter().sum::<f32>() };
        shrink
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::local::cpu::kernels::elementwise::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for at in -8730..=8800 {
            let x = at as f32 / 100.0 + 0.003;
            let exact = f64::from(x).exp() as f32;
            let apart = (exp(x).to_bits() as i64 - exact.to_bits() as i64).abs();
            assert!(
                !(-87.3..=88.0).contains(&x) || apart <= 2,
                "exp({x}) is {apart} off"
            );
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn swiglu_and_norm_match_f64_on_each_instruction_set() {
        let values: Vec<f32> = (0..2 * 70)
            .map(|at| (at as f32 * 0.37).sin() * 9.0)
            .collect();
        for isa in Isa::available() {
            let (mut row, up) = (values[..70].to_vec(), &values[70..]);
            swiglu(isa, &mut row, up);
            for at in 0..70 {
                let (gate, up) = (f64::from(values[at]), f64::from(values[70 + at]));
                let exact = gate / (1.0 + (-gate).exp()) * up;
                assert!((f64::from(row[at]) - exact).abs() <= 1e-6 * (1.0 + exact.abs()));
            }
            let (mut row, weight) = (values.clone(), vec![0.5; values.len()]);
            rms_norm(isa, &mut row, &weight, 1e-5);
            let squares = values.iter().map(|value| f64::from(*value).powi(2));
            let root = (squares.sum::<f64>() / values.len() as f64 + 1e-5).sqrt();
            for (found, value) in row.iter().zip(&values) {
                assert!((f64::from(*found) - f64::from(*value) / root * 0.5).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn rotation_keeps_lengths_and_adds_angles() {
        for isa in Isa::available() {
            let start: Vec<f32> = (0..3 * 38).map(|at| (at as f32 * 0.61).cos()).collect();
            let angles: Vec<f32> = (0..19).map(|at| at as f32 * 0.3).collect();
            let cosines: Vec<f32> = angles.iter().map(|angle| angle.cos()).collect();
            let sines: Vec<f32> = angles.iter().map(|angle| angle.sin()).collect();
            let mut heads = start.clone();
            rotate(isa, &mut heads, &cosines, &sines);
            for (turned, start) in heads.chunks(38).zip(start.chunks(38)) {
                for (pair, angle) in angles.iter().enumerate() {
                    let (x, y) = (f64::from(start[pair]), f64::from(start[19 + pair]));
                    let to = y.atan2(x) + f64::from(*angle);
                    assert!((f64::from(turned[pair]) - x.hypot(y) * to.cos()).abs() < 1e-6);
                    assert!((f64::from(turned[19 + pair]) - x.hypot(y) * to.sin()).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn blockwise_softmax_matches_the_whole_softmax() {
        let scores: Vec<f32> = (0..3 * PANEL)
            .map(|at| (at as f32 * 1.7).sin() * 20.0)
            .collect();
        let exact = scores.iter().map(|score| f64::from(*score).exp());
        let exact_sum: f64 = exact.clone().sum();
        for isa in Isa::available() {
            let mut row = Softmax::default();
            let mut hidden = [f32::NEG_INFINITY; PANEL];
            assert_eq!(softmax_block(isa, &mut row, &mut hidden), 1.0);
            assert_eq!((hidden, row.sum), ([0.0; PANEL], 0.0));
            let mut weights = Vec::new();
            for block in scores.as_chunks::<PANEL>().0 {
                let mut block = *block;
                let shrink = softmax_block(isa, &mut row, &mut block);
                weights.iter_mut().for_each(|weight| *weight *= shrink);
                weights.extend(block);
            }
            for (weight, exact) in weights.iter().zip(exact.clone()) {
                assert!((f64::from(weight / row.sum) - exact / exact_sum).abs() < 1e-6);
            }
        }
    }
}
