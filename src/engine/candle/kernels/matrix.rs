//! A weight matrix packed into panels, and its product with some rows.

use std::ops::Range;

use super::{
    aligned::Aligned,
    columns::Columns,
    elementwise::swiglu,
    isa::Isa,
    pack::Packed,
    rows::Ready,
    team::{share, threads},
    tile::{PANEL, Part as _, Rows, multiply},
};

/// Multiplications below which a second thread costs more than it brings.
const SHARED_FROM: usize = 1 << 18;
/// Rows that a panel is multiplied with before the next: their sums stay in the first-level cache.
const TILE: usize = 48;

/// What a product is computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine::candle) enum Precision {
    /// f32 throughout; weights that are bf16 stay so in memory and are widened on use.
    F32,
    /// Weights and inputs rounded to bf16, sums in f32, where the CPU multiplies pairs of bf16;
    /// elsewhere only the weights are rounded.
    Bf16,
    /// Weights and inputs in steps of 8 bits, with a scale for each group of 32 inputs, as
    /// llama.cpp's q8_0. Sums within a group are exact, those of the groups in f32.
    Q8,
}

/// A weight of some outputs for each of some inputs, packed once, and a bias.
#[derive(Debug)]
pub(in crate::engine::candle) struct Matrix {
    outputs: usize,
    inputs: usize,
    isa: Isa,
    packed: Packed,
    /// Of whole panels; none is zeros.
    bias: Option<Aligned<f32>>,
}

/// The sums of a tile.
type Sums = [[f32; PANEL]; TILE];

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
        Self {
            outputs,
            inputs,
            isa,
            packed: Packed::new(isa, weights, outputs, inputs, precision),
            bias: None,
        }
    }

    /// With a bias for each output.
    ///
    /// # Panics
    /// When there is not one for each.
    pub(in crate::engine::candle) fn with_bias(mut self, bias: &[f32]) -> Self {
        assert_eq!(bias.len(), self.outputs);
        let mut padded = Aligned::zeros(self.panels() * PANEL);
        padded[..bias.len()].copy_from_slice(bias);
        self.bias = Some(padded);
        self
    }

    /// Bytes of the packed weights.
    pub(in crate::engine::candle) fn bytes(&self) -> usize {
        self.packed.bytes()
    }

    /// Multiplies `rows`, `[row][input]`, into `to`, which becomes `[row][output]`.
    ///
    /// # Panics
    /// When the length of `rows` is no multiple of the inputs.
    pub(in crate::engine::candle) fn apply(
        &self,
        rows: &[f32],
        ready: &mut Ready,
        to: &mut Vec<f32>,
    ) {
        to.resize(rows.len() / self.inputs * self.outputs, 0.0);
        let columns = Columns::new(to, self.outputs);
        self.product(rows, ready, |row, from, sums| {
            columns.write(row, from, sums);
        });
    }

    /// Multiplies `rows`, `[row][input]`, and adds the product to `to`, `[row][output]`.
    ///
    /// # Panics
    /// When the lengths do not go together.
    pub(in crate::engine::candle) fn add(&self, rows: &[f32], ready: &mut Ready, to: &mut [f32]) {
        assert_eq!(rows.len() / self.inputs * self.outputs, to.len());
        let columns = Columns::new(to, self.outputs);
        self.product(rows, ready, |row, from, sums| columns.add(row, from, sums));
    }

    /// Gives `write` each row's sums of each panel: the row, the first output, and the sums.
    fn product(
        &self,
        rows: &[f32],
        ready: &mut Ready,
        write: impl Fn(usize, usize, &[f32]) + Sync,
    ) {
        let count = self.count(rows);
        let rows = self.ready(rows, ready);
        each_panel(self.panels(), count * self.inputs * PANEL, |panel| {
            let width = PANEL.min(self.outputs - panel * PANEL);
            let mut sums = [[0.0; PANEL]; TILE];
            for tile in tiles(count) {
                let sums = self.sum(panel, rows, tile.clone(), &mut sums);
                for (row, sums) in tile.zip(sums) {
                    write(row, panel * PANEL, &sums[..width]);
                }
            }
        });
    }

    fn count(&self, rows: &[f32]) -> usize {
        assert!(rows.len().is_multiple_of(self.inputs));
        rows.len() / self.inputs
    }

    fn ready<'a>(&self, rows: &'a [f32], ready: &'a mut Ready) -> Rows<'a> {
        self.packed.ready(self.isa, rows, self.inputs, ready)
    }

    /// The bias and the product of a panel with some of the rows.
    fn sum<'a>(
        &self,
        panel: usize,
        rows: Rows<'_>,
        tile: Range<usize>,
        to: &'a mut Sums,
    ) -> &'a mut [[f32; PANEL]] {
        let to = &mut to[..tile.len()];
        let bias = self.bias.as_ref();
        let bias = bias.and_then(|bias| bias.as_chunks::<PANEL>().0.get(panel));
        to.fill(*bias.unwrap_or(&[0.0; PANEL]));
        let inputs = self.packed.padded(self.inputs);
        let rows = rows.part(tile, inputs);
        multiply(
            self.isa,
            self.packed.panel(panel, self.inputs),
            rows,
            inputs,
            to,
        );
        to
    }

    fn panels(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }
}

