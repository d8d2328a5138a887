//! A weight matrix packed into panels, and its product with some rows.

use std::marker::PhantomData;

use half::bf16;
use rayon::prelude::*;

use super::{
    isa::Isa,
    tile::{PANEL, Panel, Rows, multiply},
};

/// Multiplications below which a second thread costs more than it brings.
const SHARED_FROM: usize = 1 << 20;

/// What a product is computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine::candle) enum Precision {
    /// f32 throughout; weights that are bf16 stay so in memory and are widened on use.
    F32,
    /// Weights and inputs rounded to bf16, sums in f32, where the CPU multiplies pairs of bf16;
    /// elsewhere only the weights are rounded.
    Bf16,
}

#[derive(Debug)]
enum Storage {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
    Bf16Pairs(Vec<u16>),
}

/// A weight of some outputs for each of some inputs, packed once.
#[derive(Debug)]
pub(in crate::engine::candle) struct Matrix {
    outputs: usize,
    inputs: usize,
    isa: Isa,
    storage: Storage,
}

impl Matrix {
    /// Packs `weights`, `[outputs][inputs]`.
    ///
    /// # Panics
    /// When the length is another.
    pub(in crate::engine::candle) fn pack(
        weights: &[f32],
        outputs: usize,
        inputs: usize,
        precision: Precision,
    ) -> Self {
        Self::pack_for(Isa::best(), weights, outputs, inputs, precision)
    }

    /// As [`Self::pack`], for an instruction set that this CPU has.
    pub(super) fn pack_for(
        isa: Isa,
        weights: &[f32],
        outputs: usize,
        inputs: usize,
        precision: Precision,
    ) -> Self {
        assert_eq!(weights.len(), outputs * inputs);
        // Outputs and inputs beyond the last are zeros.
        let weight = |output: usize, input: usize| match output < outputs && input < inputs {
            true => weights[output * inputs + input],
            false => 0.0,
        };
        let short = |output: usize, input: usize| bf16::from_f32(weight(output, input)).to_bits();
        let panels = outputs.div_ceil(PANEL);
        let storage = if precision == Precision::Bf16 && isa.has_bf16_dot() {
            let mut packed = Vec::with_capacity(panels * inputs.next_multiple_of(2) * PANEL);
            for (panel, pair) in grid(panels, inputs.div_ceil(2)) {
                for output in panel * PANEL..(panel + 1) * PANEL {
                    packed.extend([short(output, 2 * pair), short(output, 2 * pair + 1)]);
                }
            }
            Storage::Bf16Pairs(packed)
        } else if precision == Precision::Bf16 || weights.iter().all(|w| is_bf16(*w)) {
            let mut packed = Vec::with_capacity(panels * inputs * PANEL);
            for (panel, input) in grid(panels, inputs) {
                for lane in panel * PANEL..panel * PANEL + PANEL / 2 {
                    packed.extend([short(lane, input), short(lane + PANEL / 2, input)]);
                }
            }
            Storage::Bf16(packed)
        } else {
            let mut packed = Vec::with_capacity(panels * inputs * PANEL);
            for (panel, input) in grid(panels, inputs) {
                packed.extend((panel * PANEL..(panel + 1) * PANEL).map(|o| weight(o, input)));
            }
            Storage::F32(packed)
        };
        Self {
            outputs,
            inputs,
            isa,
            storage,
        }
    }

    /// Outputs of a row.
    pub(in crate::engine::candle) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Bytes of the packed weights.
    pub(in crate::engine::candle) fn bytes(&self) -> usize {
        match &self.storage {
            Storage::F32(packed) => size_of_val(packed.as_slice()),
            Storage::Bf16(packed) | Storage::Bf16Pairs(packed) => size_of_val(packed.as_slice()),
        }
    }

