//! Linear layers as candle computes them.

use candle_core::{DType, Device, Result, Tensor};

use crate::engine::local::files::Weights;

/// Where weights go and what they become.
pub(super) struct Target<'a> {
    pub(super) weights: &'a Weights,
    pub(super) device: &'a Device,
    pub(super) dtype: DType,
}

impl Target<'_> {
    /// A tensor of the checkpoint on the device.
    ///
    /// # Errors
    /// When it is missing, has another shape than expected, or the device refuses.
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
pub(super) struct Dense {
    /// `[in, out]`, as a view of the checkpoint's `[out, in]`.
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Dense {
    /// Reads the named layers as one, their outputs side by side.
    ///
    /// # Errors
    /// As [`Target::read`].
    pub(super) fn read(
        target: &Target<'_>,
        parts: &[(String, usize)],
        inputs: usize,
        has_bias: bool,
    ) -> std::result::Result<Self, String> {
        let read_all = |kind: &str, inputs: &[usize]| {
            let tensors = parts.iter().map(|(name, outputs)| {
                let expected: Vec<usize> = std::iter::once(*outputs)
                    .chain(inputs.iter().copied())
                    .collect();
                target.weights.get(&format!("{name}.{kind}"), &expected)
            });
            let tensors = tensors.collect::<std::result::Result<Vec<_>, _>>()?;
            Tensor::cat(&tensors, 0)
                .and_then(|all| target.send(&all))
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

    /// From a weight `[out, in]` that is on the device.
    ///
    /// # Errors
    /// When the weight is no matrix.
    pub(super) fn new(weight: &Tensor, bias: Option<Tensor>) -> Result<Self> {
        Ok(Self {
            weight: weight.t()?,
            bias,
        })
    }

    /// `[rows, in]` to `[rows, out]`.
    ///
    /// # Errors
    /// When the device refuses.
    pub(super) fn apply(&self, rows: &Tensor) -> Result<Tensor> {
        let output = rows.matmul(&self.weight)?;
        match &self.bias {
            Some(bias) => output.broadcast_add(bias),
            None => Ok(output),
        }
    }
}
