//! The decoder on tensors: one ragged forward pass over all tokens of a step.

use candle_core::{DType, Device, IndexOp as _, Result, Tensor};
use candle_nn::ops::rms_norm;

use crate::{
    batching::BLOCK_TOKENS,
    config::WeightKind,
    engine::local::{
        cpu::rope::RopeTable,
        files::{CheckpointWeights, ModelFiles},
        forward::{Chunk, Forward, Logits},
        shape::{HeadWidths, ModelShape},
    },
};

use super::{
    attention::Attention,
    cuda::Kernels,
    dense::{TensorLinear, WeightLoader},
    layer::GpuLayer,
    step::{DeviceStep, HEAD_MAX, Step},
};

/// A decoder of the same families as [`CpuModel`](crate::engine::local::CpuModel), on a candle
/// device.
#[derive(Debug)]
pub struct GpuModel {
    shape: ModelShape,
    context_tokens: usize,
    blocks: usize,
    block_bytes: usize,
    device: Device,
    embedding: Tensor,
    layers: Vec<GpuLayer>,
    attention: Attention,
    norm: Tensor,
    head: TensorLinear,
}

impl GpuModel {
    /// Reads a checkpoint onto a device for contexts of at most `context_tokens_max` tokens; 0 means
    /// the model's own limit, which always applies. The KV cache takes at most `kv_bytes_max` bytes,
    /// unless one full context needs more.
    ///
    /// # Errors
    /// One line: what was found and what was expected.
    pub fn read(
        files: &ModelFiles,
        context_tokens_max: usize,
        kind: WeightKind,
        device: &Device,
        kv_bytes_max: usize,
    ) -> std::result::Result<Self, String> {
        let shape = ModelShape::from_json(
            &files.require("config.json")?,
            files.read("generation_config.json")?.as_deref(),
        )?;
        let loader = WeightLoader {
            weights: &files.weights()?,
            device,
            dtype: dtype(kind)?,
        };
        Self::assemble(shape, &loader, context_tokens_max, kv_bytes_max)
    }

    /// Creates a model of the shape in `config.json` with random weights, for benchmarks.
    ///
    /// # Errors
    /// One line when the file is invalid or the device has not enough memory.
    pub(crate) fn random(
        config_json: &[u8],
        kind: WeightKind,
        device: &Device,
        kv_bytes_max: usize,
    ) -> std::result::Result<Self, String> {
        let loader = WeightLoader {
            weights: &CheckpointWeights::Random,
            device,
            dtype: dtype(kind)?,
        };
        let shape = ModelShape::from_json(config_json, None)?;
        Self::assemble(shape, &loader, 0, kv_bytes_max)
    }

    fn assemble(
        shape: ModelShape,
        loader: &WeightLoader<'_>,
        context_tokens_max: usize,
        kv_bytes_max: usize,
    ) -> std::result::Result<Self, String> {
        let context_tokens = match context_tokens_max {
            0 => shape.context_tokens,
            limit => limit.min(shape.context_tokens),
        };
        let widths = shape.head_widths();
        if widths.head > HEAD_MAX {
            return Err(format!(
                "the heads are {} wide; on a GPU at most {HEAD_MAX} is expected",
                widths.head
            ));
        }
        let block_bytes = BLOCK_TOKENS * kv_bytes_per_token(&shape, loader.dtype);
        let blocks = (kv_bytes_max / block_bytes).max(context_tokens.div_ceil(BLOCK_TOKENS));
        let name = "model.embed_tokens.weight";
        let embedding = loader.read(name, &[shape.vocabulary, shape.hidden])?;
        let tied = shape
            .tied
            .unwrap_or_else(|| !loader.weights.has("lm_head.weight"));
        let head = if tied {
            TensorLinear::new(&embedding, None).map_err(|error| error.to_string())?
        } else {
            let parts = [("lm_head".to_owned(), shape.vocabulary)];
            TensorLinear::read(loader, &parts, shape.hidden, false)?
        };
        let layers = (0..shape.layers)
            .map(|layer| GpuLayer::read(loader, &shape, widths, layer, blocks))
            .collect::<std::result::Result<_, _>>()?;
        Ok(Self {
            attention: attention(&shape, widths, context_tokens, loader)
                .map_err(|error| error.to_string())?,
            norm: loader.read("model.norm.weight", &[shape.hidden])?,
            device: loader.device.clone(),
            embedding,
            layers,
            head,
            blocks,
            block_bytes,
            context_tokens,
            shape,
        })
    }

