//! A weight matrix packed into panels, and its product with rows.

use std::ops::Range;

use super::{
    aligned::Aligned,
    columns::SharedColumns,
    elementwise::swiglu,
    isa::Isa,
    pack::{Packed, Precision},
    panel::{InputRows, PANEL, SliceRows as _},
    rows::PreparedRows,
    team::{share, threads},
    tile::multiply,
};

/// Multiplications below which a second thread does not pay off.
const SHARED_FROM: usize = 1 << 18;
/// Rows multiplied with a panel before the next one: their sums fit the first-level cache.
const TILE: usize = 48;

/// A weight per output and input, packed once, and an optional bias.
#[derive(Debug)]
pub(in crate::engine) struct Matrix {
    outputs: usize,
    inputs: usize,
    isa: Isa,
    packed: Packed,
    /// Padded to whole panels.
    bias: Option<Aligned<f32>>,
}

/// Sums of one tile.
type TileSums = [[f32; PANEL]; TILE];

impl Matrix {
    /// Packs `weights`, `[outputs][inputs]`.
    ///
    /// # Panics
    /// When the length does not match.
    pub(in crate::engine) fn pack(
        weights: &[f32],
        outputs: usize,
        inputs: usize,
        precision: Precision,
    ) -> Self {
        Self::pack_for(Isa::best(), weights, outputs, inputs, precision)
    }

    /// Like [`Self::pack`], for a given instruction set of this CPU.
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

    /// Adds a bias per output.
    ///
    /// # Panics
    /// When its length is not the number of outputs.
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
    /// When the length of `rows` is not a multiple of the inputs.
    pub(in crate::engine) fn apply(
        &self,
        rows: &[f32],
        prepared: &mut PreparedRows,
        to: &mut Vec<f32>,
    ) {
        to.resize(rows.len() / self.inputs * self.outputs, 0.0);
        let columns = SharedColumns::new(to, self.outputs);
        self.product(rows, prepared, |row, from, sums| {
            columns.write(row, from, sums);
        });
    }

    /// Multiplies `rows`, `[row][input]`, and adds the product to `to`, `[row][output]`.
    ///
    /// # Panics
    /// When the lengths do not match.
    pub(in crate::engine) fn add(&self, rows: &[f32], prepared: &mut PreparedRows, to: &mut [f32]) {
        assert_eq!(rows.len() / self.inputs * self.outputs, to.len());
        let columns = SharedColumns::new(to, self.outputs);
        self.product(rows, prepared, |row, from, sums| {
            columns.add(row, from, sums)
        });
    }

    /// Calls `write` with a row, the first output of a panel, and the row's sums for that panel.
    fn product(
        &self,
        rows: &[f32],
        prepared: &mut PreparedRows,
        write: impl Fn(usize, usize, &[f32]) + Sync,
    ) {
        let count = self.count(rows);
        let rows = self.prepare(rows, prepared);
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

    fn prepare<'a>(&self, rows: &'a [f32], prepared: &'a mut PreparedRows) -> InputRows<'a> {
        self.packed.prepare(self.isa, rows, self.inputs, prepared)
    }

    /// The bias plus the product of a panel with a tile of rows.
    fn sum<'a>(
        &self,
        panel: usize,
        rows: InputRows<'_>,
        tile: Range<usize>,
        to: &'a mut TileSums,
    ) -> &'a mut [[f32; PANEL]] {
        let to = &mut to[..tile.len()];
        let bias = self.bias.as_ref();
        let bias = bias.and_then(|bias| bias.as_chunks::<PANEL>().0.get(panel));
        to.fill(*bias.unwrap_or(&[0.0; PANEL]));
        let inputs = self.packed.padded(self.inputs);
        let rows = rows.slice_rows(tile, inputs);
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
/// When the matrices differ in shape, or the length of `rows` is not a multiple of the inputs.
pub(in crate::engine) fn gated(
    gate: &Matrix,
    up: &Matrix,
    rows: &[f32],
    prepared: &mut PreparedRows,
    to: &mut Vec<f32>,
) {
    assert!(gate.outputs == up.outputs && gate.inputs == up.inputs && gate.isa == up.isa);
    let count = gate.count(rows);
    to.resize(count * gate.outputs, 0.0);
    let columns = SharedColumns::new(to, gate.outputs);
    let rows = gate.prepare(rows, prepared);
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

/// Computes all panels, on all threads where that pays off.
fn each_panel(panels: usize, multiplications: usize, work: impl Fn(usize) + Sync) {
    if is_worth_sharing(panels * multiplications) {
        share(panels, || (), |(), panel| work(panel));
    } else {
        (0..panels).for_each(work);
    }
}

/// True when so many multiplications are faster on all threads.
pub(in crate::engine) fn is_worth_sharing(multiplications: usize) -> bool {
    multiplications >= SHARED_FROM && threads() > 1
}

/// Divides rows into tiles of nearly equal size.
fn tiles(rows: usize) -> impl Iterator<Item = Range<usize>> {
    let many = rows.div_ceil(rows.div_ceil(TILE).max(1)).max(1);
    (0..rows)
        .step_by(many)
        .map(move |from| from..rows.min(from + many))
}

#[cfg(test)]
mod tests;
