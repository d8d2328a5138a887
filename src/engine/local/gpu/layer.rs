//! One layer's weights and its part of the KV cache.

use candle_core::Tensor;

use crate::{
    batching::BLOCK_TOKENS,
    engine::local::shape::{Family, Shape},
};

use super::{
    Widths,
    attention::{Attention, HeadNorms, LayerAttention},
    dense::{Dense, Target},
};

/// A layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attention_norm: Tensor,
    pub(super) qkv: Dense,
    pub(super) attention: LayerAttention,
    pub(super) output: Dense,
    pub(super) mlp_norm: Tensor,
    pub(super) gate_up: Dense,
    pub(super) down: Dense,
}

impl Layer {
    /// # Errors
    /// One line that says what was found and what was expected.
    pub(super) fn read(
        target: &Target<'_>,
        shape: &Shape,
        widths: Widths,
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
            Family::Qwen3 => Some(HeadNorms::read(target, &name, shape.head)?),
            _ => None,
        };
        let arena = Attention::arena(widths, blocks, target.dtype, target.device);
        let arena = arena.map_err(|error| {
            format!("no memory for a KV cache of {blocks} blocks of {BLOCK_TOKENS} tokens: {error}")
        })?;
        Ok(Self {
            attention_norm: target.read(&name("input_layernorm.weight"), &[shape.hidden])?,
            qkv: Dense::read(target, &qkv, shape.hidden, shape.qkv_bias)?,
            attention: LayerAttention {
                norms,
                window: shape.windows[layer].unwrap_or(0),
                arena,
            },
            output: Dense::read(target, &output, query_width, shape.output_bias)?,
            mlp_norm: target.read(&name("post_attention_layernorm.weight"), &[shape.hidden])?,
            gate_up: Dense::read(target, &gate_up, shape.hidden, shape.mlp_bias)?,
            down: Dense::read(target, &down, shape.intermediate, shape.mlp_bias)?,
        })
    }
}

impl HeadNorms {
    fn read(
        target: &Target<'_>,
        name: &impl Fn(&str) -> String,
        head: usize,
    ) -> Result<Self, String> {
        let home = Attention::home(target.device);
        let read = |part: &str| {
            let norm = target.weights.get(&name(part), &[head])?.to_device(&home);
            norm.map_err(|error| format!("tensor {}: {error}", name(part)))
        };
        Ok(Self {
            queries: read("self_attn.q_norm.weight")?,
            keys: read("self_attn.k_norm.weight")?,
        })
    }
}
