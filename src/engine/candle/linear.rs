//! Matrix products whose rows do not know of one another.

use candle_core::{Device, Tensor};

use super::files::Weights;

/// The fewest rows that a product may have, so that a row's result is the same, bit for bit,
/// whatever the number of rows beside it.
///
/// gemm multiplies small shapes in other ways, whose sums differ in the last bit (`gemm-common`
/// 0.19, `gemm_basic_generic`: up to 256 results by dot products, one row or column as a vector,
/// 64 by 64 results with a block of its own along the inputs). Two rows are enough for real models.
/// `a_row_is_the_same_beside_any_number_of_others` holds it.
fn rows_min(outputs: usize, inputs: usize) -> usize {
    const DOT_RESULTS_MAX: usize = 256;
    const SMALL_SIDE_MAX: usize = 64;
    const SMALL_INPUTS_MAX: usize = 512;
    if outputs <= SMALL_SIDE_MAX && inputs > SMALL_INPUTS_MAX {
        return SMALL_SIDE_MAX.max(DOT_RESULTS_MAX / outputs) + 1;
    }
    (DOT_RESULTS_MAX / outputs + 1).max(2)
}

/// A linear layer: weight `[out, in]`, bias `[out]`.
#[derive(Debug)]
pub(super) struct Linear {
    pub(super) weight: Tensor,
    pub(super) bias: Option<Vec<f32>>,
}

impl Linear {
    /// Reads the named layers as one, their outputs side by side.
    pub(super) fn read(
        weights: &Weights,
        parts: &[(String, usize)],
        inputs: usize,
        bias: bool,
    ) -> Result<Self, String> {
        let tensors = parts
            .iter()
            .map(|(name, outputs)| weights.get(&format!("{name}.weight"), &[*outputs, inputs]))
            .collect::<Result<Vec<_>, _>>()?;
        let weight = Tensor::cat(&tensors, 0).map_err(|fault| fault.to_string())?;
        let mut biases = Vec::new();
        for (name, outputs) in parts.iter().filter(|_| bias) {
            biases.extend(weights.vector(&format!("{name}.bias"), *outputs)?);
        }
        let bias = bias.then_some(biases);
        Ok(Self { weight, bias })
    }

    /// `[rows][in]` to `[rows][out]`.
    pub(super) fn apply(&self, mut input: Vec<f32>) -> candle_core::Result<Vec<f32>> {
        let (outputs, inputs) = self.weight.dims2()?;
        let rows = input.len() / inputs;
        let padded = rows.max(rows_min(outputs, inputs));
        input.resize(padded * inputs, 0.0);
        let input = Tensor::from_vec(input, (padded, inputs), &Device::Cpu)?;
        let mut output = input
            .matmul(&self.weight.t()?)?
            .flatten_all()?
            .to_vec1::<f32>()?;
        output.truncate(rows * outputs);
        if let Some(bias) = &self.bias {
            for row in output.chunks_exact_mut(outputs) {
                add(row, bias);
            }
        }
        Ok(output)
    }
}

pub(super) fn add(to: &mut [f32], other: &[f32]) {
    for (to, other) in to.iter_mut().zip(other) {
        *to += other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_the_same_beside_any_number_of_others() {
        let shapes = [
            (1, 64),
            (2, 600),
            (48, 16),
            (64, 64),
            (64, 700),
            (96, 160),
            (384, 64),
            (576, 1536),
            (1728, 576),
        ];
        for (outputs, inputs) in shapes {
            let random = |rows: usize| {
                Tensor::randn(0.0f32, 1.0, (rows, inputs), &Device::Cpu).expect("memory")
            };
            let linear = Linear {
                weight: random(outputs),
                bias: None,
            };
            let input = random(150)
                .flatten_all()
                .and_then(|input| input.to_vec1::<f32>())
                .expect("floats");
            let whole = linear.apply(input.clone()).expect("a product");
            for rows in (1..20).chain([31, 32, 33, 63, 64, 65, 66, 100, 149]) {
                let part = linear
                    .apply(input[..rows * inputs].to_vec())
                    .expect("a product");
                assert!(
                    part == whole[..rows * outputs],
                    "{rows} rows of {inputs} to {outputs}"
                );
                let part = linear
                    .apply(input[(150 - rows) * inputs..].to_vec())
                    .expect("a product");
                assert!(
                    part == whole[(150 - rows) * outputs..],
                    "last {rows} rows of {inputs} to {outputs}"
                );
            }
        }
    }
}
