//! Rows times one panel.

/// Cuts rows into groups of up to `$most`, as even as can be, and calls the kernel for their number.
#[cfg(target_arch = "x86_64")]
macro_rules! by_rows {
    ($kernel:ident, $most:literal, [$($m:literal)*], $panel:expr, $rows:expr, $inputs:expr, $to:expr) => {{
        let count = $to.len();
        let many = count.div_ceil(count.div_ceil($most).max(1)).max(1);
        for from in (0..count).step_by(many) {
            let rows = from..count.min(from + many);
            let now = $rows.part(rows.clone(), $inputs);
            let here = &mut $to[rows];
            match here.len() {
                $($m => {
                    if let Some(here) = here.as_mut_array::<$m>() {
                        // SAFETY: `Isa::available` saw the instructions that the kernel is compiled
                        // for, and `multiply` has checked the lengths.
                        unsafe { $kernel::<$m>($panel, now, $inputs, here) };
                    }
                })*
                _ => unreachable!("groups are no larger than that"),
            }
        }
    }};
}

#[cfg(target_arch = "x86_64")]
mod narrow;
#[cfg(target_arch = "x86_64")]
mod wide;

use std::ops::Range;

use super::isa::Isa;

/// Outputs of a panel.
pub(in crate::engine) const PANEL: usize = 32;
/// Inputs that share a scale where weights and rows are bytes, as in llama.cpp's q8_0.
pub(super) const GROUP: usize = 32;
/// Bytes of a group in a panel: for each output a scale in bf16 and the weights.
pub(super) const GROUP_BYTES: usize = PANEL * (2 + GROUP);

/// The weights of [`PANEL`] outputs.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) enum Panel<'a> {
    /// `[input][output]`.
    F32(&'a [f32]),
    /// `[input][output % 16][output / 16]`: the two halves of a 32-bit lane, widened by a shift and a mask.
    Bf16(&'a [u16]),
    /// `[input / 2][output][input % 2]`, for dot products of pairs; an odd last input is padded by 0.
    Bf16Pairs(&'a [u16]),
    /// For each group of [`GROUP`] inputs the scales in bf16, laid out as [`Self::Bf16`], then
    /// `[input / 4][output][input % 4]`: the weight in steps of its scale, -127 to 127, plus 128,
    /// since the instruction multiplies unsigned bytes with signed ones.
    Bytes(&'a [u8]),
}

/// Where the value of an output lies among the 32 of a [`Panel::Bf16`].
pub(in crate::engine) fn lane(output: usize) -> usize {
    output % 16 * 2 + output / 16
}

/// What is multiplied with a panel.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) enum Rows<'a> {
    /// `[row][input]`.
    F32(&'a [f32]),
    /// `[row][input]` in bf16, for [`Panel::Bf16Pairs`], with an even number of inputs.
    Bf16(&'a [u16]),
    /// For [`Panel::Bytes`], with whole groups of inputs.
    Bytes(ByteRows<'a>),
}

/// Rows in steps of a scale for each group of [`GROUP`] inputs.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct ByteRows<'a> {
    /// `[row][input]`, -127 to 127.
    pub(super) steps: &'a [i8],
    /// `[row][group]`.
    pub(super) scales: &'a [f32],
    /// `[row][group]`: -128 times the sum of the steps, which takes back what was added to the weights.
    pub(super) offsets: &'a [i32],
}

/// Something of which some rows can be taken.
pub(super) trait Part: Sized {
    /// Those rows, of as many inputs.
    fn part(self, rows: Range<usize>, inputs: usize) -> Self;
}

impl<T> Part for &[T] {
    fn part(self, rows: Range<usize>, inputs: usize) -> Self {
        &self[rows.start * inputs..rows.end * inputs]
    }
}

impl Part for ByteRows<'_> {
    fn part(self, rows: Range<usize>, inputs: usize) -> Self {
        Self {
            steps: self.steps.part(rows.clone(), inputs),
            scales: self.scales.part(rows.clone(), inputs / GROUP),
            offsets: self.offsets.part(rows, inputs / GROUP),
        }
    }
}

impl Part for Rows<'_> {
    fn part(self, rows: Range<usize>, inputs: usize) -> Self {
        match self {
            Self::F32(values) => Self::F32(values.part(rows, inputs)),
            Self::Bf16(values) => Self::Bf16(values.part(rows, inputs)),
            Self::Bytes(values) => Self::Bytes(values.part(rows, inputs)),
        }
    }
}

/// Adds rows times a panel to `to`, a row for each row.
///
/// # Panics
/// When the lengths do not match `inputs` and `to`, or the kinds do not go together.
pub(in crate::engine) fn multiply(
    isa: Isa,
    panel: Panel<'_>,
    rows: Rows<'_>,
    inputs: usize,
    to: &mut [[f32; PANEL]],
) {
    match (panel, rows) {
        (Panel::F32(panel), Rows::F32(rows)) => {
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
        (Panel::Bf16(panel), Rows::F32(rows)) => {
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
        (Panel::Bf16Pairs(panel), Rows::Bf16(rows)) => {
            assert!(inputs.is_multiple_of(2) && panel.len() == inputs * PANEL);
            assert!(rows.len() == to.len() * inputs);
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Bf16 => wide::pairs(panel, rows, inputs, to),
                _ => portable_pairs(panel, rows, inputs, to),
            }
        }
        (Panel::Bytes(panel), Rows::Bytes(rows)) => {
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
        _ => panic!("these rows do not go with this panel"),
    }
}

/// The f32 whose upper half these bits are.
fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The plain path, against which the others are tested.
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

/// Sums of integers are exact, and what follows is rounded in the same order on every instruction
/// set: the same bits everywhere.
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
