//! A model's shape from `config.json`, validated before any tensor is read.

use serde::Deserialize;
use serde_json::Value;

/// The families that the decoder covers, with their differences from Llama.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelFamily {
    /// Llama 2 and 3 and models of the same shape.
    Llama,
    /// Mistral: Llama with a sliding window on every layer.
    Mistral,
    /// Qwen2 and 2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: q and k are normalised per head.
    Qwen3,
}

impl ModelFamily {
    const ARCHITECTURES: [(&'static str, &'static str, Self); 4] = [
        ("LlamaForCausalLM", "llama", Self::Llama),
        ("MistralForCausalLM", "mistral", Self::Mistral),
        ("Qwen2ForCausalLM", "qwen2", Self::Qwen2),
        ("Qwen3ForCausalLM", "qwen3", Self::Qwen3),
    ];

    fn of(raw: &RawConfig) -> Result<Self, String> {
        let named = raw.architectures.as_deref().unwrap_or_default();
        let known = Self::ARCHITECTURES
            .iter()
            .find(|(architecture, model_type, _)| {
                if named.is_empty() {
                    raw.model_type.as_deref() == Some(model_type)
                } else {
                    named.iter().any(|name| name == architecture)
                }
            });
        known.map(|(_, _, family)| *family).ok_or_else(|| {
            let found = if named.is_empty() {
                format!(
                    "model_type {:?}",
                    raw.model_type.as_deref().unwrap_or("none")
                )
            } else {
                named.join(", ")
            };
            let known = Self::ARCHITECTURES
                .map(|(architecture, ..)| architecture)
                .join(", ");
            format!("config.json: the architecture is {found}; expected one of {known}")
        })
    }
}

/// Scaling of the rotary frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum Rope {
    /// None.
    Default,
    /// Every frequency divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low frequencies divided by a factor, high ones kept, those between interpolated (Llama 3.1).
    Llama3 {
        /// The factor.
        factor: f64,
        /// Wavelengths longer than the original context over this are divided.
        low_freq_factor: f64,
        /// Wavelengths shorter than the original context over this are kept.
        high_freq_factor: f64,
        /// Context length of the original training.
        original_context_tokens: f64,
    },
}

/// The shape of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelShape {
    /// The family.
    pub family: ModelFamily,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layer.
    pub intermediate: usize,
    /// Number of tokens.
    pub vocabulary: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head: usize,
    /// Epsilon of the norms, added under the root.
    pub norm_epsilon: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Their scaling.
    pub rope: Rope,
    /// Context length in tokens.
    pub context_tokens: usize,
    /// Whether the LM head is the embedding; `None` when the file does not say: tied if there is no LM head.
    pub tied: Option<bool>,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output has a bias.
    pub output_bias: bool,
    /// Whether the feed-forward layer has biases.
    pub mlp_bias: bool,
    /// Sliding window per layer in tokens, the current one included; `None` is unlimited.
    pub windows: Vec<Option<usize>>,
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
}

/// Widths of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeadWidths {
    /// Query heads.
    pub(super) heads: usize,
    /// Key and value heads.
    pub(super) kv_heads: usize,
    /// Width of a head.
    pub(super) head: usize,
}

impl HeadWidths {
    /// Query heads that share a KV head.
    pub(super) fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    /// Values of a token's queries, keys and values.
    pub(super) fn row(self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head
    }
}

/// Largest size accepted in `config.json`, and largest total width of a layer's heads; the longest
/// contexts have 10 million tokens.
const SIZE_MAX: usize = 1 << 24;
/// Most layers accepted; the deepest published models have fewer than 200.
const LAYERS_MAX: usize = 1 << 10;

#[derive(Deserialize)]
struct RawConfig {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    hidden_size: usize,
    intermediate_size: usize,
    vocab_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: Option<String>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    max_position_embeddings: usize,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    quantization_config: Option<Value>,
    eos_token_id: Option<Eos>,
}

#[derive(Deserialize)]
struct GenerationConfig {
    eos_token_id: Option<Eos>,
}

/// Published files contain one id, a list or null.
#[derive(Deserialize)]
#[serde(untagged)]
enum Eos {
    One(u32),
    Many(Vec<u32>),
}

