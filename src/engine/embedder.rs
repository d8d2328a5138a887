//! Sentence embeddings by encoders of the BERT family, as sentence-transformers computes them.
//!
//! Texts in, one unit vector per text out, so that a dot product is the cosine similarity. The texts
//! of a call are packed end to end: the dense layers multiply one matrix without padding, and
//! attention is computed per text, so a text's vector does not depend on the others beyond rounding.

use std::fmt;

use candle_core::{D, Device, IndexOp as _, Tensor};
use candle_nn::ops::{layer_norm, softmax_last_dim};
use serde::Deserialize;

use crate::prompt::{Specials, Vocabulary, prune::Similarity};

use super::local::{ModelFiles, files::CheckpointWeights, load::locate_named};

/// Tokens computed together, at most; bounds memory.
const PACK_TOKENS_MAX: usize = 4096;
/// Longest text in tokens where the checkpoint sets no limit.
const TEXT_TOKENS_DEFAULT: usize = 256;

/// Why embeddings cannot be computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmbedderError {
    /// The checkpoint cannot be found or loaded.
    #[error("cannot open the embedder {model}: {message}")]
    Open {
        /// The directory or hub name.
        model: String,
        /// What was found and what was expected.
        message: String,
    },
    /// The computation failed.
    #[error("the embedder failed: {0}")]
    Failed(String),
}

impl From<candle_core::Error> for EmbedderError {
    fn from(error: candle_core::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

#[derive(Deserialize)]
struct EncoderConfig {
    model_type: String,
    hidden_act: String,
    hidden_size: usize,
    intermediate_size: usize,
    layer_norm_eps: f64,
    max_position_embeddings: usize,
    num_attention_heads: usize,
    num_hidden_layers: usize,
    type_vocab_size: usize,
    vocab_size: usize,
    #[serde(default)]
    position_embedding_type: Option<String>,
}

#[derive(Default, Deserialize)]
struct Pooling {
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
}

#[derive(Default, Deserialize)]
struct SentenceConfig {
    max_seq_length: Option<usize>,
}

/// `y = x Wᵀ + b`.
struct EncoderLinear {
    /// `[in, out]`, transposed once.
    weight: Tensor,
    bias: Tensor,
}

impl EncoderLinear {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        x.matmul(&self.weight)?.broadcast_add(&self.bias)
    }
}

struct EncoderNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl EncoderNorm {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}

struct EncoderLayer {
    query: EncoderLinear,
    key: EncoderLinear,
    value: EncoderLinear,
    attended: EncoderLinear,
    attended_norm: EncoderNorm,
    up: EncoderLinear,
    down: EncoderLinear,
    norm: EncoderNorm,
}

/// An encoder with its tokenizer.
pub struct Embedder {
    name: String,
    revision: String,
    vocabulary: Vocabulary,
    word_embeddings: Tensor,
    /// Sum of position and type embeddings; every text has type 0.
    position_embeddings: Tensor,
    norm: EncoderNorm,
    layers: Vec<EncoderLayer>,
    heads: usize,
    is_exact_gelu: bool,
    /// Whether a text's vector is that of its first token; else the mean over all tokens.
    pools_first_token: bool,
    text_tokens_max: usize,
}

impl fmt::Debug for Embedder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedder")
            .field("name", &self.name)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

impl Embedder {
    /// Opens a checkpoint: a directory, or a name on the hub.
    ///
    /// # Errors
    /// [`EmbedderError::Open`] when it cannot be found, or is not a BERT encoder with mean or
    /// first-token pooling.
    pub fn open(model: &str) -> Result<Self, EmbedderError> {
        let open = |message: String| EmbedderError::Open {
            model: model.to_owned(),
            message,
        };
        let (name, files) = locate_named(model).map_err(open)?;
        Self::read(name, &files).map_err(open)
    }

