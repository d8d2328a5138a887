//! Packs weights into panels.

use half::bf16;

use super::{
    aligned::Aligned,
    isa::Isa,
    panel::{GROUP, GROUP_BYTES, InputRows, PANEL, Panel, lane},
    rows::PreparedRows,
    team::{share_parts, threads},
};

/// Number format of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Precision {
    /// f32 throughout; weights that are exact in bf16 are stored so and widened on use.
    F32,
    /// Weights and inputs rounded to bf16 and summed in f32, if the CPU multiplies bf16 pairs;
    /// otherwise only the weights are rounded.
    Bf16,
    /// Weights and inputs as 8-bit integers with a scale per group of 32 inputs, as llama.cpp's
    /// q8_0. Sums within a group are exact; those over groups are in f32. This includes the LM head,
    /// a fifth of what a decode step of a small model reads.
    Q8,
}

/// Packed weights; each variant is a sequence of [`Panel`]s of the same name.
#[derive(Debug)]
pub(super) enum Packed {
    F32(Aligned<f32>),
    Bf16(Aligned<u16>),
    Bf16Pairs(Aligned<u16>),
    Bytes(Aligned<u8>),
}

/// Weights to pack, `[output][input]`, padded with zeros.
#[derive(Clone, Copy)]
struct UnpackedWeights<'a> {
    values: &'a [f32],
    outputs: usize,
    inputs: usize,
}

impl UnpackedWeights<'_> {
    fn at(&self, output: usize, input: usize) -> f32 {
        match output < self.outputs && input < self.inputs {
            true => self.values[output * self.inputs + input],
            false => 0.0,
        }
    }

    fn short(&self, output: usize, input: usize) -> u16 {
        bf16::from_f32(self.at(output, input)).to_bits()
    }

    /// Packs panels of `values` numbers each, on all threads.
    fn pack<T: Copy + Default + Send>(
        &self,
        values: usize,
        fill: impl Fn(usize, &mut [T]) + Sync,
    ) -> Aligned<T> {
        let panels = self.outputs.div_ceil(PANEL);
        let mut packed = Aligned::zeros(panels * values);
        let many = panels.div_ceil(8 * threads());
        let parts = packed.chunks_mut(many * values).enumerate();
        share_parts(parts, |(part, panels)| {
            for (at, panel) in panels.chunks_exact_mut(values).enumerate() {
                fill((part * many + at) * PANEL, panel);
            }
        });
        packed
    }
}

impl Packed {
    /// Packs `[outputs][inputs]` for an instruction set.
    pub(super) fn new(
        isa: Isa,
        values: &[f32],
        outputs: usize,
        inputs: usize,
        precision: Precision,
    ) -> Self {
        let weights = UnpackedWeights {
            values,
            outputs,
            inputs,
        };
        match precision {
            Precision::Q8 => Self::Bytes(pack_bytes(&weights)),
            Precision::Bf16 if isa.has_bf16_dot() => Self::Bf16Pairs(pack_pairs(&weights)),
            Precision::F32 if !values.iter().all(|value| is_bf16(*value)) => {
                Self::F32(weights.pack(inputs * PANEL, |first, panel| {
                    for (input, to) in panel.chunks_exact_mut(PANEL).enumerate() {
                        for (output, to) in to.iter_mut().enumerate() {
                            *to = weights.at(first + output, input);
                        }
                    }
                }))
            }
            Precision::Bf16 | Precision::F32 => {
                Self::Bf16(weights.pack(inputs * PANEL, |first, panel| {
                    for (input, to) in panel.chunks_exact_mut(PANEL).enumerate() {
                        lay_halves(to, |output| weights.short(first + output, input));
                    }
                }))
            }
        }
    }

    /// The panel at an index, for `inputs` inputs.
    pub(super) fn panel(&self, at: usize, inputs: usize) -> Panel<'_> {
        match self {
            Self::F32(packed) => Panel::F32(part(packed, at, inputs * PANEL)),
            Self::Bf16(packed) => Panel::Bf16(part(packed, at, inputs * PANEL)),
            Self::Bf16Pairs(packed) => {
                let values = inputs.next_multiple_of(2) * PANEL;
                Panel::Bf16Pairs(part(packed, at, values))
            }
            Self::Bytes(packed) => {
                Panel::Bytes(part(packed, at, inputs.div_ceil(GROUP) * GROUP_BYTES))
            }
        }
    }

    /// Converts rows of `inputs` to the format of these weights.
    pub(super) fn prepare<'a>(
        &self,
        isa: Isa,
        rows: &'a [f32],
        inputs: usize,
        prepared: &'a mut PreparedRows,
    ) -> InputRows<'a> {
        match self {
            Self::F32(_) | Self::Bf16(_) => InputRows::F32(rows),
            Self::Bf16Pairs(_) => prepared.bf16(isa, rows, inputs),
            Self::Bytes(_) => prepared.bytes(isa, rows, inputs),
        }
    }

    /// The inputs of a panel, padding included.
    pub(super) fn padded(&self, inputs: usize) -> usize {
        match self {
            Self::F32(_) | Self::Bf16(_) => inputs,
            Self::Bf16Pairs(_) => inputs.next_multiple_of(2),
            Self::Bytes(_) => inputs.next_multiple_of(GROUP),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::F32(packed) => size_of_val::<[f32]>(packed),
            Self::Bf16(packed) | Self::Bf16Pairs(packed) => size_of_val::<[u16]>(packed),
            Self::Bytes(packed) => packed.len(),
        }
    }
}

