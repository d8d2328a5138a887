//! Operands of the kernels' one product: a panel of weights and the rows to multiply with it.

use std::ops::Range;

/// Outputs of a panel.
pub(in crate::engine) const PANEL: usize = 32;
/// Inputs that share a scale in 8-bit weights and rows, as in llama.cpp's q8_0.
pub(super) const GROUP: usize = 32;
/// Bytes of a group in a panel: per output a bf16 scale and the weights.
pub(super) const GROUP_BYTES: usize = PANEL * (2 + GROUP);

/// The weights of [`PANEL`] outputs.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) enum Panel<'a> {
    /// `[input][output]`.
    F32(&'a [f32]),
    /// `[input][output % 16][output / 16]`: the two halves of a 32-bit lane, widened by a shift or a mask.
    Bf16(&'a [u16]),
    /// `[input / 2][output][input % 2]`, for dot products of pairs; an odd last input is padded with 0.
    Bf16Pairs(&'a [u16]),
    /// Per group of [`GROUP`] inputs the bf16 scales, ordered as in [`Self::Bf16`], then
    /// `[input / 4][output][input % 4]`: the weight as a multiple of its scale, -127 to 127, plus
    /// 128, since the instruction multiplies unsigned with signed bytes.
    Bytes(&'a [u8]),
}

/// Index of an output among the 32 of a [`Panel::Bf16`].
pub(in crate::engine) fn lane(output: usize) -> usize {
    output % 16 * 2 + output / 16
}

/// Rows to multiply with a panel.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) enum InputRows<'a> {
    /// `[row][input]`.
    F32(&'a [f32]),
    /// `[row][input]` in bf16, for [`Panel::Bf16Pairs`], with an even number of inputs.
    Bf16(&'a [u16]),
    /// For [`Panel::Bytes`], with whole groups of inputs.
    Bytes(ByteRows<'a>),
}

/// Quantized rows with a scale per group of [`GROUP`] inputs.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct ByteRows<'a> {
    /// `[row][input]`, -127 to 127.
    pub(super) steps: &'a [i8],
    /// `[row][group]`.
    pub(super) scales: &'a [f32],
    /// `[row][group]`: -128 times the sum of the steps, which cancels the 128 added to the weights.
    pub(super) offsets: &'a [i32],
}

/// A matrix of which a range of rows can be taken.
pub(super) trait SliceRows: Sized {
    /// The given rows, of `inputs` values each.
    fn slice_rows(self, rows: Range<usize>, inputs: usize) -> Self;
}

impl<T> SliceRows for &[T] {
    fn slice_rows(self, rows: Range<usize>, inputs: usize) -> Self {
        &self[rows.start * inputs..rows.end * inputs]
    }
}

impl SliceRows for ByteRows<'_> {
    fn slice_rows(self, rows: Range<usize>, inputs: usize) -> Self {
        Self {
            steps: self.steps.slice_rows(rows.clone(), inputs),
            scales: self.scales.slice_rows(rows.clone(), inputs / GROUP),
            offsets: self.offsets.slice_rows(rows, inputs / GROUP),
        }
    }
}

impl SliceRows for InputRows<'_> {
    fn slice_rows(self, rows: Range<usize>, inputs: usize) -> Self {
        match self {
            Self::F32(values) => Self::F32(values.slice_rows(rows, inputs)),
            Self::Bf16(values) => Self::Bf16(values.slice_rows(rows, inputs)),
            Self::Bytes(values) => Self::Bytes(values.slice_rows(rows, inputs)),
        }
    }
}
