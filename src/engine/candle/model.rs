//! The decoder: one ragged forward pass over all tokens of a step.

use std::path::Path;

use candle_core::{Device, Tensor};

use super::{
    attention::{Heads, KvCache, Queries, attend},
    files::{ModelFiles, Weights},
    linear::{Linear, add},
    rope::RopeTable,
    shape::{Family, Shape},
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
#[derive(Debug)]
pub struct Chunk<'a> {
    /// What the sequence computed so far; the step adds to it.
    pub cache: &'a mut KvCache,
    /// The tokens that follow.
    pub tokens: &'a [u32],
    /// The logits wanted.
    pub rows: Rows,
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

#[derive(Debug)]
struct Layer {
    attention_norm: Vec<f32>,
    qkv: Linear,
    /// Qwen3's norms of each head's queries and keys.
    head_norms: Option<(Vec<f32>, Vec<f32>)>,
    output: Linear,
    mlp_norm: Vec<f32>,
    gate_up: Linear,
    down: Linear,
    window: Option<usize>,
}

/// A decoder of the Llama, Mistral, Qwen2 or Qwen3 family, computed in f32 on the CPU.
#[derive(Debug)]
pub struct CandleModel {
    shape: Shape,
    context_tokens: usize,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Linear,
    rope: RopeTable,
}

impl CandleModel {
    /// Opens a checkpoint's directory.
    ///
    /// # Errors
    /// One line that says what was found and what was expected.
    pub fn open(folder: &Path) -> Result<Self, String> {
        Self::read(&ModelFiles::Directory(folder.to_owned()), 0)
    }

    /// Reads a checkpoint for contexts of up to `context_tokens_max` tokens, or the model's own
    /// limit if that is shorter or `context_tokens_max` is 0.
    ///
    /// # Errors
    /// One line that says what was found and what was expected.
    pub fn read(files: &ModelFiles, context_tokens_max: usize) -> Result<Self, String> {
        let shape = Shape::from_json(
            &files.require("config.json")?,
            files.read("generation_config.json")?.as_deref(),
        )?;
        let weights = files.weights()?;
        let context_tokens = match context_tokens_max {
            0 => shape.context_tokens,
            limit => limit.min(shape.context_tokens),
        };
        let embedding = weights.get(
            "model.embed_tokens.weight",
            &[shape.vocabulary, shape.hidden],
        )?;
        let tied = shape.tied.unwrap_or_else(|| !weights.has("lm_head.weight"));
        let head = if tied {
            Linear {
                weight: embedding.clone(),
                bias: None,
            }
        } else {
            Linear::read(
                &weights,
                &[("lm_head".to_owned(), shape.vocabulary)],
                shape.hidden,
                false,
            )?
        };
        Ok(Self {
            layers: (0..shape.layers)
                .map(|layer| Layer::read(&weights, &shape, layer))
                .collect::<Result<_, _>>()?,
            norm: weights.vector("model.norm.weight", shape.hidden)?,
            rope: RopeTable::new(&shape, context_tokens),
            embedding,
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

    /// Bytes of KV cache that a token takes.
    pub fn kv_bytes_per_token(&self) -> usize {
        2 * self.shape.layers * self.kv_width() * size_of::<f32>()
    }

    /// An empty cache with room for some tokens.
    pub fn new_cache(&self, tokens: usize) -> KvCache {
        KvCache::new(self.shape.layers, self.kv_width(), tokens)
    }

    /// Logits after each token of one sequence, computed alone.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn logits(&self, tokens: &[u32]) -> Result<Logits, String> {
        let mut cache = self.new_cache(tokens.len());
        let chunk = Chunk {
            cache: &mut cache,
            tokens,
            rows: Rows::All,
        };
        self.forward(&mut [chunk])
    }

    /// Computes one ragged step. A sequence's logits are the same, bit for bit, whoever shares the
    /// step and however its prompt is cut into chunks.
    ///
    /// # Errors
    /// When a token is not in the vocabulary or a sequence exceeds the context; the caches must
    /// not be used any more then.
    pub fn forward(&self, chunks: &mut [Chunk<'_>]) -> Result<Logits, String> {
        if chunks.is_empty() {
            return Ok(Logits::new(Vec::new(), self.shape.vocabulary));
        }
        for chunk in &*chunks {
            let tokens = chunk.cache.tokens + chunk.tokens.len();
            if chunk.tokens.is_empty() || tokens > self.context_tokens {
                return Err(format!(
                    "{tokens} tokens; 1 to {} are expected",
                    self.context_tokens
                ));
            }
            if let Some(token) = chunk
                .tokens
                .iter()
                .find(|token| **token as usize >= self.shape.vocabulary)
            {
                return Err(format!(
                    "token {token} is beyond the vocabulary of {}",
                    self.shape.vocabulary
                ));
            }
        }
        self.compute(chunks).map_err(|fault| fault.to_string())
    }

    fn compute(&self, chunks: &mut [Chunk<'_>]) -> candle_core::Result<Logits> {
        let shape = &self.shape;
        let tokens: Vec<u32> = chunks
            .iter()
            .flat_map(|chunk| chunk.tokens)
            .copied()
            .collect();
        let ids = Tensor::from_slice(&tokens, tokens.len(), &Device::Cpu)?;
        let mut hidden = self
            .embedding
            .index_select(&ids, 0)?
            .flatten_all()?
            .to_vec1::<f32>()?;
        for (at, layer) in self.layers.iter().enumerate() {
            let qkv = layer
                .qkv
                .apply(self.norm_rows(&hidden, &layer.attention_norm))?;
            let attended = self.attend(at, layer, qkv, chunks);
            add(&mut hidden, &layer.output.apply(attended)?);
            let gate_up = layer
                .gate_up
                .apply(self.norm_rows(&hidden, &layer.mlp_norm))?;
            add(
                &mut hidden,
                &layer.down.apply(swiglu(&gate_up, shape.intermediate))?,
            );
        }
        let wanted = take_rows(&hidden, shape.hidden, chunks);
        for chunk in chunks {
            chunk.cache.tokens += chunk.tokens.len();
        }
        // A step of nothing but unfinished prompts wants none; the head is the largest product.
        let values = if wanted.is_empty() {
            Vec::new()
        } else {
            self.head.apply(self.norm_rows(&wanted, &self.norm))?
        };
        Ok(Logits::new(values, shape.vocabulary))
    }

    /// Turns queries and keys, adds keys and values to the caches and attends.
    fn attend(
        &self,
        at: usize,
        layer: &Layer,
        mut qkv: Vec<f32>,
        chunks: &mut [Chunk<'_>],
    ) -> Vec<f32> {
        let shape = &self.shape;
        let heads = Heads {
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head: shape.head,
        };
        let query_width = shape.heads * shape.head;
        let row_width = query_width + 2 * self.kv_width();
        let mut output = vec![0.0; qkv.len() / row_width * query_width];
        let (mut qkv, mut rest) = (qkv.as_mut_slice(), output.as_mut_slice());
        for chunk in chunks {
            let rows;
            (rows, qkv) = qkv.split_at_mut(chunk.tokens.len() * row_width);
            let output;
            (output, rest) = rest.split_at_mut(chunk.tokens.len() * query_width);
            let first = chunk.cache.tokens;
            let (keys, values) = (&mut chunk.cache.keys[at], &mut chunk.cache.values[at]);
            for (row, position) in rows.chunks_exact_mut(row_width).zip(first..) {
                let (queries, others) = row.split_at_mut(query_width);
                let (new_keys, new_values) = others.split_at_mut(self.kv_width());
                let norms = layer.head_norms.as_ref();
                self.turn_heads(queries, norms.map(|(queries, _)| queries), position);
                self.turn_heads(new_keys, norms.map(|(_, keys)| keys), position);
                keys.extend_from_slice(new_keys);
                values.extend_from_slice(new_values);
            }
            let queries = Queries {
                rows,
                row_stride: row_width,
                keys,
                values,
                first,
                window: layer.window,
            };
            attend(heads, &queries, output);
        }
        output
    }

    fn turn_heads(&self, values: &mut [f32], norm: Option<&Vec<f32>>, position: usize) {
        for head in values.chunks_exact_mut(self.shape.head) {
            if let Some(norm) = norm {
                rms_norm(head, norm, self.shape.norm_epsilon);
            }
            self.rope.turn(head, position);
        }
    }

    fn norm_rows(&self, rows: &[f32], weight: &[f32]) -> Vec<f32> {
        let mut rows = rows.to_vec();
        for row in rows.chunks_exact_mut(weight.len()) {
            rms_norm(row, weight, self.shape.norm_epsilon);
        }
        rows
    }

    fn kv_width(&self) -> usize {
        self.shape.kv_heads * self.shape.head
    }
}

impl Layer {
    fn read(weights: &Weights, shape: &Shape, layer: usize) -> Result<Self, String> {
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
        let head_norms = if shape.family == Family::Qwen3 {
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
            qkv: Linear::read(weights, &qkv, shape.hidden, shape.qkv_bias)?,
            head_norms,
            output: Linear::read(
                weights,
                &[(name("self_attn.o_proj"), shape.hidden)],
                query_width,
                shape.output_bias,
            )?,
            mlp_norm: weights.vector(&name("post_attention_layernorm.weight"), shape.hidden)?,
            gate_up: Linear::read(weights, &gate_up, shape.hidden, shape.mlp_bias)?,
            down: Linear::read(
                weights,
                &[(name("mlp.down_proj"), shape.hidden)],
                shape.intermediate,
                shape.mlp_bias,
            )?,
            window: shape.windows[layer],
        })
    }
}

fn rms_norm(row: &mut [f32], weight: &[f32], epsilon: f32) {
    let mean_square = row.iter().map(|value| value * value).sum::<f32>() / row.len() as f32;
    let scale = 1.0 / (mean_square + epsilon).sqrt();
    for (value, weight) in row.iter_mut().zip(weight) {
        *value *= scale * weight;
    }
}

/// `silu(gate) * up`, where each row holds the gate and then the up projection.
fn swiglu(gate_up: &[f32], width: usize) -> Vec<f32> {
    let rows = gate_up.chunks_exact(2 * width);
    rows.flat_map(|row| {
        let (gate, up) = row.split_at(width);
        gate.iter()
            .zip(up)
            .map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up)
    })
    .collect()
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
