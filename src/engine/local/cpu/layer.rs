//! A layer's weights, including tensors that only some families have.

use crate::engine::local::{
    files::CheckpointWeights,
    shape::{ModelFamily, ModelShape},
};

use super::{
    kernels::Precision,
    linear::{GatedLinear, PackedLinear},
};

/// One layer with packed matrices.
#[derive(Debug)]
pub(super) struct CpuLayer {
    pub(super) attention_norm: Vec<f32>,
    pub(super) qkv: PackedLinear,
    /// Qwen3's norms of each head's queries and keys.
    pub(super) head_norms: Option<(Vec<f32>, Vec<f32>)>,
    pub(super) output: PackedLinear,
    pub(super) mlp_norm: Vec<f32>,
    pub(super) gate_up: GatedLinear,
    pub(super) down: PackedLinear,
    /// Sliding window in tokens, the current one included; `None` is unlimited.
    pub(super) window: Option<usize>,
}

impl CpuLayer {
    /// Reads a layer's tensors.
    ///
    /// # Errors
    /// When one is missing, or its shape or type is unexpected.
    pub(super) fn read(
        weights: &CheckpointWeights,
        shape: &ModelShape,
        layer: usize,
        precision: Precision,
    ) -> Result<Self, String> {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let (query_width, kv_width) = (shape.heads * shape.head, shape.kv_heads * shape.head);
        let qkv = [
            (name("self_attn.q_proj"), query_width),
            (name("self_attn.k_proj"), kv_width),
            (name("self_attn.v_proj"), kv_width),
        ];
        let gate_up = |part: &str| {
            let parts = [(name(part), shape.intermediate)];
            PackedLinear::read(weights, &parts, shape.hidden, shape.mlp_bias, precision)
        };
        let head_norms = if shape.family == ModelFamily::Qwen3 {
            let queries = weights.vector(&name("self_attn.q_norm.weight"), shape.head)?;
            Some((
                queries,
                weights.vector(&name("self_attn.k_norm.weight"), shape.head)?,
            ))
        } else {
            None
        };
        Ok(Self {
            attention_norm: weights.vector(&name("input_layernorm.weight"), shape.hidden)?,
            qkv: PackedLinear::read(weights, &qkv, shape.hidden, shape.qkv_bias, precision)?,
            head_norms,
            output: PackedLinear::read(
                weights,
                &[(name("self_attn.o_proj"), shape.hidden)],
                query_width,
                shape.output_bias,
                precision,
            )?,
            mlp_norm: weights.vector(&name("post_attention_layernorm.weight"), shape.hidden)?,
            gate_up: GatedLinear::new(gate_up("mlp.gate_proj")?, gate_up("mlp.up_proj")?),
            down: PackedLinear::read(
                weights,
                &[(name("mlp.down_proj"), shape.hidden)],
                shape.intermediate,
                shape.mlp_bias,
                precision,
            )?,
            window: shape.windows[layer],
        })
    }

    /// Bytes of the packed weights.
    pub(super) fn bytes(&self) -> usize {
        self.qkv.bytes() + self.output.bytes() + self.gate_up.bytes() + self.down.bytes()
    }
}
