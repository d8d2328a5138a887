//! The decoder on tensors: one ragged forward pass over all tokens of a step.

use candle_core::{DType, Device, IndexOp as _, Result, Tensor};
use candle_nn::ops::rms_norm;

use crate::{
    batching::{BLOCK_TOKENS, BlockId},
    config::WeightKind,
    engine::local::{
        cpu::{
            model::{Chunk, Logits},
            rope::RopeTable,
        },
        files::{ModelFiles, Weights},
        runner::Forward,
        shape::Shape,
    },
};

use super::{
    Widths,
    attention::{Attention, Uploaded},
    cuda::Kernels,
    dense::{Dense, Target},
    layer::Layer,
    step::Step,
};

/// A decoder of the same families as [`CpuModel`](crate::engine::local::CpuModel), on any device of
/// candle's.
#[derive(Debug)]
pub struct GpuModel {
    shape: Shape,
    context_tokens: usize,
    blocks: usize,
    block_bytes: usize,
    device: Device,
    embedding: Tensor,
    layers: Vec<Layer>,
    attention: Attention,
    norm: Tensor,
    head: Dense,
}

impl GpuModel {
    /// Reads a checkpoint onto a device for contexts of up to `context_tokens_max` tokens, or the
    /// model's own limit if that is shorter or `context_tokens_max` is 0. The KV cache takes up to
    /// `kv_bytes_max` bytes, unless one full context needs more.
    ///
    /// # Errors
    /// One line that says what was found and what was expected.
    pub fn read(
        files: &ModelFiles,
        context_tokens_max: usize,
        kind: WeightKind,
        device: &Device,
        kv_bytes_max: usize,
    ) -> std::result::Result<Self, String> {
        let shape = Shape::from_json(
            &files.require("config.json")?,
            files.read("generation_config.json")?.as_deref(),
        )?;
        let target = Target {
            weights: &files.weights()?,
            device,
            dtype: dtype(kind)?,
        };
        Self::assemble(shape, &target, context_tokens_max, kv_bytes_max)
    }

    /// A model of the shape that `config.json` tells, with random weights: for benchmarks.
    ///
    /// # Errors
    /// One line when the file is not understood or the device has not the memory.
    pub fn random(
        config_json: &[u8],
        kind: WeightKind,
        device: &Device,
        kv_bytes_max: usize,
    ) -> std::result::Result<Self, String> {
        let target = Target {
            weights: &Weights::Random,
            device,
            dtype: dtype(kind)?,
        };
        let shape = Shape::from_json(config_json, None)?;
        Self::assemble(shape, &target, 0, kv_bytes_max)
    }

    fn assemble(
        shape: Shape,
        target: &Target<'_>,
        context_tokens_max: usize,
        kv_bytes_max: usize,
    ) -> std::result::Result<Self, String> {
        let context_tokens = match context_tokens_max {
            0 => shape.context_tokens,
            limit => limit.min(shape.context_tokens),
        };
        let widths = Widths {
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head: shape.head,
        };
        if widths.head > Widths::HEAD_MAX {
            return Err(format!(
                "a head is {} wide; on a device at most {} are expected",
                widths.head,
                Widths::HEAD_MAX
            ));
        }
        let block_bytes = BLOCK_TOKENS * kv_bytes_per_token(&shape, target.dtype);
        let blocks = (kv_bytes_max / block_bytes).max(context_tokens.div_ceil(BLOCK_TOKENS));
        let name = "model.embed_tokens.weight";
        let embedding = target.read(name, &[shape.vocabulary, shape.hidden])?;
        let tied = shape
            .tied
            .unwrap_or_else(|| !target.weights.has("lm_head.weight"));
        let head = if tied {
            Dense::new(&embedding, None).map_err(|error| error.to_string())?
        } else {
            let parts = [("lm_head".to_owned(), shape.vocabulary)];
            Dense::read(target, &parts, shape.hidden, false)?
        };
        let layers = (0..shape.layers)
            .map(|layer| Layer::read(target, &shape, widths, layer, blocks))
            .collect::<std::result::Result<_, _>>()?;
        Ok(Self {
            attention: attention(&shape, widths, context_tokens, target)
                .map_err(|error| error.to_string())?,
            norm: target.read("model.norm.weight", &[shape.hidden])?,
            device: target.device.clone(),
            embedding,
            layers,
            head,
            blocks,
            block_bytes,
            context_tokens,
            shape,
        })
    }

    /// What `config.json` says.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Longest context in tokens.
    pub fn context_tokens(&self) -> usize {
        self.context_tokens
    }

    /// Blocks of 32 tokens that the KV cache has.
    pub fn kv_blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes of KV cache that a block of 32 tokens takes.
    pub fn kv_bytes_per_block(&self) -> usize {
        self.block_bytes
    }

