//! The decoder: one ragged forward pass over all tokens of a step.

use std::path::Path;

use crate::{
    batching::{BLOCK_TOKENS, BlockId},
    config::WeightKind,
    engine::local::{
        files::{CheckpointWeights, ModelFiles},
        forward::{Chunk, Forward, LogitRows, Logits},
        shape::ModelShape,
    },
};

use super::{
    arena::KvArena,
    attention::{LayerCache, Queries, attend},
    kernels::{Isa, Matrix, Precision, PreparedRows, rms_norm},
    layer::CpuLayer,
    linear::{Embedding, PackedLinear},
    profile::{PhaseClock, Profile, StepPhase},
    rope::RopeTable,
};

/// The mutable state of steps: the paged KV cache and reusable buffers.
#[derive(Debug)]
pub struct Workspace {
    arena: KvArena,
    scratch: StepScratch,
}

/// Buffers of a step, reused by every layer.
#[derive(Debug, Default)]
struct StepScratch {
    hidden: Vec<f32>,
    normed: Vec<f32>,
    prepared: PreparedRows,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    activated: Vec<f32>,
}

/// A decoder with its workspace, as the engine's thread owns it.
#[derive(Debug)]
pub(in crate::engine::local) struct CpuBackend {
    pub(in crate::engine::local) model: CpuModel,
    pub(in crate::engine::local) workspace: Workspace,
}

impl Forward for CpuBackend {
    fn forward(&mut self, chunks: &[Chunk<'_>]) -> Result<Logits, String> {
        self.model.forward(&mut self.workspace, chunks)
    }
}

/// A decoder of the Llama, Mistral, Qwen2 or Qwen3 family, computed on the CPU.
#[derive(Debug)]
pub struct CpuModel {
    shape: ModelShape,
    context_tokens: usize,
    isa: Isa,
    precision: Precision,
    embedding: Embedding,
    layers: Vec<CpuLayer>,
    norm: Vec<f32>,
    head: PackedLinear,
    rope: RopeTable,
}

impl CpuModel {
    /// Opens a checkpoint's directory with f32 weights and the model's own context length.
    ///
    /// # Errors
    /// One line: what was found and what was expected.
    pub fn open(folder: &Path) -> Result<Self, String> {
        Self::read(
            &ModelFiles::Directory(folder.to_owned()),
            0,
            WeightKind::F32,
        )
    }

    /// Reads a checkpoint for contexts of at most `context_tokens_max` tokens; 0 means the model's own
    /// limit, which always applies.
    ///
    /// # Errors
    /// One line: what was found and what was expected.
    pub fn read(
        files: &ModelFiles,
        context_tokens_max: usize,
        kind: WeightKind,
    ) -> Result<Self, String> {
        let shape = ModelShape::from_json(
            &files.require("config.json")?,
            files.read("generation_config.json")?.as_deref(),
        )?;
        Self::assemble(shape, &files.weights()?, context_tokens_max, kind)
    }

    /// Creates a model of the shape in `config.json` with random weights, for benchmarks.
    ///
    /// # Errors
    /// One line when the file is invalid.
    pub(crate) fn random(config_json: &[u8], kind: WeightKind) -> Result<Self, String> {
        let shape = ModelShape::from_json(config_json, None)?;
        Self::assemble(shape, &CheckpointWeights::Random, 0, kind)
    }

