//! Linear layers with packed weights, and the embedding.

use half::bf16;

use crate::engine::local::files::CheckpointWeights;

use super::kernels::{Matrix, Precision, PreparedRows, gated};

/// A linear layer: weight `[out, in]`, bias `[out]`.
#[derive(Debug)]
pub(super) struct PackedLinear {
    matrix: Matrix,
}

impl PackedLinear {
    /// Reads the named layers as one, with concatenated outputs.
    pub(super) fn read(
        weights: &CheckpointWeights,
        parts: &[(String, usize)],
        inputs: usize,
        bias: bool,
        precision: Precision,
    ) -> Result<Self, String> {
        let (mut all, mut biases) = (Vec::new(), Vec::new());
        for (name, outputs) in parts {
            all.extend(weights.matrix(&format!("{name}.weight"), *outputs, inputs)?);
            if bias {
                biases.extend(weights.vector(&format!("{name}.bias"), *outputs)?);
            }
        }
        let outputs = parts.iter().map(|(_, outputs)| outputs).sum();
        let matrix = Matrix::pack(&all, outputs, inputs, precision);
        Ok(Self {
            matrix: match bias {
                true => matrix.with_bias(&biases),
                false => matrix,
            },
        })
    }

    /// A layer without bias.
    pub(super) fn new(matrix: Matrix) -> Self {
        Self { matrix }
    }

    /// Bytes of the packed weight.
    pub(super) fn bytes(&self) -> usize {
        self.matrix.bytes()
    }

    /// `[rows][in]` to `[rows][out]`, into `to`.
    pub(super) fn apply(&self, rows: &[f32], prepared: &mut PreparedRows, to: &mut Vec<f32>) {
        self.matrix.apply(rows, prepared, to);
    }

    /// Applies the layer to `rows`, `[rows][in]`, and adds the result to `to`, `[rows][out]`.
    pub(super) fn add(&self, rows: &[f32], prepared: &mut PreparedRows, to: &mut [f32]) {
        self.matrix.add(rows, prepared, to);
    }
}

/// The first half of a feed-forward layer: two linear layers, one gating the other (SwiGLU).
#[derive(Debug)]
pub(super) struct GatedLinear {
    gate: PackedLinear,
    up: PackedLinear,
}

impl GatedLinear {
    pub(super) fn new(gate: PackedLinear, up: PackedLinear) -> Self {
        Self { gate, up }
    }

    /// Bytes of the packed weights.
    pub(super) fn bytes(&self) -> usize {
        self.gate.bytes() + self.up.bytes()
    }

    /// `[rows][in]` to `[rows][out]`, into `to`.
    pub(super) fn apply(&self, rows: &[f32], prepared: &mut PreparedRows, to: &mut Vec<f32>) {
        gated(&self.gate.matrix, &self.up.matrix, rows, prepared, to);
    }
}

/// A row of floats per token, in bf16 where that is lossless. It is never rounded further: one row is
/// read per token, so a smaller type would save no time.
#[derive(Debug)]
pub(super) struct Embedding {
    width: usize,
    rows: EmbeddingRows,
}

#[derive(Debug)]
enum EmbeddingRows {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Embedding {
    /// Wraps `[token][width]`.
    pub(super) fn new(rows: Vec<f32>, width: usize) -> Self {
        let short: Vec<bf16> = rows.iter().map(|value| bf16::from_f32(*value)).collect();
        let is_exact = rows
            .iter()
            .zip(&short)
            .all(|(value, short)| short.to_f32() == *value);
        let rows = match is_exact {
            true => EmbeddingRows::Bf16(short),
            false => EmbeddingRows::F32(rows),
        };
        Self { width, rows }
    }

    /// Appends the row of a token.
    pub(super) fn push(&self, token: usize, to: &mut Vec<f32>) {
        let at = token * self.width..(token + 1) * self.width;
        match &self.rows {
            EmbeddingRows::F32(rows) => to.extend_from_slice(&rows[at]),
            EmbeddingRows::Bf16(rows) => to.extend(rows[at].iter().map(|value| value.to_f32())),
        }
    }

    /// Bytes of the rows.
    pub(super) fn bytes(&self) -> usize {
        match &self.rows {
            EmbeddingRows::F32(rows) => size_of_val(rows.as_slice()),
            EmbeddingRows::Bf16(rows) => size_of_val(rows.as_slice()),
        }
    }
}