impl Eos {
    fn into_ids(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

impl ModelShape {
    /// Parameters multiplied per token: those of all matrices. An untied embedding is only looked up;
    /// norms and biases are negligible.
    pub fn parameters(&self) -> u64 {
        let (query, kv) = (self.heads * self.head, self.kv_heads * self.head);
        let attention = self.hidden * (2 * query + 2 * kv);
        let feed_forward = 3 * self.hidden * self.intermediate;
        let head = self.vocabulary * self.hidden;
        (self.layers * (attention + feed_forward) + head) as u64
    }

    /// Widths of the attention layers.
    pub(super) fn head_widths(&self) -> HeadWidths {
        HeadWidths {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head: self.head,
        }
    }

    /// Reads `config.json` and the end tokens from `generation_config.json`.
    ///
    /// # Errors
    /// One line: which field is wrong, what was found and what was expected.
    pub fn from_json(config: &[u8], generation_config: Option<&[u8]>) -> Result<Self, String> {
        let raw: RawConfig = serde_json::from_slice(config)
            .map_err(|error| format!("cannot parse config.json: {error}"))?;
        let family = ModelFamily::of(&raw)?;
        raw.check()?;
        let generation: Option<GenerationConfig> = generation_config
            .map(serde_json::from_slice)
            .transpose()
            .map_err(|error| format!("cannot parse generation_config.json: {error}"))?;
        let (rope_theta, rope) = raw.rope()?;
        let attention_bias = raw.attention_bias.unwrap_or(false);
        let windows = raw.windows(family)?;
        let eos = generation
            .and_then(|generation| generation.eos_token_id)
            .or(raw.eos_token_id);
        Ok(Self {
            family,
            hidden: raw.hidden_size,
            intermediate: raw.intermediate_size,
            vocabulary: raw.vocab_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            kv_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
            head: raw
                .head_dim
                .unwrap_or(raw.hidden_size / raw.num_attention_heads),
            norm_epsilon: raw.rms_norm_eps.unwrap_or(1e-6) as f32,
            rope_theta,
            rope,
            context_tokens: raw.max_position_embeddings,
            tied: raw.tie_word_embeddings,
            // Qwen2 always has these biases; its config has no key for them.
            qkv_bias: family == ModelFamily::Qwen2 || attention_bias,
            output_bias: family != ModelFamily::Qwen2 && attention_bias,
            mlp_bias: family == ModelFamily::Llama && raw.mlp_bias.unwrap_or(false),
            windows,
            eos: eos.map(Eos::into_ids).unwrap_or_default(),
        })
    }
}

impl RawConfig {
    fn check(&self) -> Result<(), String> {
        let heads = self.num_attention_heads;
        let kv_heads = self.num_key_value_heads.unwrap_or(heads);
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("vocab_size", self.vocab_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", heads),
            ("num_key_value_heads", kv_heads),
            ("head_dim", self.head_dim.unwrap_or(1)),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(format!("config.json: {name} is 0; expected at least 1"));
        }
        for (name, size) in sizes {
            let most = match name {
                "num_hidden_layers" => LAYERS_MAX,
                _ => SIZE_MAX,
            };
            if size > most {
                return Err(format!(
                    "config.json: {name} is {size}; expected at most {most}"
                ));
            }
        }
        if !heads.is_multiple_of(kv_heads) {
            return Err(format!(
                "config.json: {heads} attention heads cannot share {kv_heads} key-value heads evenly"
            ));
        }
        let head = self.head_dim.unwrap_or(self.hidden_size / heads);
        if head == 0 || heads * head > SIZE_MAX {
            return Err(format!(
                "config.json: {heads} heads of width {head} have {} values; expected 1 to {SIZE_MAX}",
                heads * head
            ));
        }
        if !head.is_multiple_of(2) {
            return Err(
                "config.json: the width of a head is odd; rotary positions need an even width"
                    .to_owned(),
            );
        }
        match self.hidden_act.as_deref() {
            None | Some("silu") => {}
            Some(other) => {
                return Err(format!(
                    "config.json: hidden_act is {other:?}; expected \"silu\""
                ));
            }
        }
        match &self.quantization_config {
            None | Some(Value::Null) => Ok(()),
            Some(other) => Err(format!(
                "config.json: the weights are quantised ({}); expected f32, f16 or bf16",
                other["quant_method"].as_str().unwrap_or("unknown method")
            )),
        }
    }

    /// Base and scaling of the rotary frequencies, from the keys before transformers 5 (`rope_theta`,
    /// `rope_scaling`) or since (`rope_parameters`).
    fn rope(&self) -> Result<(f64, Rope), String> {
        let given = [&self.rope_parameters, &self.rope_scaling];
        let parameters = given.into_iter().flatten().find(|value| value.is_object());
        let field = |name: &str| parameters.and_then(|parameters| parameters[name].as_f64());
        let theta = field("rope_theta").or(self.rope_theta).unwrap_or(10_000.0);
        let kind = parameters.map_or(Ok("default"), rope_type)?;
        let need = |name: &str| match field(name) {
            Some(value) if value > 0.0 => Ok(value),
            Some(value) => Err(format!(
                "config.json: {name} of RoPE is {value}; expected more than 0"
            )),
            None => Err(format!("config.json: RoPE type {kind:?} needs {name}")),
        };
        if theta <= 0.0 {
            return Err(format!(
                "config.json: rope_theta is {theta}; expected more than 0"
            ));
        }
        let rope = match kind {
            "default" => Rope::Default,
            "linear" => Rope::Linear {
                factor: need("factor")?,
            },
            "llama3" => Rope::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_context_tokens: need("original_max_position_embeddings")?,
            },
            other => {
                return Err(format!(
                    "config.json: the RoPE type is {other:?}; expected default, linear or llama3"
                ));
            }
        };
        match field("partial_rotary_factor") {
            Some(part) if part != 1.0 => Err(format!(
                "config.json: partial_rotary_factor is {part}; expected 1"
            )),
            _ => Ok((theta, rope)),
        }
    }

    fn windows(&self, family: ModelFamily) -> Result<Vec<Option<usize>>, String> {
        let layers = self.num_hidden_layers;
        // Published Qwen2 configs have a window that is switched off.
        let window = match family {
            ModelFamily::Llama => None,
            ModelFamily::Mistral => self.sliding_window,
            ModelFamily::Qwen2 | ModelFamily::Qwen3 => self
                .sliding_window
                .filter(|_| self.use_sliding_window == Some(true)),
        };
        let Some(window) = window else {
            return Ok(vec![None; layers]);
        };
        if window == 0 {
            return Err("config.json: sliding_window is 0; expected at least 1".to_owned());
        }
        if let Some(types) = &self.layer_types {
            let known = |kind: &str| matches!(kind, "sliding_attention" | "full_attention");
            if types.len() != layers || !types.iter().all(|kind| known(kind)) {
                return Err(format!(
                    "config.json: expected {layers} layer_types of sliding_attention or full_attention, found {types:?}"
                ));
            }
            return Ok(types
                .iter()
                .map(|kind| (kind == "sliding_attention").then_some(window))
                .collect());
        }
        let first = if family == ModelFamily::Mistral {
            0
        } else {
            self.max_window_layers.unwrap_or(0)
        };
        Ok((0..layers)
            .map(|layer| (layer >= first).then_some(window))
            .collect())
    }
}

/// The RoPE type, from the newer or the older key; `default` when both are missing.
fn rope_type(parameters: &Value) -> Result<&str, String> {
    let mut nested = parameters.as_object().into_iter().flatten();
    // Since transformers 5 some families have parameters per layer type.
    if let Some((name, _)) = nested.find(|(_, value)| value.is_object()) {
        return Err(format!(
            "config.json: RoPE differs by layer type ({name}); expected one RoPE for all layers"
        ));
    }
    let kind = parameters.get("rope_type").or(parameters.get("type"));
    match kind {
        None | Some(Value::Null) => Ok("default"),
        Some(Value::String(kind)) => Ok(kind),
        Some(other) => Err(format!(
            "config.json: the RoPE type is {other}; expected default, linear or llama3"
        )),
    }
}