    fn assemble(
        shape: ModelShape,
        weights: &CheckpointWeights,
        context_tokens_max: usize,
        kind: WeightKind,
    ) -> Result<Self, String> {
        let precision = match kind {
            WeightKind::F32 => Precision::F32,
            WeightKind::Bf16 => Precision::Bf16,
            WeightKind::Q8 => Precision::Q8,
        };
        let context_tokens = match context_tokens_max {
            0 => shape.context_tokens,
            limit => limit.min(shape.context_tokens),
        };
        let embedding =
            weights.matrix("model.embed_tokens.weight", shape.vocabulary, shape.hidden)?;
        let tied = shape.tied.unwrap_or_else(|| !weights.has("lm_head.weight"));
        let head = if tied {
            PackedLinear::new(Matrix::pack(
                &embedding,
                shape.vocabulary,
                shape.hidden,
                precision,
            ))
        } else {
            let parts = [("lm_head".to_owned(), shape.vocabulary)];
            PackedLinear::read(weights, &parts, shape.hidden, false, precision)?
        };
        Ok(Self {
            layers: (0..shape.layers)
                .map(|layer| CpuLayer::read(weights, &shape, layer, precision))
                .collect::<Result<_, _>>()?,
            norm: weights.vector("model.norm.weight", shape.hidden)?,
            rope: RopeTable::new(&shape, context_tokens),
            embedding: Embedding::new(embedding, shape.hidden),
            isa: Isa::best(),
            precision,
            head,
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

    /// Bytes of KV cache per block of 32 tokens.
    pub fn kv_bytes_per_block(&self) -> usize {
        self.shape.layers * self.shape.head_widths().bytes_per_block(self.precision)
    }

    /// Bytes of the weights in memory.
    pub fn weight_bytes(&self) -> usize {
        self.product_bytes() + self.embedding.bytes()
    }

    /// Bytes of the weights that every step reads: all but the embedding.
    pub(crate) fn product_bytes(&self) -> usize {
        self.layers.iter().map(CpuLayer::bytes).sum::<usize>() + self.head.bytes()
    }

    /// Floating-point operations per token with `context` visible tokens, logits included.
    pub(crate) fn flops_per_token(&self, context: usize) -> usize {
        let shape = &self.shape;
        let (queries, kv) = (shape.heads * shape.head, shape.kv_heads * shape.head);
        let layer = shape.hidden * (2 * queries + 2 * kv) + 3 * shape.hidden * shape.intermediate;
        let attention = 2 * context * queries;
        2 * (shape.layers * (layer + attention) + shape.hidden * shape.vocabulary)
    }

    /// The state for steps with so many KV blocks. The system allocates memory when a block is first
    /// used.
    pub fn workspace(&self, kv_blocks: usize) -> Workspace {
        Workspace {
            arena: KvArena::new(
                self.shape.layers,
                self.shape.head_widths(),
                self.precision,
                kv_blocks,
            ),
            scratch: StepScratch::default(),
        }
    }

    /// Computes the logits after each token of a single sequence.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn logits(&self, tokens: &[u32]) -> Result<Logits, String> {
        let blocks: Vec<BlockId> = (0..tokens.len().div_ceil(BLOCK_TOKENS) as u32)
            .map(BlockId)
            .collect();
        let chunk = Chunk {
            tokens,
            from: 0,
            blocks: &blocks,
            rows: LogitRows::All,
        };
        self.forward(&mut self.workspace(blocks.len()), &[chunk])
    }

    /// Computes one ragged step. A sequence's logits are bit-identical whatever else is in the step,
    /// however its prompt is chunked, and whether its leading blocks were computed for it or for another
    /// sequence with the same prefix. In each layer, the keys and values of all chunks are written
    /// before any of them attends, so chunks of one step may share blocks.
    ///
    /// # Errors
    /// When a token is not in the vocabulary, a sequence exceeds the context, or a block table does
    /// not cover it; then nothing was computed.
    pub fn forward(
        &self,
        workspace: &mut Workspace,
        chunks: &[Chunk<'_>],
    ) -> Result<Logits, String> {
        self.forward_profiled(workspace, chunks, None)
    }

    /// Like [`Self::forward`], and adds the time of each phase to `profile`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub(crate) fn forward_profiled(
        &self,
        workspace: &mut Workspace,
        chunks: &[Chunk<'_>],
        profile: Option<&mut Profile>,
    ) -> Result<Logits, String> {
        if chunks.is_empty() {
            return Ok(Logits::new(Vec::new(), self.shape.vocabulary));
        }
        for chunk in chunks {
            chunk.check(
                self.context_tokens,
                self.shape.vocabulary,
                workspace.arena.blocks(),
            )?;
        }
        Ok(self.compute(workspace, chunks, PhaseClock::new(profile)))
    }

    fn compute(
        &self,
        workspace: &mut Workspace,
        chunks: &[Chunk<'_>],
        mut clock: PhaseClock<'_>,
    ) -> Logits {
        let shape = &self.shape;
        let Workspace { arena, scratch } = workspace;
        let mut hidden = std::mem::take(&mut scratch.hidden);
        hidden.clear();
        for token in chunks.iter().flat_map(|chunk| chunk.tokens) {
            self.embedding.push(*token as usize, &mut hidden);
        }
        clock.lap(StepPhase::Embedding);
        for (at, layer) in self.layers.iter().enumerate() {
            self.norm_rows(&hidden, &layer.attention_norm, &mut scratch.normed);
            clock.lap(StepPhase::Norm);
            layer
                .qkv
                .apply(&scratch.normed, &mut scratch.prepared, &mut scratch.qkv);
            clock.lap(StepPhase::Qkv);
            self.attend(at, layer, scratch, arena, chunks);
            clock.lap(StepPhase::Attention);
            layer
                .output
                .add(&scratch.attended, &mut scratch.prepared, &mut hidden);
            clock.lap(StepPhase::Output);
            self.norm_rows(&hidden, &layer.mlp_norm, &mut scratch.normed);
            clock.lap(StepPhase::Norm);
            layer.gate_up.apply(
                &scratch.normed,
                &mut scratch.prepared,
                &mut scratch.activated,
            );
            clock.lap(StepPhase::GateUp);
            layer
                .down
                .add(&scratch.activated, &mut scratch.prepared, &mut hidden);
            clock.lap(StepPhase::Down);
        }
        let wanted = take_rows(&hidden, shape.hidden, chunks);
        scratch.hidden = hidden;
        // A step of incomplete prompts needs no logits, and the LM head is the largest product.
        let mut values = Vec::new();
        if !wanted.is_empty() {
            self.norm_rows(&wanted, &self.norm, &mut scratch.normed);
            clock.lap(StepPhase::Norm);
            self.head
                .apply(&scratch.normed, &mut scratch.prepared, &mut values);
            clock.lap(StepPhase::Head);
        }
        Logits::new(values, shape.vocabulary)
    }

    /// Rotates queries and keys, writes keys and values to the cache, and attends.
    fn attend(
        &self,
        at: usize,
        layer: &CpuLayer,
        scratch: &mut StepScratch,
        arena: &mut KvArena,
        chunks: &[Chunk<'_>],
    ) {
        let heads = self.shape.head_widths();
        let (query_width, kv_width) = (heads.heads * heads.head, heads.kv_heads * heads.head);
        let row_width = query_width + 2 * kv_width;
        let mut rows = scratch.qkv.chunks_exact_mut(row_width);
        for chunk in chunks {
            for (position, row) in chunk.positions().zip(&mut rows) {
                let (queries, others) = row.split_at_mut(query_width);
                let (keys, values) = others.split_at_mut(kv_width);
                let norms = layer.head_norms.as_ref();
                self.rotate_heads(queries, norms.map(|(queries, _)| queries), position);
                self.rotate_heads(keys, norms.map(|(_, keys)| keys), position);
                let block = chunk.blocks[position / BLOCK_TOKENS];
                arena.write(at, (block, position % BLOCK_TOKENS), keys, values);
            }
        }
        let mut rest = scratch.qkv.as_slice();
        let sequences: Vec<Queries<'_>> = chunks
            .iter()
            .map(|chunk| {
                let rows;
                (rows, rest) = rest.split_at(chunk.tokens.len() * row_width);
                Queries {
                    rows,
                    row_stride: row_width,
                    blocks: chunk.blocks,
                    first: chunk.from,
                    window: layer.window,
                }
            })
            .collect();
        scratch.attended.clear();
        scratch
            .attended
            .resize(scratch.qkv.len() / row_width * query_width, 0.0);
        let cache = LayerCache { arena, layer: at };
        attend(self.isa, heads, cache, &sequences, &mut scratch.attended);
    }

    fn rotate_heads(&self, values: &mut [f32], norm: Option<&Vec<f32>>, position: usize) {
        if let Some(norm) = norm {
            for head in values.chunks_exact_mut(self.shape.head) {
                rms_norm(self.isa, head, norm, self.shape.norm_epsilon);
            }
        }
        self.rope.rotate(values, position);
    }

    fn norm_rows(&self, rows: &[f32], weight: &[f32], to: &mut Vec<f32>) {
        to.clear();
        to.extend_from_slice(rows);
        for row in to.chunks_exact_mut(weight.len()) {
            rms_norm(self.isa, row, weight, self.shape.norm_epsilon);
        }
    }
}

fn take_rows(hidden: &[f32], width: usize, chunks: &[Chunk<'_>]) -> Vec<f32> {
    let mut wanted = Vec::new();
    let mut rest = hidden;
    for chunk in chunks {
        let rows;
        (rows, rest) = rest.split_at(chunk.tokens.len() * width);
        match chunk.rows {
            LogitRows::None => {}
            LogitRows::Last => wanted.extend_from_slice(&rows[rows.len() - width..]),
            LogitRows::All => wanted.extend_from_slice(rows),
        }
    }
    wanted
}
