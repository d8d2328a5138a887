//! The decoder: one ragged forward pass over all tokens of a step.

use std::path::Path;

use crate::{
    batching::{BLOCK_TOKENS, BlockId},
    config::WeightKind,
    engine::local::{
        files::{ModelFiles, Weights},
        shape::Shape,
    },
};

use super::{
    arena::{Heads, KvArena},
    attention::{Past, Queries, attend},
    kernels::{Isa, Matrix, Precision, Ready, rms_norm},
    layer::Layer,
    linear::{Embedding, Linear},
    profile::{Clock, Part, Profile},
    rope::RopeTable,
};

/// Which rows of logits a sequence wants from a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// None: a part of a prompt.
    None,
    /// That of the last token.
    Last,
    /// One for each token.
    All,
}

/// One sequence's part of a step.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// The tokens to compute.
    pub tokens: &'a [u32],
    /// Position of the first of them; the keys and values of those before are in the blocks.
    pub from: usize,
    /// The sequence's block table, long enough for all positions up to the last token's.
    pub blocks: &'a [BlockId],
    /// The logits wanted.
    pub rows: Rows,
}

impl Chunk<'_> {
    /// The positions of its tokens.
    pub fn positions(&self) -> std::ops::Range<usize> {
        self.from..self.from + self.tokens.len()
    }
}

/// Logits of the wanted rows, in the order of the chunks.
#[derive(Clone, Debug)]
pub struct Logits {
    values: Vec<f32>,
    vocabulary: usize,
}

impl Logits {
    /// From rows that follow one another.
    pub fn new(values: Vec<f32>, vocabulary: usize) -> Self {
        Self { values, vocabulary }
    }

    /// The rows.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.vocabulary)
    }
}

/// All that steps write to: the paged KV cache, and buffers that each step uses again.
#[derive(Debug)]
pub struct Workspace {
    arena: KvArena,
    scratch: Scratch,
}

/// Buffers of a step, used by one layer after the other.
#[derive(Debug, Default)]
struct Scratch {
    hidden: Vec<f32>,
    normed: Vec<f32>,
    ready: Ready,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    activated: Vec<f32>,
}

/// A decoder of the Llama, Mistral, Qwen2 or Qwen3 family, computed on the CPU.
#[derive(Debug)]
pub struct CpuModel {
    shape: Shape,
    context_tokens: usize,
    isa: Isa,
    precision: Precision,
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Linear,
    rope: RopeTable,
}

impl CpuModel {
    /// Opens a checkpoint's directory.
    ///
    /// # Errors
    /// One line that says what was found and what was expected.
    pub fn open(folder: &Path) -> Result<Self, String> {
        Self::read(
            &ModelFiles::ModelRegistry(folder.to_owned()),
            0,
            WeightKind::F32,
        )
    }

    /// Reads a checkpoint for contexts of up to `context_tokens_max` tokens, or the model's own
    /// limit if that is shorter or `context_tokens_max` is 0.
    ///
    /// # Errors
    /// One line that says what was found and what was expected.
    pub fn read(
        files: &ModelFiles,
        context_tokens_max: usize,
        kind: WeightKind,
    ) -> Result<Self, String> {
        let shape = Shape::from_json(
            &files.require("config.json")?,
            files.read("generation_config.json")?.as_deref(),
        )?;
        Self::assemble(shape, &files.weights()?, context_tokens_max, kind)
    }

    /// A model of the shape that `config.json` tells, with random weights: for benchmarks.
    ///
    /// # Errors
    /// One line when the file is not understood.
    pub fn random(config_json: &[u8], kind: WeightKind) -> Result<Self, String> {
        let shape = Shape::from_json(config_json, None)?;
        Self::assemble(shape, &Weights::Random, 0, kind)
    }

    fn assemble(
        shape: Shape,
        weights: &Weights,
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
            Linear::new(Matrix::pack(
                &embedding,
                shape.vocabulary,
                shape.hidden,
                precision,
            ))
        } else {
            let parts = [("lm_head".to_owned(), shape.vocabulary)];
            Linear::read(weights, &parts, shape.hidden, false, precision)?
        };
        Ok(Self {
            layers: (0..shape.layers)
                .map(|layer| Layer::read(weights, &shape, layer, precision))
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

    /// What `config.json` says.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Longest context in tokens.
    pub fn context_tokens(&self) -> usize {
        self.context_tokens
    }

    /// Bytes of KV cache that a block of 32 tokens takes.
    pub fn kv_bytes_per_block(&self) -> usize {
        self.shape.layers * self.heads().bytes_per_block(self.precision)
    }

    /// Bytes of the weights as they lie in memory.
    pub fn weight_bytes(&self) -> usize {
        self.product_bytes() + self.embedding.bytes()
    }

    /// Bytes of the weights that every step reads: all but the embedding, which is looked up.
    pub fn product_bytes(&self) -> usize {
        self.layers.iter().map(Layer::bytes).sum::<usize>() + self.head.bytes()
    }

    /// Multiplications and additions for one token that sees `context` tokens, its logits included.
    pub fn flops_per_token(&self, context: usize) -> usize {
        let shape = &self.shape;
        let (queries, kv) = (shape.heads * shape.head, shape.kv_heads * shape.head);
        let layer = shape.hidden * (2 * queries + 2 * kv) + 3 * shape.hidden * shape.intermediate;
        let attention = 2 * context * queries;
        2 * (shape.layers * (layer + attention) + shape.hidden * shape.vocabulary)
    }

    /// What steps of this model need, with so many blocks of KV cache. Memory is taken as blocks
    /// are used first.
    pub fn workspace(&self, kv_blocks: usize) -> Workspace {
        Workspace {
            arena: KvArena::new(self.shape.layers, self.heads(), self.precision, kv_blocks),
            scratch: Scratch::default(),
        }
    }

    /// Logits after each token of one sequence, computed alone.
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
            rows: Rows::All,
        };
        self.forward(&mut self.workspace(blocks.len()), &[chunk])
    }

