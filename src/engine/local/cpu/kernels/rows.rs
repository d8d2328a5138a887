//! Rows made ready for a product: as they are, rounded to bf16, or in steps of 8 bits.

use super::{
    isa::Isa,
    team::{share_parts, threads},
    tile::{ByteRows, GROUP, Rows},
};

/// Values from which rows are made ready by all threads.
const SHARED_FROM: usize = 1 << 14;

/// Adding it, 1.5 * 2^23, to a small number leaves no bits after the point, and the number in the
/// lowest bits.
const ROUND: f32 = 12_582_912.0;

/// Memory for rows that are made ready, used by one product after the other.
#[derive(Debug, Default)]
pub(in crate::engine) struct Ready {
    short: Vec<u16>,
    steps: Vec<i8>,
    scales: Vec<f32>,
    offsets: Vec<i32>,
}

impl Ready {
    /// Rounds `[row][inputs]` to bf16; an odd width is padded by 0.
    pub(super) fn bf16(&mut self, isa: Isa, rows: &[f32], inputs: usize) -> Rows<'_> {
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
        Rows::Bf16(&self.short)
    }

    /// Rounds `[row][inputs]` to steps of a scale for each group, the last padded by 0.
    pub(super) fn bytes(&mut self, isa: Isa, rows: &[f32], inputs: usize) -> Rows<'_> {
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
        Rows::Bytes(ByteRows {
            steps: &self.steps,
            scales: &self.scales,
            offsets: &self.offsets,
        })
    }
}

/// Rows of one piece of work, of which there are a few for each thread.
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
    /// Rounds to the nearest bf16, the even one of two.
    fn round(row: &[f32], to: &mut [u16]) {
        for (value, to) in row.iter().zip(to) {
            let bits = value.to_bits();
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            // Rounded up, the payload of a NaN could become that of an infinity.
            *to = if value.is_nan() { 0x7fc0 } else { rounded as u16 };
        }
    }
}

compiled! {
    /// Writes a row in steps of a 127th of each group's largest value. Where that is no number,
    /// neither is the scale.
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
            // As integers, the bits of what is no number are the largest.
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

    /// Values of all sizes.
    fn values(count: usize) -> Vec<f32> {
        let value = |at: usize| (at as f32 * 1.37).sin() * 10f32.powi(at as i32 % 9 - 4);
        (0..count).map(value).collect()
    }

    #[test]
    fn bf16_is_rounded_as_half_rounds_and_odd_widths_are_padded() {
        for isa in Isa::available() {
            let mut rows = values(3 * 131);
            rows[7] = f32::from_bits(0x3f80_8000); // between two, the lower one even
            rows[8] = f32::from_bits(0x3f81_8000); // the upper one even
            rows[9] = f32::INFINITY;
            let mut ready = Ready::default();
            let Rows::Bf16(short) = ready.bf16(isa, &rows, 131) else {
                panic!("other rows");
            };
            for (short, row) in short.chunks(132).zip(rows.chunks(131)) {
                let exact = row.iter().map(|value| bf16::from_f32(*value).to_bits());
                assert!(short[..131].iter().copied().eq(exact), "{isa:?}");
                assert_eq!(short[131], 0);
            }
            let Rows::Bf16(short) = ready.bf16(isa, &[f32::NAN, 1.0], 2) else {
                panic!("other rows");
            };
            assert!(bf16::from_bits(short[0]).is_nan() && short[1] == 0x3f80);
        }
    }

    #[test]
    fn steps_are_the_nearest_and_the_same_on_every_instruction_set() {
        // Few rows, and as many as are made ready by all threads.
        for count in [1, 5, 300] {
            let rows = values(count * 70);
            let mut plain = Ready::default();
            plain.bytes(Isa::Portable, &rows, 70);
            for isa in Isa::available() {
                let mut ready = Ready::default();
                // Left over from a larger product.
                ready.bytes(isa, &values(400 * 70), 70);
                ready.bytes(isa, &rows, 70);
                assert_eq!(ready.steps, plain.steps, "{isa:?}");
                assert_eq!(ready.scales, plain.scales);
                assert_eq!(ready.offsets, plain.offsets);
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
    fn zeros_stay_zeros_and_what_is_no_number_stays_none() {
        for isa in Isa::available() {
            let mut rows = vec![0.0; 96];
            rows[40] = f32::NAN;
            rows[70] = 1e-38;
            let mut ready = Ready::default();
            ready.bytes(isa, &rows, 96);
            assert_eq!(ready.scales[0], 0.0);
            assert!(ready.scales[1].is_nan());
            assert!(ready.scales[2] < 1e-38);
            assert!(ready.steps[..32].iter().all(|step| *step == 0));
            assert!(ready.steps[64..].iter().all(|step| *step == 0));
        }
    }
}