/// The first half of a gated feed-forward layer (SwiGLU): `silu(rows × gate) * (rows × up)` into
/// `to`, which becomes `[row][output]`.
///
/// # Panics
/// When the two matrices differ in shape, or the length of `rows` is no multiple of the inputs.
pub(in crate::engine::candle) fn gated(
    gate: &Matrix,
    up: &Matrix,
    rows: &[f32],
    ready: &mut Ready,
    to: &mut Vec<f32>,
) {
    assert!(gate.outputs == up.outputs && gate.inputs == up.inputs && gate.isa == up.isa);
    let count = gate.count(rows);
    to.resize(count * gate.outputs, 0.0);
    let columns = Columns::new(to, gate.outputs);
    let rows = gate.ready(rows, ready);
    each_panel(gate.panels(), 2 * count * gate.inputs * PANEL, |panel| {
        let width = PANEL.min(gate.outputs - panel * PANEL);
        let (mut gates, mut ups) = ([[0.0; PANEL]; TILE], [[0.0; PANEL]; TILE]);
        for tile in tiles(count) {
            let gates = gate.sum(panel, rows, tile.clone(), &mut gates);
            let ups = up.sum(panel, rows, tile.clone(), &mut ups);
            swiglu(gate.isa, gates.as_flattened_mut(), ups.as_flattened());
            for (row, sums) in tile.zip(gates) {
                columns.write(row, panel * PANEL, &sums[..width]);
            }
        }
    });
}

/// Computes panels, on all threads when that is worth it.
fn each_panel(panels: usize, multiplications: usize, work: impl Fn(usize) + Sync) {
    if is_worth_sharing(panels * multiplications) {
        share(panels, || (), |(), panel| work(panel));
    } else {
        (0..panels).for_each(work);
    }
}

/// True when that many multiplications are better done by all threads.
pub(in crate::engine::candle) fn is_worth_sharing(multiplications: usize) -> bool {
    multiplications >= SHARED_FROM && threads() > 1
}

/// Cuts rows into tiles as even as can be.
fn tiles(rows: usize) -> impl Iterator<Item = Range<usize>> {
    let many = rows.div_ceil(rows.div_ceil(TILE).max(1)).max(1);
    (0..rows)
        .step_by(many)
        .map(move |from| from..rows.min(from + many))
}

