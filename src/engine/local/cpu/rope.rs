//! Rotary positions: every pair of a head's values is rotated by an angle proportional to the position.

use crate::engine::local::shape::{ModelShape, Rope};

use super::kernels::{Isa, rotate};

/// Cosines and sines per position and pair.
#[derive(Debug)]
pub(in crate::engine::local) struct RopeTable {
    isa: Isa,
    half: usize,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl RopeTable {
    pub(in crate::engine::local) fn new(shape: &ModelShape, context_tokens: usize) -> Self {
        let frequencies = frequencies(shape);
        let angles = || {
            (0..context_tokens).flat_map(|position| {
                frequencies
                    .iter()
                    .map(move |frequency| position as f32 * frequency)
            })
        };
        Self {
            isa: Isa::best(),
            half: shape.head / 2,
            cosines: angles().map(f32::cos).collect(),
            sines: angles().map(f32::sin).collect(),
        }
    }

    /// The cosines and sines, `[position][pair]`.
    pub(in crate::engine::local) fn into_parts(self) -> (Vec<f32>, Vec<f32>) {
        (self.cosines, self.sines)
    }

    /// Rotates the values of heads in place; the first half of a head holds the pairs' first values.
    pub(in crate::engine::local) fn rotate(&self, heads: &mut [f32], position: usize) {
        let at = position * self.half..(position + 1) * self.half;
        let (cosines, sines) = (&self.cosines[at.clone()], &self.sines[at]);
        rotate(self.isa, heads, cosines, sines);
    }
}

/// Computed as in `transformers/modeling_rope_utils.py`.
fn frequencies(shape: &ModelShape) -> Vec<f32> {
    let width = shape.head as f64;
    let plain = (0..shape.head / 2).map(|pair| shape.rope_theta.powf(-2.0 * pair as f64 / width));
    let scale = |frequency: f64| match shape.rope {
        Rope::Default => frequency,
        Rope::Linear { factor } => frequency / factor,
        Rope::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context_tokens,
        } => {
            let turns = original_context_tokens * frequency / (2.0 * std::f64::consts::PI);
            if turns > high_freq_factor {
                frequency
            } else if turns < low_freq_factor {
                frequency / factor
            } else {
                let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    };
    plain.map(|frequency| scale(frequency) as f32).collect()
}