    /// Computes one ragged step. A sequence's logits are the same, bit for bit, whoever shares the
    /// step, however its prompt is cut into chunks, and whether its first blocks were computed for
    /// it or for another sequence that begins alike. In each layer the keys and values of all chunks
    /// are written before any of them attends, so that chunks of one step may share blocks, too.
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

    /// As [`Self::forward`], and adds the time of each part to `profile`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_profiled(
        &self,
        workspace: &mut Workspace,
        chunks: &[Chunk<'_>],
        profile: Option<&mut Profile>,
    ) -> Result<Logits, String> {
        if chunks.is_empty() {
            return Ok(Logits::new(Vec::new(), self.shape.vocabulary));
        }
        for chunk in chunks {
            self.check(chunk, workspace.arena.blocks())?;
        }
        Ok(self.compute(workspace, chunks, Clock::new(profile)))
    }

    fn check(&self, chunk: &Chunk<'_>, blocks: usize) -> Result<(), String> {
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
        let is_outside = |block: &BlockId| block.index() >= blocks;
        if chunk.blocks.len() * BLOCK_TOKENS < tokens || chunk.blocks.iter().any(is_outside) {
            return Err(format!(
                "{tokens} tokens do not lie within the {} blocks named, of {blocks}",
                chunk.blocks.len()
            ));
        }
        Ok(())
    }

    fn compute(
        &self,
        workspace: &mut Workspace,
        chunks: &[Chunk<'_>],
        mut clock: Clock<'_>,
    ) -> Logits {
        let shape = &self.shape;
        let Workspace { arena, scratch } = workspace;
        let mut hidden = std::mem::take(&mut scratch.hidden);
        hidden.clear();
        for token in chunks.iter().flat_map(|chunk| chunk.tokens) {
            self.embedding.push(*token as usize, &mut hidden);
        }
        clock.lap(Part::Embedding);
        for (at, layer) in self.layers.iter().enumerate() {
            self.norm_rows(&hidden, &layer.attention_norm, &mut scratch.normed);
            clock.lap(Part::Norm);
            layer
                .qkv
                .apply(&scratch.normed, &mut scratch.ready, &mut scratch.qkv);
            clock.lap(Part::Qkv);
            self.attend(at, layer, scratch, arena, chunks);
            clock.lap(Part::Attention);
            layer
                .output
                .add(&scratch.attended, &mut scratch.ready, &mut hidden);
            clock.lap(Part::Output);
            self.norm_rows(&hidden, &layer.mlp_norm, &mut scratch.normed);
            clock.lap(Part::Norm);
            layer
                .gate_up
                .apply(&scratch.normed, &mut scratch.ready, &mut scratch.activated);
            clock.lap(Part::GateUp);
            layer
                .down
                .add(&scratch.activated, &mut scratch.ready, &mut hidden);
            clock.lap(Part::Down);
        }
        let wanted = take_rows(&hidden, shape.hidden, chunks);
        scratch.hidden = hidden;
        // A step of nothing but unfinished prompts wants none; the head is the largest product.
        let mut values = Vec::new();
        if !wanted.is_empty() {
            self.norm_rows(&wanted, &self.norm, &mut scratch.normed);
            clock.lap(Part::Norm);
            self.head
                .apply(&scratch.normed, &mut scratch.ready, &mut values);
            clock.lap(Part::Head);
        }
        Logits::new(values, shape.vocabulary)
    }

    /// Turns queries and keys, adds keys and values to the cache and attends.
    fn attend(
        &self,
        at: usize,
        layer: &Layer,
        scratch: &mut Scratch,
        arena: &mut KvArena,
        chunks: &[Chunk<'_>],
    ) {
        let heads = self.heads();
        let (query_width, kv_width) = (heads.heads * heads.head, heads.kv_heads * heads.head);
        let row_width = query_width + 2 * kv_width;
        let mut rows = scratch.qkv.chunks_exact_mut(row_width);
        for chunk in chunks {
            for (position, row) in chunk.positions().zip(&mut rows) {
                let (queries, others) = row.split_at_mut(query_width);
                let (keys, values) = others.split_at_mut(kv_width);
                let norms = layer.head_norms.as_ref();
                self.turn_heads(queries, norms.map(|(queries, _)| queries), position);
                self.turn_heads(keys, norms.map(|(_, keys)| keys), position);
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
        let past = Past { arena, layer: at };
        attend(self.isa, heads, past, &sequences, &mut scratch.attended);
    }

    fn turn_heads(&self, values: &mut [f32], norm: Option<&Vec<f32>>, position: usize) {
        if let Some(norm) = norm {
            for head in values.chunks_exact_mut(self.shape.head) {
                rms_norm(self.isa, head, norm, self.shape.norm_epsilon);
            }
        }
        self.rope.turn(values, position);
    }

    fn norm_rows(&self, rows: &[f32], weight: &[f32], to: &mut Vec<f32>) {
        to.clear();
        to.extend_from_slice(rows);
        for row in to.chunks_exact_mut(weight.len()) {
            rms_norm(self.isa, row, weight, self.shape.norm_epsilon);
        }
    }

    fn heads(&self) -> Heads {
        Heads {
            heads: self.shape.heads,
            kv_heads: self.shape.kv_heads,
            head: self.shape.head,
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
            Rows::None => {}
            Rows::Last => wanted.extend_from_slice(&rows[rows.len() - width..]),
            Rows::All => wanted.extend_from_slice(rows),
        }
    }
    wanted
}
