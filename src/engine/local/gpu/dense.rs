//! Linear layers computed by candle.

use candle_core::{DType, Device, Result, Tensor};

use crate::engine::local::files::CheckpointWeights;

/// Loads weights onto a device in a given type.
pub(super) struct WeightLoader<'a> {
    pub(super) weights: &'a CheckpointWeights,
    pub(super) device: &'a Device,
    pub(super) dtype: DType,
}

impl WeightLoader<'_> {
    /// Reads a tensor of the checkpoint onto the device.
    ///
    /// # Errors
    /// When it is missing, has an unexpected shape, or the device fails.
    pub(super) fn read(
        &self,
        name: &str,
        expected: &[usize],
    ) -> std::result::Result<Tensor, String> {
        self.send(&self.weights.get(name, expected)?)
            .map_err(|error| format!("tensor {name}: {error}"))
    }

    fn send(&self, tensor: &Tensor) -> Result<Tensor> {
        tensor.to_dtype(self.dtype)?.to_device(self.device)
    }
}

/// A linear layer.
#[derive(Debug)]
pub(super) struct TensorLinear {
    /// `[in, out]`, as a view of the checkpoint's `[out, in]`.
    weight: Tensor,
    bias: Option<Tensor>,
}

impl TensorLinear {
    /// Reads the named layers as one, with concatenated outputs.
    ///
    /// # Errors
    /// As [`WeightLoader::read`].
    pub(super) fn read(
        loader: &WeightLoader<'_>,
        parts: &[(String, usize)],
        inputs: usize,
        has_bias: bool,
    ) -> std::result::Result<Self, String> {
        let read_all = |kind: &str, inputs: &[usize]| {
            let tensors = parts.iter().map(|(name, outputs)| {
                let expected: Vec<usize> = std::iter::once(*outputs)
                    .chain(inputs.iter().copied())
                    .collect();
                loader.weights.get(&format!("{name}.{kind}"), &expected)
            });
            let tensors = tensors.collect::<std::result::Result<Vec<_>, _>>()?;
            Tensor::cat(&tensors, 0)
                .and_then(|all| loader.send(&all))
                .map_err(|error| format!("tensor {}.{kind}: {error}", parts[0].0))
        };
        Self::new(
            &read_all("weight", &[inputs])?,
            match has_bias {
                true => Some(read_all("bias", &[])?),
                false => None,
            },
        )
        .map_err(|error| error.to_string())
    }

    /// A layer with a weight `[out, in]` on the device.
    ///
    /// # Errors
    /// When the weight is not a matrix.
    pub(super) fn new(weight: &Tensor, bias: Option<Tensor>) -> Result<Self> {
        Ok(Self {
            weight: weight.t()?,
            bias,
        })
    }

    /// `[rows, in]` to `[rows, out]`.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn apply(&self, rows: &Tensor) -> Result<Tensor> {
        let output = rows.matmul(&self.weight)?;
        match &self.bias {
            Some(bias) => output.broadcast_add(bias),
            None => Ok(output),
        }
    }
}
