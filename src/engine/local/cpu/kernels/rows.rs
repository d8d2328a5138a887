//! Prepares rows for a product: unchanged, rounded to bf16, or quantized to 8 bits.

use super::{
    isa::Isa,
    panel::{ByteRows, GROUP, InputRows},
    team::{share_parts, threads},
};

/// Values from which all threads prepare the rows.
const SHARED_FROM: usize = 1 << 14;

/// 1.5 * 2^23: adding it to a small number rounds that to an integer, which is then in the lowest
/// bits.
const ROUND: f32 = 12_582_912.0;

/// Buffers for prepared rows, reused by every product.
#[derive(Debug, Default)]
pub(in crate::engine) struct PreparedRows {
    short: Vec<u16>,
    steps: Vec<i8>,
    scales: Vec<f32>,
    offsets: Vec<i32>,
}

impl PreparedRows {
    /// Rounds `[row][inputs]` to bf16; pads an odd width with 0.
    pub(super) fn bf16(&mut self, isa: Isa, rows: &[f32], inputs: usize) -> InputRows<'_> {
        let width = inputs.next_multiple_of(2);
        let count = rows.len() / inputs;
        self.short.resize(count * width, 0);
        let many = rows_at_once(rows.len(), count);
        let parts = self.short.chunks_mut(many * width);
        let work = |(short, rows): (&mut [u16], &[f32])| {
            for (short, row) in short.chunks_exact_mut(width).zip(rows.chunks(inputs)) {
                round(isa, row, &mut short[..inputs]);
                short[inputs..].fill(0);
            }
        };
        run(rows.len(), parts.zip(rows.chunks(many * inputs)), work);
        InputRows::Bf16(&self.short)
    }

    /// Quantizes `[row][inputs]` with a scale per group; pads the last group with 0.
    pub(super) fn bytes(&mut self, isa: Isa, rows: &[f32], inputs: usize) -> InputRows<'_> {
        let (width, groups) = (inputs.next_multiple_of(GROUP), inputs.div_ceil(GROUP));
        let count = rows.len() / inputs;
        self.steps.resize(count * width, 0);
        self.scales.resize(count * groups, 0.0);
        self.offsets.resize(count * groups, 0);
        let many = rows_at_once(rows.len(), count);
        let parts = self
            .steps
            .chunks_mut(many * width)
            .zip(self.scales.chunks_mut(many * groups))
            .zip(self.offsets.chunks_mut(many * groups))
            .zip(rows.chunks(many * inputs));
        let work = |(((steps, scales), offsets), rows): (((&mut [i8], _), _), &[f32])| {
            let (scales, offsets): (&mut [f32], &mut [i32]) = (scales, offsets);
            let scales = scales.chunks_exact_mut(groups);
            let offsets = offsets.chunks_exact_mut(groups);
            let places = steps.chunks_exact_mut(width).zip(scales).zip(offsets);
            for (row, ((steps, scales), offsets)) in rows.chunks_exact(inputs).zip(places) {
                quantize(isa, row, steps, scales, offsets);
            }
        };
        run(rows.len(), parts, work);
        InputRows::Bytes(ByteRows {
            steps: &self.steps,
            scales: &self.scales,
            offsets: &self.offsets,
        })
    }
}

/// Rows per piece of work; there are several pieces per thread.
fn rows_at_once(values: usize, rows: usize) -> usize {
    match values < SHARED_FROM {
        true => rows.max(1),
        false => rows.div_ceil(4 * threads()),
    }
}

fn run<P: Send>(values: usize, parts: impl Iterator<Item = P> + Send, work: impl Fn(P) + Sync) {
    if values < SHARED_FROM {
        parts.for_each(work);
    } else {
        share_parts(parts, work);
    }
}

compiled! {
    /// Rounds to the nearest bf16, ties to even.
    fn round(row: &[f32], to: &mut [u16]) {
        for (value, to) in row.iter().zip(to) {
            let bits = value.to_bits();
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            // Rounding up could turn the payload of a NaN into that of infinity.
            *to = if value.is_nan() { 0x7fc0 } else { rounded as u16 };
        }
    }
}