    /// Multiplies `rows`, `[row][input]`, into `to`, which becomes `[row][output]`.
    ///
    /// # Panics
    /// When the length of `rows` is no multiple of the inputs.
    pub(in crate::engine::candle) fn apply(&self, rows: &[f32], to: &mut Vec<f32>) {
        assert_eq!(rows.len() % self.inputs, 0);
        let count = rows.len() / self.inputs;
        to.clear();
        to.resize(count * self.outputs, 0.0);
        let short;
        let rows = if matches!(self.storage, Storage::Bf16Pairs(_)) {
            short = pairs(rows, self.inputs);
            Rows::Bf16(&short)
        } else {
            Rows::F32(rows)
        };
        let columns = Columns::new(to, self.outputs);
        let work = |sums: &mut Vec<[f32; PANEL]>, panel: usize| {
            sums.clear();
            sums.resize(count, [0.0; PANEL]);
            let inputs = match self.storage {
                Storage::Bf16Pairs(_) => self.inputs.next_multiple_of(2),
                _ => self.inputs,
            };
            multiply(self.isa, self.panel(panel), rows, inputs, sums);
            let from = panel * PANEL;
            let width = PANEL.min(self.outputs - from);
            for (row, sums) in sums.iter().enumerate() {
                columns.write(row, from, &sums[..width]);
            }
        };
        let panels = self.outputs.div_ceil(PANEL);
        if is_worth_sharing(count * self.outputs * self.inputs) {
            // A few pieces for each thread, so that one that is held up does not hold up all.
            let pieces = panels / (4 * rayon::current_num_threads());
            (0..panels)
                .into_par_iter()
                .with_min_len(pieces.max(1))
                .for_each_init(Vec::new, work);
        } else {
            let mut sums = Vec::new();
            (0..panels).for_each(|panel| work(&mut sums, panel));
        }
    }

    fn panel(&self, at: usize) -> Panel<'_> {
        let part = self.inputs * PANEL;
        let even = self.inputs.next_multiple_of(2) * PANEL;
        match &self.storage {
            Storage::F32(packed) => Panel::F32(&packed[at * part..][..part]),
            Storage::Bf16(packed) => Panel::Bf16(&packed[at * part..][..part]),
            Storage::Bf16Pairs(packed) => Panel::Bf16Pairs(&packed[at * even..][..even]),
        }
    }
}

/// True when that many multiplications are better done by all threads.
pub(in crate::engine::candle) fn is_worth_sharing(multiplications: usize) -> bool {
    multiplications >= SHARED_FROM && rayon::current_num_threads() > 1
}

fn grid(panels: usize, inputs: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..panels).flat_map(move |panel| (0..inputs).map(move |input| (panel, input)))
}

fn is_bf16(value: f32) -> bool {
    value.to_bits() & 0xffff == 0
}

/// Rows rounded to bf16, an odd width padded by 0.
fn pairs(rows: &[f32], inputs: usize) -> Vec<u16> {
    let mut short = Vec::with_capacity(rows.len() / inputs * inputs.next_multiple_of(2));
    for row in rows.chunks_exact(inputs) {
        short.extend(row.iter().map(|value| bf16::from_f32(*value).to_bits()));
        short.extend((inputs % 2 == 1).then_some(0));
    }
    short
}

/// A matrix whose columns several threads fill, no two of them the same ones.
pub(in crate::engine::candle) struct Columns<'a> {
    to: *mut f32,
    rows: usize,
    width: usize,
    _lent: PhantomData<&'a mut [f32]>,
}

#[expect(
    unsafe_code,
    reason = "safe Rust splits a matrix by rows, not by columns"
)]
// SAFETY: `write` is the only access; its callers write disjoint columns.
unsafe impl Sync for Columns<'_> {}

impl<'a> Columns<'a> {
    /// Borrows `to`, `[row][width]`.
    pub(in crate::engine::candle) fn new(to: &'a mut [f32], width: usize) -> Self {
        Self {
            to: to.as_mut_ptr(),
            rows: to.len() / width,
            width,
            _lent: PhantomData,
        }
    }