    fn read(name: String, files: &ModelFiles) -> Result<Self, String> {
        let config: EncoderConfig = parse(files, "config.json")?
            .ok_or("config.json is missing; expected the directory of a BERT encoder")?;
        if config.model_type != "bert" {
            return Err(format!(
                "model_type is {:?}; expected \"bert\"",
                config.model_type
            ));
        }
        let is_exact_gelu = match config.hidden_act.as_str() {
            "gelu" => true,
            "gelu_new" | "gelu_pytorch_tanh" => false,
            other => return Err(format!("hidden_act is {other:?}; expected gelu")),
        };
        let position_embeddings = config.position_embedding_type.as_deref();
        if position_embeddings.is_some_and(|kind| kind != "absolute") {
            return Err(format!(
                "position_embedding_type is {position_embeddings:?}; expected absolute"
            ));
        }
        if config.num_attention_heads == 0
            || !config
                .hidden_size
                .is_multiple_of(config.num_attention_heads)
        {
            return Err("hidden_size is not a multiple of num_attention_heads".to_owned());
        }
        let pooling: Pooling = parse(files, "1_Pooling/config.json")?.unwrap_or_default();
        if pooling.pooling_mode_max_tokens || pooling.pooling_mode_mean_sqrt_len_tokens {
            return Err(
                "it pools by maximum or by root length; expected mean or first token".to_owned(),
            );
        }
        let sentence: SentenceConfig =
            parse(files, "sentence_bert_config.json")?.unwrap_or_default();
        let weights = files.weights()?;
        let prefix = if weights.has("bert.embeddings.word_embeddings.weight") {
            "bert."
        } else {
            ""
        };
        let reader = EncoderWeights {
            weights: &weights,
            prefix,
            config: &config,
        };
        let digest = files.digest()?.finalize().to_hex();
        Ok(Self {
            name,
            revision: digest[..32].to_owned(),
            vocabulary: Vocabulary::from_json(&files.require("tokenizer.json")?)
                .map_err(|error| error.to_string())?,
            word_embeddings: reader.get(
                "embeddings.word_embeddings.weight",
                &[config.vocab_size, config.hidden_size],
            )?,
            position_embeddings: reader.position_embeddings()?,
            norm: reader.norm("embeddings.LayerNorm")?,
            layers: (0..config.num_hidden_layers)
                .map(|at| reader.layer(at))
                .collect::<Result<_, _>>()?,
            heads: config.num_attention_heads,
            is_exact_gelu,
            pools_first_token: pooling.pooling_mode_cls_token,
            text_tokens_max: sentence
                .max_seq_length
                .unwrap_or(TEXT_TOKENS_DEFAULT)
                .clamp(2, config.max_position_embeddings.max(2)),
        })
    }

    /// The checkpoint's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Digest of the checkpoint; it changes whenever the same text may get another vector.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Length of the vectors.
    pub fn width(&self) -> usize {
        self.word_embeddings.dim(1).unwrap_or(0)
    }

    /// Computes one unit vector per text, in order. Texts longer than the model's limit are truncated.
    ///
    /// # Errors
    /// [`EmbedderError::Failed`] when the computation fails.
    pub fn embed<T: AsRef<str>>(&self, texts: &[T]) -> Result<Vec<Vec<f32>>, EmbedderError> {
        let mut vectors = Vec::with_capacity(texts.len());
        let (mut pack, mut packed) = (Vec::new(), 0);
        for text in texts {
            let tokens = self.tokens(text.as_ref()).map_err(EmbedderError::Failed)?;
            if packed + tokens.len() > PACK_TOKENS_MAX && !pack.is_empty() {
                vectors.extend(self.forward(&pack)?);
                pack.clear();
                packed = 0;
            }
            packed += tokens.len();
            pack.push(tokens);
        }
        if !pack.is_empty() {
            vectors.extend(self.forward(&pack)?);
        }
        Ok(vectors)
    }