#[cfg(test)]
mod tests {
    use half::bf16;
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
        matrix.apply(rows, &mut Ready::default(), &mut to);
        to
    }

    /// Each output's product in f64, and the sum of its terms' sizes.
    fn exact(weights: &[f32], rows: &[f32], outputs: usize, inputs: usize) -> Vec<(f64, f64)> {
        let pairs = rows
            .chunks(inputs)
            .flat_map(|row| (0..outputs).map(move |output| (row, output)));
        let sums = pairs.map(|(row, output)| {
            let terms = row.iter().zip(&weights[output * inputs..][..inputs]);
            let terms = terms.map(|(value, weight)| f64::from(*value) * f64::from(*weight));
            terms.fold((0.0, 0.0), |(sum, size), term| {
                (sum + term, size + f64::abs(term))
            })
        });
        sums.collect()
    }

    /// Each kind of storage on each instruction set that this CPU has.
    fn kinds() -> impl Iterator<Item = (Isa, Precision, bool)> {
        Isa::available().into_iter().flat_map(|isa| {
            [
                (isa, Precision::F32, false),
                (isa, Precision::F32, true),
                (isa, Precision::Bf16, false),
                (isa, Precision::Q8, false),
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
                Precision::Bf16 if isa.has_bf16_dot() => (rounded(&weights), rounded(&rows)),
                Precision::Bf16 => (rounded(&weights), rows.clone()),
                Precision::F32 | Precision::Q8 => (weights, rows.clone()),
            };
            // In steps of 8 bits a value is at most half a step off, and the largest is 127 steps.
            let (of_size, of_count) = match precision {
                Precision::F32 | Precision::Bf16 => (1e-6, 0.0),
                Precision::Q8 => (1e-6, 1.01 / 127.0),
            };
            let found = product(&matrix, &rows);
            assert_eq!(found.len(), 14 * outputs);
            let exact = exact(&seen_weights, &seen_rows, outputs, inputs);
            for (found, (sum, size)) in found.into_iter().zip(exact) {
                let most = of_size * size + of_count * inputs as f64 + 1e-7;
                assert!(
                    (f64::from(found) - sum).abs() <= most,
                    "{isa:?} {precision:?} {outputs}x{inputs}: {found} for {sum}"
                );
            }
        }
    }

    #[test]
    fn a_product_in_bytes_is_about_a_hundredth_off_and_the_same_on_every_instruction_set() {
        let (outputs, inputs) = (100, 576);
        // Sums of several random numbers, for the bell shape of real weights and rows.
        let bell = |count: usize, seed: u64| -> Vec<f32> {
            let numbers = random(6 * count, seed);
            numbers.chunks(6).map(|some| some.iter().sum()).collect()
        };
        let (weights, rows) = (bell(outputs * inputs, 8), bell(9 * inputs, 9));
        let exact = exact(&weights, &rows, outputs, inputs);
        let norm =
            |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let size = norm(&mut exact.iter().map(|(sum, _)| *sum));
        let mut plain: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            let off = [Precision::Q8, Precision::Bf16].map(|precision| {
                let matrix = Matrix::pack_for(isa, &weights, outputs, inputs, precision);
                let found = product(&matrix, &rows);
                if precision == Precision::Q8 {
                    assert!(
                        plain.get_or_insert_with(|| found.clone()) == &found,
                        "{isa:?}"
                    );
                }
                let pairs = found.iter().zip(&exact);
                norm(&mut pairs.map(|(found, (sum, _))| f64::from(*found) - sum)) / size
            });
            println!(
                "{isa:?}: q8 {:.5}, bf16 {:.5} of the product's size",
                off[0], off[1]
            );
            assert!((0.003..0.012).contains(&off[0]), "{isa:?}: {}", off[0]);
            assert!(off[1] < 0.004);
        }
    }

    #[test]
    fn a_row_is_the_same_beside_any_number_of_others() {
        for ((outputs, inputs), (isa, precision, _)) in SHAPES
            .into_iter()
            .chain([(96, 416)])
            .flat_map(|shape| kinds().map(move |kind| (shape, kind)))
        {
            let weights = random(outputs * inputs, 3);
            let matrix = Matrix::pack_for(isa, &weights, outputs, inputs, precision);
            // More than a tile.
            let many = TILE + 5;
            let rows = random(many * inputs, 4);
            let whole = product(&matrix, &rows);
            for count in (1..14).chain([24, 25, TILE, TILE + 1]) {
                let first = product(&matrix, &rows[..count * inputs]);
                assert!(first == whole[..count * outputs], "{isa:?} first {count}");
                let last = product(&matrix, &rows[(many - count) * inputs..]);
                assert!(
                    last == whole[(many - count) * outputs..],
                    "{isa:?} last {count}"
                );
            }
        }
    }

    #[test]
    fn weights_that_are_bf16_give_the_bits_of_f32_in_half_the_memory() {
        for isa in Isa::available() {
            let mut weights = rounded(&random(96 * 50, 5));
            let rows = random(5 * 50, 7);
            let short = Matrix::pack_for(isa, &weights, 96, 50, Precision::F32);
            // One more output, which is not bf16, keeps the others from being packed as such.
            weights.extend(random(50, 6));
            let long = Matrix::pack_for(isa, &weights, 97, 50, Precision::F32);
            let (found, expected) = (product(&short, &rows), product(&long, &rows));
            for (found, expected) in found.chunks(96).zip(expected.chunks(97)) {
                assert_eq!(found, &expected[..96]);
            }
            assert!(matches!(short.packed, Packed::Bf16(_)));
            assert!(matches!(long.packed, Packed::F32(_)));
            assert_eq!(short.bytes() * 2, long.bytes() / 4 * 3);
        }
    }

    #[test]
    fn a_bias_is_added_and_a_product_may_be_added_to_what_is_there() {
        for (isa, precision, _) in kinds() {
            let (weights, rows) = (random(70 * 40, 1), random(50 * 40, 2));
            let bias = random(70, 3);
            let matrix = Matrix::pack_for(isa, &weights, 70, 40, precision);
            let plain = product(&matrix, &rows);
            let matrix = matrix.with_bias(&bias);
            let biased = product(&matrix, &rows);
            let mut there = random(50 * 70, 4);
            let before = there.clone();
            matrix.add(&rows, &mut Ready::default(), &mut there);
            for at in 0..there.len() {
                assert!((biased[at] - plain[at] - bias[at % 70]).abs() < 1e-5);
                assert_eq!(there[at], before[at] + biased[at]);
            }
        }
    }

    #[test]
    fn gated_is_the_activation_of_two_products() {
        for (isa, precision, _) in kinds() {
            let pack = |seed| {
                let weights = random(70 * 40, seed);
                let matrix = Matrix::pack_for(isa, &weights, 70, 40, precision);
                matrix.with_bias(&random(70, seed + 1))
            };
            let (gate, up) = (pack(1), pack(5));
            let rows = random(53 * 40, 9);
            let mut found = vec![1.0];
            gated(&gate, &up, &rows, &mut Ready::default(), &mut found);
            let mut expected = product(&gate, &rows);
            swiglu(isa, &mut expected, &product(&up, &rows));
            assert!(found == expected, "{isa:?} {precision:?}");
        }
    }
}
