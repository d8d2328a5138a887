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
pub(in crate::engine) enum Precision {
    /// f32 throughout; weights that are bf16 stay so in memory and are widened on use.
    F32,
    /// Weights and inputs rounded to bf16, sums in f32, where the CPU multiplies pairs of bf16;
    /// elsewhere only the weights are rounded.
    Bf16,
    /// Weights and inputs in steps of 8 bits, with a scale for each group of 32 inputs, as
    /// llama.cpp's q8_0. Sums within a group are exact, those of the groups in f32. The LM head is no
    /// exception: it is a fifth of what a decoding step of a small model reads.
    Q8,
}

/// A weight of some outputs for each of some inputs, packed once, and a bias.
#[derive(Debug)]
pub(in crate::engine) struct Matrix {
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
    pub(in crate::engine) fn pack(
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
    pub(in crate::engine) fn with_bias(mut self, bias: &[f32]) -> Self {
        assert_eq!(bias.len(), self.outputs);
        let mut padded = Aligned::zeros(self.panels() * PANEL);
        padded[..bias.len()].copy_from_slice(bias);
        self.bias = Some(padded);
        self
    }

    /// Bytes of the packed weights.
    pub(in crate::engine) fn bytes(&self) -> usize {
        self.packed.bytes()
    }

    /// Multiplies `rows`, `[row][input]`, into `to`, which becomes `[row][output]`.
    ///
    /// # Panics
    /// When the length of `rows` is no multiple of the inputs.
    pub(in crate::engine) fn apply(&self, rows: &[f32], ready: &mut Ready, to: &mut Vec<f32>) {
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
    pub(in crate::engine) fn add(&self, rows: &[f32], ready: &mut Ready, to: &mut [f32]) {
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
pub(in crate::engine) fn gated(
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
pub(in crate::engine) fn is_worth_sharing(multiplications: usize) -> bool {
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
mod tests;
