//! Multiplies rows with one panel.

/// Divides rows into groups of at most `$most`, of nearly equal size, and calls the kernel for each.
#[cfg(target_arch = "x86_64")]
macro_rules! by_rows {
    ($kernel:ident, $most:literal, [$($m:literal)*], $panel:expr, $rows:expr, $inputs:expr, $to:expr) => {{
        let count = $to.len();
        let many = count.div_ceil(count.div_ceil($most).max(1)).max(1);
        for from in (0..count).step_by(many) {
            let rows = from..count.min(from + many);
            let now = $rows.slice_rows(rows.clone(), $inputs);
            let here = &mut $to[rows];
            match here.len() {
                $($m => {
                    if let Some(here) = here.as_mut_array::<$m>() {
                        // SAFETY: `Isa::available` detected the instructions that the kernel is compiled
                        // for, and `multiply` has checked the lengths.
                        unsafe { $kernel::<$m>($panel, now, $inputs, here) };
                    }
                })*
                _ => unreachable!("a group exceeds its limit"),
            }
        }
    }};
}

#[cfg(target_arch = "x86_64")]
mod narrow;
#[cfg(target_arch = "x86_64")]
mod wide;

use super::{
    isa::Isa,
    panel::{ByteRows, GROUP, GROUP_BYTES, InputRows, PANEL, Panel, lane},
};

/// Adds the products of rows with a panel to `to`, one row each.
///
/// # Panics
/// When the lengths do not match `inputs` and `to`, or the formats of rows and panel differ.
pub(in crate::engine) fn multiply(
    isa: Isa,
    panel: Panel<'_>,
    rows: InputRows<'_>,
    inputs: usize,
    to: &mut [[f32; PANEL]],
) {
    match (panel, rows) {
        (Panel::F32(panel), InputRows::F32(rows)) => {
            assert!(panel.len() == inputs * PANEL && rows.len() == to.len() * inputs);
            match isa {
                Isa::Portable => portable(rows, inputs, to, |input, output| {
                    panel[input * PANEL + output]
                }),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => narrow::f32(panel, rows, inputs, to),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 => {
                    wide::f32(panel, rows, inputs, to)
                }
            }
        }
        (Panel::Bf16(panel), InputRows::F32(rows)) => {
            assert!(panel.len() == inputs * PANEL && rows.len() == to.len() * inputs);
            match isa {
                Isa::Portable => portable(rows, inputs, to, |input, output| {
                    widen(panel[input * PANEL + lane(output)])
                }),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => narrow::bf16(panel, rows, inputs, to),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 => {
                    wide::bf16(panel, rows, inputs, to)
                }
            }
        }
        (Panel::Bf16Pairs(panel), InputRows::Bf16(rows)) => {
            assert!(inputs.is_multiple_of(2) && panel.len() == inputs * PANEL);
            assert!(rows.len() == to.len() * inputs);
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Bf16 => wide::pairs(panel, rows, inputs, to),
                _ => portable_pairs(panel, rows, inputs, to),
            }
        }
        (Panel::Bytes(panel), InputRows::Bytes(rows)) => {
            let groups = inputs / GROUP;
            assert!(inputs.is_multiple_of(GROUP) && panel.len() == groups * GROUP_BYTES);
            assert!(rows.steps.len() == to.len() * inputs);
            assert!(rows.scales.len() == to.len() * groups);
            assert!(rows.offsets.len() == to.len() * groups);
            match isa {
                Isa::Portable => portable_bytes(panel, rows, groups, to),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 | Isa::Avx512 => narrow::bytes(panel, rows, inputs, to),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Vnni | Isa::Avx512Bf16 => wide::bytes(panel, rows, inputs, to),
            }
        }
        _ => panic!("the formats of rows and panel differ"),
    }
}

/// Converts bf16 bits to f32.
fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The portable path, against which the others are tested.
fn portable(
    rows: &[f32],
    inputs: usize,
    to: &mut [[f32; PANEL]],
    weight: impl Fn(usize, usize) -> f32,
) {
    for (row, to) in rows.chunks_exact(inputs).zip(to) {
        for (input, value) in row.iter().enumerate() {
            for (output, to) in to.iter_mut().enumerate() {
                *to += value * weight(input, output);
            }
        }
    }
}

fn portable_pairs(panel: &[u16], rows: &[u16], inputs: usize, to: &mut [[f32; PANEL]]) {
    for (row, to) in rows.chunks_exact(inputs).zip(to) {
        for (pair, values) in row.chunks_exact(2).enumerate() {
            let weights = &panel[pair * 2 * PANEL..][..2 * PANEL];
            for (to, weights) in to.iter_mut().zip(weights.chunks_exact(2)) {
                *to += widen(values[0]) * widen(weights[0]) + widen(values[1]) * widen(weights[1]);
            }
        }
    }
}

/// Integer sums are exact and the rest is rounded in the same order on every instruction set, so the
/// results are bit-identical.
fn portable_bytes(panel: &[u8], rows: ByteRows<'_>, groups: usize, to: &mut [[f32; PANEL]]) {
    for (at, (steps, scale)) in rows.steps.chunks_exact(GROUP).zip(rows.scales).enumerate() {
        let group = &panel[at % groups * GROUP_BYTES..][..GROUP_BYTES];
        let (scales, weights) = group.split_at(2 * PANEL);
        let mut sums = [rows.offsets[at]; PANEL];
        for (steps, weights) in steps.chunks_exact(4).zip(weights.chunks_exact(4 * PANEL)) {
            for (sum, weights) in sums.iter_mut().zip(weights.as_chunks::<4>().0) {
                for (step, weight) in steps.iter().zip(weights) {
                    *sum += i32::from(*step) * i32::from(*weight);
                }
            }
        }
        let scales = scales.as_chunks::<2>().0;
        for (output, (to, sum)) in to[at / groups].iter_mut().zip(sums).enumerate() {
            let of_weights = widen(u16::from_le_bytes(scales[lane(output)]));
            *to += sum as f32 * of_weights * scale;
        }
    }
}
