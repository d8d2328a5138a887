//! One layer's weights and its part of the KV cache.

use candle_core::Tensor;

use crate::{
    batching::BLOCK_TOKENS,
    engine::local::shape::{HeadWidths, ModelFamily, ModelShape},
};

use super::{
    attention::{Attention, HeadNorms, LayerAttention},
    dense::{TensorLinear, WeightLoader},
};

/// One layer.
#[derive(Debug)]
pub(super) struct GpuLayer {
    pub(super) attention_norm: Tensor,
    pub(super) qkv: TensorLinear,
    pub(super) attention: LayerAttention,
    pub(super) output: TensorLinear,
    pub(super) mlp_norm: Tensor,
    pub(super) gate_up: TensorLinear,
    pub(super) down: TensorLinear,
}

impl GpuLayer {
    /// # Errors
    /// One line: what was found and what was expected.
    pub(super) fn read(
        loader: &WeightLoader<'_>,
        shape: &ModelShape,
        widths: HeadWidths,
        layer: usize,
        blocks: usize,
    ) -> Result<Self, String> {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let (query_width, kv_width) = (shape.heads * shape.head, shape.kv_heads * shape.head);
        let qkv = [
            (name("self_attn.q_proj"), query_width),
            (name("self_attn.k_proj"), kv_width),
            (name("self_attn.v_proj"), kv_width),
        ];
        let gate_up = [
            (name("mlp.gate_proj"), shape.intermediate),
            (name("mlp.up_proj"), shape.intermediate),
        ];
        let output = [(name("self_attn.o_proj"), shape.hidden)];
        let down = [(name("mlp.down_proj"), shape.hidden)];
        let norms = match shape.family {
            ModelFamily::Qwen3 => Some(HeadNorms::read(loader, &name, shape.head)?),
            _ => None,
        };
        let arena = Attention::arena(widths, blocks, loader.dtype, loader.device);
        let arena = arena.map_err(|error| {
            format!(
                "cannot allocate a KV cache of {blocks} blocks of {BLOCK_TOKENS} tokens: {error}"
            )
        })?;
        Ok(Self {
            attention_norm: loader.read(&name("input_layernorm.weight"), &[shape.hidden])?,
            qkv: TensorLinear::read(loader, &qkv, shape.hidden, shape.qkv_bias)?,
            attention: LayerAttention {
                norms,
                window: shape.windows[layer].unwrap_or(0),
                arena,
            },
            output: TensorLinear::read(loader, &output, query_width, shape.output_bias)?,
            mlp_norm: loader.read(&name("post_attention_layernorm.weight"), &[shape.hidden])?,
            gate_up: TensorLinear::read(loader, &gate_up, shape.hidden, shape.mlp_bias)?,
            down: TensorLinear::read(loader, &down, shape.intermediate, shape.mlp_bias)?,
        })
    }
}

impl HeadNorms {
    fn read(
        loader: &WeightLoader<'_>,
        name: &impl Fn(&str) -> String,
        head: usize,
    ) -> Result<Self, String> {
        let home = Attention::home(loader.device);
        let read = |part: &str| {
            let norm = loader.weights.get(&name(part), &[head])?.to_device(&home);
            norm.map_err(|error| format!("tensor {}: {error}", name(part)))
        };
        Ok(Self {
            queries: read("self_attn.q_norm.weight")?,
            keys: read("self_attn.k_norm.weight")?,
        })
    }
}