compiled! {
    /// Quantizes a row: each group's values are multiples of its largest absolute value / 127. NaN in
    /// a group makes its scale NaN.
    fn quantize(row: &[f32], steps: &mut [i8], scales: &mut [f32], offsets: &mut [i32]) {
        let steps = steps.as_chunks_mut::<GROUP>().0;
        let places = steps.iter_mut().zip(scales).zip(offsets);
        for (part, ((steps, scale), offset)) in row.chunks(GROUP).zip(places) {
            let mut padded = [0.0; GROUP];
            let group = part.as_array().unwrap_or_else(|| {
                padded[..part.len()].copy_from_slice(part);
                &padded
            });
            let sizes = group.iter().map(|value: &f32| (value.to_bits() & 0x7fff_ffff) as i32);
            // Compared as integers, the bits of NaN are the largest.
            let largest = f32::from_bits(sizes.fold(0, i32::max) as u32);
            let steps_per_unit = if largest > 1e-36 { 127.0 / largest } else { 0.0 };
            let mut sum = 0i32;
            for (value, step) in group.iter().zip(steps) {
                let bits = (value * steps_per_unit + ROUND).to_bits();
                let rounded = bits.wrapping_sub(ROUND.to_bits()) as i32;
                *step = rounded as i8;
                sum = sum.wrapping_add(rounded);
            }
            *scale = largest / 127.0;
            *offset = sum.wrapping_mul(-128);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use crate::engine::local::cpu::kernels::rows::*;

    /// Values of various magnitudes.
    fn values(count: usize) -> Vec<f32> {
        let value = |at: usize| (at as f32 * 1.37).sin() * 10f32.powi(at as i32 % 9 - 4);
        (0..count).map(value).collect()
    }

    #[test]
    fn bf16_matches_the_half_crate_and_odd_widths_are_padded() {
        for isa in Isa::available() {
            let mut rows = values(3 * 131);
            rows[7] = f32::from_bits(0x3f80_8000); // a tie; the lower neighbour is even
            rows[8] = f32::from_bits(0x3f81_8000); // a tie; the upper neighbour is even
            rows[9] = f32::INFINITY;
            let mut prepared = PreparedRows::default();
            let InputRows::Bf16(short) = prepared.bf16(isa, &rows, 131) else {
                panic!("other rows");
            };
            for (short, row) in short.chunks(132).zip(rows.chunks(131)) {
                let exact = row.iter().map(|value| bf16::from_f32(*value).to_bits());
                assert!(short[..131].iter().copied().eq(exact), "{isa:?}");
                assert_eq!(short[131], 0);
            }
            let InputRows::Bf16(short) = prepared.bf16(isa, &[f32::NAN, 1.0], 2) else {
                panic!("other rows");
            };
            assert!(bf16::from_bits(short[0]).is_nan() && short[1] == 0x3f80);
        }
    }

    #[test]
    fn quantized_values_are_nearest_and_equal_on_every_instruction_set() {
        // Few rows, and enough to be prepared by all threads.
        for count in [1, 5, 300] {
            let rows = values(count * 70);
            let mut plain = PreparedRows::default();
            plain.bytes(Isa::Portable, &rows, 70);
            for isa in Isa::available() {
                let mut prepared = PreparedRows::default();
                // Left over from a larger product.
                prepared.bytes(isa, &values(400 * 70), 70);
                prepared.bytes(isa, &rows, 70);
                assert_eq!(prepared.steps, plain.steps, "{isa:?}");
                assert_eq!(prepared.scales, plain.scales);
                assert_eq!(prepared.offsets, plain.offsets);
            }
            for (at, value) in rows.iter().enumerate() {
                let (row, input) = (at / 70, at % 70);
                let scale = plain.scales[row * 3 + input / GROUP];
                let step = f32::from(plain.steps[row * 96 + input]);
                assert!((step * scale - value).abs() <= scale * 0.5001);
            }
            for row in plain.steps.chunks(96) {
                assert!(row.contains(&127) || row.contains(&-127));
                assert!(row[70..].iter().all(|step| *step == 0));
            }
            let sums = plain.steps.chunks(GROUP).map(|group| {
                let steps = group.iter().map(|step| i32::from(*step));
                -128 * steps.sum::<i32>()
            });
            assert!(plain.offsets.iter().copied().eq(sums));
        }
    }

    #[test]
    fn zeros_stay_zeros_and_nan_stays_nan() {
        for isa in Isa::available() {
            let mut rows = vec![0.0; 96];
            rows[40] = f32::NAN;
            rows[70] = 1e-38;
            let mut prepared = PreparedRows::default();
            prepared.bytes(isa, &rows, 96);
            assert_eq!(prepared.scales[0], 0.0);
            assert!(prepared.scales[1].is_nan());
            assert!(prepared.scales[2] < 1e-38);
            assert!(prepared.steps[..32].iter().all(|step| *step == 0));
            assert!(prepared.steps[64..].iter().all(|step| *step == 0));
        }
    }
}
