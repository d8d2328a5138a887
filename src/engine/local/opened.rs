//! A model as it was read for the CPU or for a device, ready for the engine's thread.

use candle_core::Device;

use crate::{
    batching::BLOCK_TOKENS,
    config::{ModelConfig, WeightKind},
};

use super::{cpu::model::CpuModel, files::ModelFiles, gpu::GpuModel, runner::OnCpu, shape::Shape};

/// Names the arithmetic: changed whenever the same checkpoint may answer differently.
fn arithmetic(kind: WeightKind, device: Option<&Device>) -> String {
    match device {
        None => format!("promptyard candle {kind} 3"),
        Some(device) if device.is_cuda() => format!("promptyard candle {kind} cuda 1"),
        Some(_) => format!("promptyard candle {kind} metal 1"),
    }
}

/// A model that was read, and what the engine has to know of it.
pub(super) struct Opened<M> {
    pub(super) model: M,
    pub(super) shape: Shape,
    pub(super) context_tokens: usize,
    pub(super) kv_blocks: usize,
    /// Names how it computes.
    pub(super) arithmetic: String,
}

impl Opened<OnCpu> {
    /// # Errors
    /// One line that says what was found and what was expected.
    pub(super) fn on_cpu(files: &ModelFiles, config: &ModelConfig) -> Result<Self, String> {
        let model = CpuModel::read(files, config.context_tokens_max, config.weights)?;
        let context_tokens = model.context_tokens();
        let fit = config.kv_bytes_max / model.kv_bytes_per_block();
        // One whole context must fit, whatever the limit says.
        let kv_blocks = fit.max(context_tokens.div_ceil(BLOCK_TOKENS));
        let workspace = model.workspace(kv_blocks);
        Ok(Self {
            shape: model.shape().clone(),
            model: OnCpu { model, workspace },
            context_tokens,
            kv_blocks,
            arithmetic: arithmetic(config.weights, None),
        })
    }
}

impl Opened<GpuModel> {
    /// # Errors
    /// One line that says what was found and what was expected.
    pub(super) fn on_device(
        files: &ModelFiles,
        config: &ModelConfig,
        device: &Device,
    ) -> Result<Self, String> {
        let (context, kv_bytes) = (config.context_tokens_max, config.kv_bytes_max);
        let model = GpuModel::read(files, context, config.weights, device, kv_bytes)?;
        Ok(Self {
            shape: model.shape().clone(),
            context_tokens: model.context_tokens(),
            kv_blocks: model.kv_blocks(),
            arithmetic: arithmetic(config.weights, Some(device)),
            model,
        })
    }
}