fn part<T>(packed: &[T], at: usize, values: usize) -> &[T] {
    &packed[at * values..][..values]
}

fn is_bf16(value: f32) -> bool {
    value.to_bits() & 0xffff == 0
}

/// Writes 32 numbers in the order of [`Panel::Bf16`].
fn lay_halves(to: &mut [u16], of: impl Fn(usize) -> u16) {
    for output in 0..PANEL {
        to[lane(output)] = of(output);
    }
}

fn pack_pairs(weights: &UnpackedWeights<'_>) -> Aligned<u16> {
    weights.pack(
        weights.inputs.next_multiple_of(2) * PANEL,
        |first, panel: &mut [u16]| {
            let pairs = panel.as_chunks_mut::<2>().0;
            for (pair, to) in pairs.chunks_exact_mut(PANEL).enumerate() {
                for (output, to) in to.iter_mut().enumerate() {
                    *to = [0, 1].map(|at| weights.short(first + output, 2 * pair + at));
                }
            }
        },
    )
}

fn pack_bytes(weights: &UnpackedWeights<'_>) -> Aligned<u8> {
    let groups = weights.inputs.div_ceil(GROUP);
    weights.pack(groups * GROUP_BYTES, |first, panel: &mut [u8]| {
        for (group, to) in panel.chunks_exact_mut(GROUP_BYTES).enumerate() {
            let (scales, steps) = to.split_at_mut(2 * PANEL);
            let mut shorts = [0; PANEL];
            for output in 0..PANEL {
                let values =
                    std::array::from_fn(|at| weights.at(first + output, group * GROUP + at));
                let (scale, values) = quantize(&values);
                shorts[output] = scale.to_bits();
                for (quad, values) in values.chunks_exact(4).enumerate() {
                    steps[(quad * PANEL + output) * 4..][..4].copy_from_slice(values);
                }
            }
            let mut laid = [0; PANEL];
            lay_halves(&mut laid, |output| shorts[output]);
            for (to, short) in scales.as_chunks_mut::<2>().0.iter_mut().zip(laid) {
                *to = short.to_le_bytes();
            }
        }
    })
}

/// A group's scale and its weights as multiples of it, plus 128.
///
/// The scale is the largest absolute weight / 127, rounded up to bf16, whose range covers all f32
/// weights. The weights are divided by the rounded scale, so rounding it costs at most a 128th of
/// the resolution and no exactness.
fn quantize(weights: &[f32; GROUP]) -> (bf16, [u8; GROUP]) {
    let largest = weights
        .iter()
        .fold(0.0, |most: f32, weight| most.max(weight.abs()));
    let up = (largest / 127.0).to_bits().wrapping_add(0xffff) >> 16;
    let scale = bf16::from_bits(up as u16);
    let steps = weights.map(|weight| match scale.to_f32() {
        0.0 => 128,
        scale => ((weight / scale).round().clamp(-127.0, 127.0) + 128.0) as u8,
    });
    (scale, steps)
}

#[cfg(test)]
mod tests {
    use crate::engine::local::cpu::kernels::pack::*;

    #[test]
    fn quantized_weights_are_at_most_half_a_step_off() {
        for size in [1e-30, 1e-3, 1.0, 5e4] {
            let weights: [f32; GROUP] =
                std::array::from_fn(|at| (at as f32 * 0.7 + size).sin() * size);
            let (scale, steps) = quantize(&weights);
            let scale = scale.to_f32();
            for (weight, step) in weights.iter().zip(steps) {
                assert!(((f32::from(step) - 128.0) * scale - weight).abs() <= scale * 0.5001);
            }
            let largest = weights.iter().fold(0.0, |most: f32, w| most.max(w.abs()));
            assert!(scale * 127.0 >= largest && scale * 126.0 <= largest);
        }
        assert_eq!(quantize(&[0.0; GROUP]), (bf16::ZERO, [128; GROUP]));
    }
}