    /// Computes the cosines between questions and texts; see [`Similarity`].
    fn compare(&self, questions: &[&str], texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedderError> {
        let (questions, texts) = (self.embed(questions)?, self.embed(texts)?);
        let row = |question: &Vec<f32>| texts.iter().map(|text| cosine(question, text)).collect();
        Ok(questions.iter().map(row).collect())
    }

    fn tokens(&self, text: &str) -> Result<Vec<u32>, String> {
        let mut tokens = self
            .vocabulary
            .encode(text, Specials::Add)
            .map_err(|error| error.to_string())?;
        if tokens.len() > self.text_tokens_max {
            // Keep the last token, which ends the text.
            let last = tokens.last().copied();
            tokens.truncate(self.text_tokens_max - 1);
            tokens.extend(last);
        }
        if tokens.is_empty() {
            return Err("the tokenizer returned no tokens, not even special ones".to_owned());
        }
        Ok(tokens)
    }

    /// Computes the vectors of tokenized texts as one pack.
    fn forward(&self, texts: &[Vec<u32>]) -> candle_core::Result<Vec<Vec<f32>>> {
        let ids: Vec<u32> = texts.concat();
        let count = ids.len();
        let positions: Vec<u32> = texts.iter().flat_map(|text| 0..text.len() as u32).collect();
        let ids = Tensor::from_vec(ids, count, &Device::Cpu)?;
        let positions = Tensor::from_vec(positions, count, &Device::Cpu)?;
        let x = (self.word_embeddings.index_select(&ids, 0)?
            + self.position_embeddings.index_select(&positions, 0)?)?;
        let mut x = self.norm.forward(&x)?;
        for layer in &self.layers {
            let attended = self.attend(layer, &x, texts)?;
            x = layer
                .attended_norm
                .forward(&(layer.attended.forward(&attended)? + &x)?)?;
            let activated = layer.up.forward(&x)?;
            let activated = if self.is_exact_gelu {
                activated.gelu_erf()?
            } else {
                activated.gelu()?
            };
            x = layer
                .norm
                .forward(&(layer.down.forward(&activated)? + &x)?)?;
        }
        let mut from = 0;
        texts
            .iter()
            .map(|text| {
                let own = x.narrow(0, from, text.len())?;
                from += text.len();
                let pooled = if self.pools_first_token {
                    own.i(0)?
                } else {
                    own.mean(0)?
                };
                unit(pooled.to_vec1()?)
            })
            .collect()
    }

    /// Self-attention within each text: `[tokens, hidden]` in and out.
    fn attend(
        &self,
        layer: &EncoderLayer,
        x: &Tensor,
        texts: &[Vec<u32>],
    ) -> candle_core::Result<Tensor> {
        let width = x.dim(1)? / self.heads;
        let scale = 1.0 / (width as f64).sqrt();
        let query = (layer.query.forward(x)? * scale)?;
        let (key, value) = (layer.key.forward(x)?, layer.value.forward(x)?);
        let mut from = 0;
        let mut outs = Vec::with_capacity(texts.len());
        for text in texts {
            let by_head = |rows: &Tensor| {
                rows.narrow(0, from, text.len())?
                    .reshape((text.len(), self.heads, width))?
                    .transpose(0, 1)?
                    .contiguous()
            };
            let (q, k, v) = (by_head(&query)?, by_head(&key)?, by_head(&value)?);
            let scores = q.matmul(&k.t()?)?;
            let out = softmax_last_dim(&scores)?.matmul(&v)?;
            outs.push(out.transpose(0, 1)?.flatten(D::Minus2, D::Minus1)?);
            from += text.len();
        }
        Tensor::cat(&outs, 0)
    }
}

impl Similarity for Embedder {
    fn cosines(&self, questions: &[&str], texts: &[&str]) -> Option<Vec<Vec<f32>>> {
        self.compare(questions, texts)
            .inspect_err(
                |error| tracing::warn!(%error, "cannot embed paragraphs; they are compared by their words only"),
            )
            .ok()
    }
}

/// The cosine similarity of two unit vectors.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Scales a vector to length 1.
fn unit(mut vector: Vec<f32>) -> candle_core::Result<Vec<f32>> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if !(length > 0.0 && length.is_finite()) {
        candle_core::bail!("a vector has length {length}; cannot normalize it");
    }
    vector.iter_mut().for_each(|x| *x /= length);
    Ok(vector)
}

fn parse<T: for<'de> Deserialize<'de>>(
    files: &ModelFiles,
    name: &str,
) -> Result<Option<T>, String> {
    let Some(content) = files.read(name)? else {
        return Ok(None);
    };
    serde_json::from_slice(&content)
        .map(Some)
        .map_err(|error| format!("cannot parse {name}: {error}"))
}

/// Reads tensors by their names in Hugging Face's BERT.
struct EncoderWeights<'a> {
    weights: &'a CheckpointWeights,
    prefix: &'a str,
    config: &'a EncoderConfig,
}

impl EncoderWeights<'_> {
    fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor, String> {
        self.weights.get(&format!("{}{name}", self.prefix), shape)
    }

    fn position_embeddings(&self) -> Result<Tensor, String> {
        let (config, text) = (self.config, |error: candle_core::Error| error.to_string());
        let positions = self.get(
            "embeddings.position_embeddings.weight",
            &[config.max_position_embeddings, config.hidden_size],
        )?;
        let kinds = self.get(
            "embeddings.token_type_embeddings.weight",
            &[config.type_vocab_size, config.hidden_size],
        )?;
        let first = kinds.i(0).map_err(text)?;
        positions.broadcast_add(&first).map_err(text)
    }

    fn norm(&self, name: &str) -> Result<EncoderNorm, String> {
        let width = [self.config.hidden_size];
        Ok(EncoderNorm {
            weight: self.get(&format!("{name}.weight"), &width)?,
            bias: self.get(&format!("{name}.bias"), &width)?,
            eps: self.config.layer_norm_eps as f32,
        })
    }

    fn dense(&self, name: &str, from: usize, to: usize) -> Result<EncoderLinear, String> {
        let weight = self.get(&format!("{name}.weight"), &[to, from])?;
        Ok(EncoderLinear {
            weight: weight
                .t()
                .and_then(|weight| weight.contiguous())
                .map_err(|error| error.to_string())?,
            bias: self.get(&format!("{name}.bias"), &[to])?,
        })
    }

    fn layer(&self, at: usize) -> Result<EncoderLayer, String> {
        let (hidden, activated) = (self.config.hidden_size, self.config.intermediate_size);
        let name = |part: &str| format!("encoder.layer.{at}.{part}");
        Ok(EncoderLayer {
            query: self.dense(&name("attention.self.query"), hidden, hidden)?,
            key: self.dense(&name("attention.self.key"), hidden, hidden)?,
            value: self.dense(&name("attention.self.value"), hidden, hidden)?,
            attended: self.dense(&name("attention.output.dense"), hidden, hidden)?,
            attended_norm: self.norm(&name("attention.output.LayerNorm"))?,
            up: self.dense(&name("intermediate.dense"), hidden, activated)?,
            down: self.dense(&name("output.dense"), activated, hidden)?,
            norm: self.norm(&name("output.LayerNorm"))?,
        })
    }
}