    /// Writes a part of a row. Two threads must not write the same place at the same time; a
    /// caller gives each its own columns.
    ///
    /// # Panics
    /// When the part is not within the row.
    #[expect(unsafe_code, reason = "see `Columns`")]
    pub(in crate::engine::candle) fn write(&self, row: usize, from: usize, values: &[f32]) {
        assert!(row < self.rows && from + values.len() <= self.width);
        // SAFETY: within the borrowed slice, as just checked; no other thread writes these columns.
        unsafe {
            let at = self.to.add(row * self.width + from);
            std::ptr::copy_nonoverlapping(values.as_ptr(), at, values.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    fn random(count: usize, seed: u64) -> Vec<f32> {
        let mut dice = StdRng::seed_from_u64(seed);
        (0..count).map(|_| dice.random_range(-1.0..1.0)).collect()
    }

    fn rounded(values: &[f32]) -> Vec<f32> {
        let short = values.iter().map(|value| bf16::from_f32(*value).to_f32());
        short.collect()
    }

    fn product(matrix: &Matrix, rows: &[f32]) -> Vec<f32> {
        let mut to = vec![9.0; 3];
        matrix.apply(rows, &mut to);
        to
    }

    /// Each kind of storage on each instruction set that this CPU has.
    fn kinds() -> impl Iterator<Item = (Isa, Precision, bool)> {
        Isa::available().into_iter().flat_map(|isa| {
            [
                (isa, Precision::F32, false),
                (isa, Precision::F32, true),
                (isa, Precision::Bf16, false),
            ]
        })
    }

    const SHAPES: [(usize, usize); 6] = [(1, 1), (5, 7), (32, 64), (33, 31), (100, 96), (64, 130)];

    #[test]
    fn is_the_product_in_f64_to_rounding() {
        for ((outputs, inputs), (isa, precision, is_short)) in SHAPES
            .into_iter()
            .flat_map(|shape| kinds().map(move |kind| (shape, kind)))
        {
            let mut weights = random(outputs * inputs, 1);
            if is_short {
                weights = rounded(&weights);
            }
            let rows = random(14 * inputs, 2);
            let matrix = Matrix::pack_for(isa, &weights, outputs, inputs, precision);
            let (seen_weights, seen_rows) = match precision {
                Precision::F32 => (weights, rows.clone()),
                Precision::Bf16 if isa.has_bf16_dot() => (rounded(&weights), rounded(&rows)),
                Precision::Bf16 => (rounded(&weights), rows.clone()),
            };
            let found = product(&matrix, &rows);
            assert_eq!(found.len(), 14 * outputs);
            for (at, found) in found.into_iter().enumerate() {
                let (row, output) = (at / outputs, at % outputs);
                let terms = (0..inputs).map(|input| {
                    f64::from(seen_rows[row * inputs + input])
                        * f64::from(seen_weights[output * inputs + input])
                });
                let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| {
                    (sum + term, size + f64::abs(term))
                });
                assert!(
                    (f64::from(found) - sum).abs() <= 1e-6 * size + 1e-7,
                    "{isa:?} {precision:?} {outputs}x{inputs}: {found} for {sum}"
                );
            }
        }
    }

    #[test]
    fn a_row_is_the_same_beside_any_number_of_others() {
        for ((outputs, inputs), (isa, precision, _)) in SHAPES
            .into_iter()
            .flat_map(|shape| kinds().map(move |kind| (shape, kind)))
        {
            let weights = random(outputs * inputs, 3);
            let matrix = Matrix::pack_for(isa, &weights, outputs, inputs, precision);
            let rows = random(40 * inputs, 4);
            let whole = product(&matrix, &rows);
            for count in (1..14).chain([24, 25, 39]) {
                let first = product(&matrix, &rows[..count * inputs]);
                assert!(first == whole[..count * outputs], "{isa:?} first {count}");
                let last = product(&matrix, &rows[(40 - count) * inputs..]);
                assert!(
                    last == whole[(40 - count) * outputs..],
                    "{isa:?} last {count}"
                );
            }
        }
    }

    #[test]
    fn weights_that_are_bf16_give_the_bits_of_f32_in_half_the_memory() {
        for isa in Isa::available() {
            let weights = rounded(&random(96 * 50, 5));
            let short = Matrix::pack_for(isa, &weights, 96, 50, Precision::F32);
            let mut long = Matrix::pack_for(isa, &random(96 * 50, 6), 96, 50, Precision::F32);
            let packed = grid(3, 50).flat_map(|(panel, input)| {
                let weights = &weights;
                (0..PANEL).map(move |output| weights[(panel * PANEL + output) * 50 + input])
            });
            long.storage = Storage::F32(packed.collect());
            let rows = random(5 * 50, 7);
            assert_eq!(product(&short, &rows), product(&long, &rows));
            assert_eq!(short.bytes() * 2, long.bytes());
        }
    }
}