    /// Computes one ragged step, as [`CpuModel::forward`](crate::engine::local::CpuModel::forward).
    ///
    /// # Errors
    /// When a token is not in the vocabulary, a chunk exceeds the context or its block table, or
    /// the device fails.
    pub fn forward(&mut self, chunks: &[Chunk<'_>]) -> std::result::Result<Logits, String> {
        chunks.iter().try_for_each(|chunk| self.check(chunk))?;
        if chunks.is_empty() {
            return Ok(Logits::new(Vec::new(), self.shape.vocabulary));
        }
        let step = Step::new(chunks, self.attention.widths);
        self.compute(step).map_err(|error| error.to_string())
    }

    fn check(&self, chunk: &Chunk<'_>) -> std::result::Result<(), String> {
        let tokens = chunk.positions().end;
        if chunk.tokens.is_empty() || tokens > self.context_tokens {
            return Err(format!(
                "{tokens} tokens; 1 to {} are expected",
                self.context_tokens
            ));
        }
        let vocabulary = self.shape.vocabulary;
        let is_unknown = |token: &&u32| **token as usize >= vocabulary;
        if let Some(token) = chunk.tokens.iter().find(is_unknown) {
            return Err(format!(
                "token {token} is beyond the vocabulary of {vocabulary}"
            ));
        }
        let is_outside = |block: &BlockId| block.index() >= self.blocks;
        if chunk.blocks.len() * BLOCK_TOKENS < tokens || chunk.blocks.iter().any(is_outside) {
            return Err(format!(
                "{tokens} tokens do not lie within the {} blocks named, of {}",
                chunk.blocks.len(),
                self.blocks
            ));
        }
        Ok(())
    }

    fn compute(&self, step: Step) -> Result<Logits> {
        let uploaded = Uploaded {
            on_device: step.upload(&self.device)?,
            step,
        };
        let sections = &uploaded.step.sections;
        let tokens = uploaded.on_device.i(sections.tokens.clone())?;
        let epsilon = self.shape.norm_epsilon;
        let mut hidden = self.embedding.index_select(&tokens, 0)?;
        for layer in &self.layers {
            let normed = rms_norm(&hidden, &layer.attention_norm, epsilon)?;
            let qkv = layer.qkv.apply(&normed)?;
            let attended = self.attention.apply(&layer.attention, &qkv, &uploaded)?;
            hidden = (hidden + layer.output.apply(&attended)?)?;
            let normed = rms_norm(&hidden, &layer.mlp_norm, epsilon)?;
            let activated = self.attention.gate(&layer.gate_up.apply(&normed)?)?;
            hidden = (hidden + layer.down.apply(&activated)?)?;
        }
        let vocabulary = self.shape.vocabulary;
        // A step of nothing but unfinished prompts wants none; the head is the largest product.
        if sections.wanted.is_empty() {
            return Ok(Logits::new(Vec::new(), vocabulary));
        }
        let wanted = uploaded.on_device.i(sections.wanted.clone())?;
        let normed = rms_norm(&hidden.index_select(&wanted, 0)?, &self.norm, epsilon)?;
        // They are widened here: half as many bytes leave the device.
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
            "weights = \"q8\" are computed on the CPU only: set device = \"cpu\", or weights = \"bf16\""
                .to_owned(),
        ),
    }
}

fn kv_bytes_per_token(shape: &Shape, dtype: DType) -> usize {
    shape.layers * 2 * shape.kv_heads * shape.head * dtype.size_in_bytes()
}

fn attention(
    shape: &Shape,
    widths: Widths,
    context_tokens: usize,
    target: &Target<'_>,
) -> Result<Attention> {
    let home = Attention::home(target.device);
    let (cosines, sines) = RopeTable::new(shape, context_tokens).into_parts();
    let angles = cosines.len();
    Ok(Attention {
        widths,
        cosines: Tensor::from_vec(cosines, angles, &home)?,
        sines: Tensor::from_vec(sines, angles, &home)?,
        epsilon: shape.norm_epsilon,
        kernels: Kernels::compile(target.device, widths, target.dtype)?,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::engine::local::cpu::model::Rows;
    use crate::engine::local::gpu::model::*;

    fn open(name: &str, filler: f32) -> GpuModel {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
        let files = ModelFiles::ModelRegistry(fixtures.join(name));
        let mut model = GpuModel::read(&files, 128, WeightKind::F32, &Device::Cpu, 0)
            .expect("the fixture is a model");
        for layer in &mut model.layers {
            let arena = &layer.attention.arena;
            let filled = Tensor::full(filler, arena.shape(), arena.device());
            layer.attention.arena = filled.expect("the CPU has the memory");
        }
        model
    }

    /// Blocks come back with what another sequence left in them, which may be NaN.
    #[test]
    fn nothing_is_read_that_was_not_written() {
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
                        rows: Rows::All,
                    };
                    let logits = model.forward(&[chunk]).expect("it computes");
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
    fn eight_bit_weights_are_refused_with_the_way_out() {
        let config = include_bytes!("../../../../tests/fixtures/models/tiny-llama/config.json");
        let error = GpuModel::random(config, WeightKind::Q8, &Device::Cpu, 0)
            .expect_err("a device has no 8-bit products");
        assert!(error.contains("device = \"cpu\""), "{error}");
    }

    /// As many blocks as the bytes hold, but at least one whole context.
    #[test]
    fn the_cache_holds_its_bytes_or_one_context() {
        assert_eq!(open("tiny-llama", 0.0).kv_blocks(), 128 / BLOCK_TOKENS);
        let config = include_bytes!("../../../../tests/fixtures/models/tiny-llama/config.json");
        let blocks = |kind, bytes| {
            let model = GpuModel::random(config, kind, &Device::Cpu, bytes);
            model.expect("a model by chance").kv_blocks()
        };
        let shape = Shape::from_json(config, None).expect("the fixture is a model");
        let values = shape.layers * 2 * shape.kv_heads * shape.head * BLOCK_TOKENS;
        assert_eq!(blocks(WeightKind::F32, 100 * 4 * values), 100);
        assert_eq!(blocks(WeightKind::Bf16, 100 * 2 * values + 1), 100);
        assert_eq!(
            blocks(WeightKind::F32, 0),
            shape.context_tokens.div_ceil(BLOCK_TOKENS)
        );
    }
}