    /// The model's shape.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// Context length in tokens.
    pub fn context_tokens(&self) -> usize {
        self.context_tokens
    }

    /// Blocks of 32 tokens in the KV cache.
    pub fn kv_blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes of KV cache per block of 32 tokens.
    pub fn kv_bytes_per_block(&self) -> usize {
        self.block_bytes
    }

    /// Computes one ragged step, like [`CpuModel::forward`](crate::engine::local::CpuModel::forward).
    ///
    /// # Errors
    /// When a token is not in the vocabulary, a chunk exceeds the context or its block table, or the
    /// device fails.
    pub fn forward(&mut self, chunks: &[Chunk<'_>]) -> std::result::Result<Logits, String> {
        for chunk in chunks {
            chunk.check(self.context_tokens, self.shape.vocabulary, self.blocks)?;
        }
        if chunks.is_empty() {
            return Ok(Logits::new(Vec::new(), self.shape.vocabulary));
        }
        let step = Step::new(chunks, self.attention.widths);
        self.compute(step).map_err(|error| error.to_string())
    }

    fn compute(&self, step: Step) -> Result<Logits> {
        let indices = DeviceStep {
            on_device: step.upload(&self.device)?,
            step,
        };
        let sections = &indices.step.sections;
        let tokens = indices.on_device.i(sections.tokens.clone())?;
        let epsilon = self.shape.norm_epsilon;
        let mut hidden = self.embedding.index_select(&tokens, 0)?;
        for layer in &self.layers {
            let normed = rms_norm(&hidden, &layer.attention_norm, epsilon)?;
            let qkv = layer.qkv.apply(&normed)?;
            let attended = self.attention.apply(&layer.attention, &qkv, &indices)?;
            hidden = (hidden + layer.output.apply(&attended)?)?;
            let normed = rms_norm(&hidden, &layer.mlp_norm, epsilon)?;
            let activated = self.attention.swiglu(&layer.gate_up.apply(&normed)?)?;
            hidden = (hidden + layer.down.apply(&activated)?)?;
        }
        let vocabulary = self.shape.vocabulary;
        // A step of incomplete prompts needs no logits, and the LM head is the largest product.
        if sections.wanted.is_empty() {
            return Ok(Logits::new(Vec::new(), vocabulary));
        }
        let wanted = indices.on_device.i(sections.wanted.clone())?;
        let normed = rms_norm(&hidden.index_select(&wanted, 0)?, &self.norm, epsilon)?;
        // Widen on the host: half as many bytes leave the device.
        let logits = self.head.apply(&normed)?.to_device(&Device::Cpu)?;
        let values = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        Ok(Logits::new(values, vocabulary))
    }
}

impl Forward for GpuModel {
    fn forward(&mut self, chunks: &[Chunk<'_>]) -> std::result::Result<Logits, String> {
        Self::forward(self, chunks)
    }
}

fn dtype(kind: WeightKind) -> std::result::Result<DType, String> {
    match kind {
        WeightKind::F32 => Ok(DType::F32),
        WeightKind::Bf16 => Ok(DType::BF16),
        WeightKind::Q8 => Err(
            "weights = \"q8\" requires the CPU: set device = \"cpu\", or weights = \"bf16\""
                .to_owned(),
        ),
    }
}

fn kv_bytes_per_token(shape: &ModelShape, dtype: DType) -> usize {
    shape.layers * 2 * shape.kv_heads * shape.head * dtype.size_in_bytes()
}

fn attention(
    shape: &ModelShape,
    widths: HeadWidths,
    context_tokens: usize,
    loader: &WeightLoader<'_>,
) -> Result<Attention> {
    let home = Attention::home(loader.device);
    let (cosines, sines) = RopeTable::new(shape, context_tokens).into_parts();
    let angles = cosines.len();
    Ok(Attention {
        widths,
        cosines: Tensor::from_vec(cosines, angles, &home)?,
        sines: Tensor::from_vec(sines, angles, &home)?,
        epsilon: shape.norm_epsilon,
        kernels: Kernels::compile(loader.device, widths, loader.dtype)?,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::batching::BlockId;
    use crate::engine::local::forward::LogitRows;
    use crate::engine::local::gpu::model::*;

    fn open(name: &str, filler: f32) -> GpuModel {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
        let files = ModelFiles::Directory(fixtures.join(name));
        let mut model = GpuModel::read(&files, 128, WeightKind::F32, &Device::Cpu, 0)
            .expect("the fixture is a model");
        for layer in &mut model.layers {
            let arena = &layer.attention.arena;
            let filled = Tensor::full(filler, arena.shape(), arena.device());
            layer.attention.arena = filled.expect("the CPU has the memory");
        }
        model
    }

    /// Reused blocks still hold another sequence's values, possibly NaN.
    #[test]
    fn unwritten_positions_are_never_read() {
        for name in ["tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-mistral"] {
            let rows = |filler: f32| {
                let mut model = open(name, filler);
                let tokens: Vec<u32> = (5..80).collect();
                let mut rows = Vec::new();
                for positions in [0..1, 1..40, 40..41, 41..75] {
                    let chunk = Chunk {
                        tokens: &tokens[positions.clone()],
                        from: positions.start,
                        blocks: &[BlockId(2), BlockId(0), BlockId(3)],
                        rows: LogitRows::All,
                    };
                    let logits = model.forward(&[chunk]).expect("computed");
                    rows.extend(logits.rows().flatten().copied());
                }
                rows
            };
            let rows_of_nan = rows(f32::NAN);
            assert!(rows_of_nan.iter().all(|logit| logit.is_finite()), "{name}");
            assert!(rows_of_nan == rows(0.0), "{name}");
        }
    }

    #[test]
    fn eight_bit_weights_are_rejected_with_alternatives() {
        let config = include_bytes!("../../../../tests/fixtures/models/tiny-llama/config.json");
        let error = GpuModel::random(config, WeightKind::Q8, &Device::Cpu, 0)
            .expect_err("GPUs have no 8-bit products");
        assert!(error.contains("device = \"cpu\""), "{error}");
    }

    /// As many blocks as fit the bytes, but at least one full context.
    #[test]
    fn the_cache_fits_its_bytes_or_one_context() {
        assert_eq!(open("tiny-llama", 0.0).kv_blocks(), 128 / BLOCK_TOKENS);
        let config = include_bytes!("../../../../tests/fixtures/models/tiny-llama/config.json");
        let blocks = |kind, bytes| {
            let model = GpuModel::random(config, kind, &Device::Cpu, bytes);
            model.expect("a random model").kv_blocks()
        };
        let shape = ModelShape::from_json(config, None).expect("the fixture is a model");
        let values = shape.layers * 2 * shape.kv_heads * shape.head * BLOCK_TOKENS;
        assert_eq!(blocks(WeightKind::F32, 100 * 4 * values), 100);
        assert_eq!(blocks(WeightKind::Bf16, 100 * 2 * values + 1), 100);
        assert_eq!(
            blocks(WeightKind::F32, 0),
            shape.context_tokens.div_ceil(BLOCK_TOKENS)
        );
    }
}
