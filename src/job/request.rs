//! A validated request: everything that can change an answer, and nothing else.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{identity::Tenant, sampling::Sampling};

/// The author of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, strum::IntoStaticStr)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Role {
    /// Instructions; OpenAI's `developer` is read as this.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The name that chat templates expect.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// One turn of the conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Its author.
    pub role: Role,
    /// Its text; text parts are joined.
    pub content: String,
}

/// The model that a producer requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelChoice {
    /// The router decides.
    #[default]
    Auto,
    /// The small tier.
    Small,
    /// The large tier.
    Large,
    /// A served model's name.
    Named(String),
}

impl ModelChoice {
    /// The text of the request's `model` field.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Auto => "auto",
            Self::Small => "small",
            Self::Large => "large",
            Self::Named(name) => name,
        }
    }
}

impl From<&str> for ModelChoice {
    fn from(name: &str) -> Self {
        match name {
            "auto" => Self::Auto,
            "small" => Self::Small,
            "large" => Self::Large,
            name => Self::Named(name.to_owned()),
        }
    }
}

/// Which answers may be reused for a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// None: the model always runs.
    Off,
    /// Those of identical requests.
    #[default]
    Exact,
    /// Those of identical requests and of paraphrases; `exact` where the router has no encoder.
    Semantic,
}

/// What may be done to the context before it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContextMode {
    /// Nothing.
    #[default]
    Keep,
    /// Lossless clean-up: HTML to text, JSON without whitespace, boilerplate and repetitions removed.
    Lossless,
    /// Lossless clean-up, then dropping paragraphs that the last question does not need.
    Prune,
}

/// The request's `promptyard` object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Which answers may be reused.
    #[serde(default)]
    pub cache: CacheMode,
    /// What may be done to the context.
    #[serde(default)]
    pub context: ContextMode,
    /// Whether a job may be escalated from the small to the large model; the fleet's rule if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escalate: Option<bool>,
    /// The producer's labels for the kind of job, used by the router and for analysis.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

impl Options {
    /// Most tags of one job.
    pub const TAGS_MAX: usize = 8;
    /// Longest tag, in bytes.
    pub const TAG_BYTES_MAX: usize = 64;

    /// True for a valid tag: ASCII letters, digits and `. _ - : /`.
    pub fn is_tag(text: &str) -> bool {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-:/".contains(&b);
        (1..=Self::TAG_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed)
    }
}

/// A validated request: everything that can change the answer, and nothing else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatRequest {
    /// The requested model.
    #[serde(default)]
    pub model: ModelChoice,
    /// The conversation; the last turn is to be answered. Never empty.
    pub messages: Vec<Message>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The `promptyard` object.
    #[serde(default)]
    pub options: Options,
}

impl ChatRequest {
    /// The BLAKE3 digest of the request, which tells a repeated submission from a reused
    /// idempotency key.
    pub fn digest(&self) -> [u8; 32] {
        let canonical = serde_json::to_vec(self).expect("a request has no map with non-text keys");
        *blake3::hash(&canonical).as_bytes()
    }

    /// True when the large model may take over from the small one: the producer left the choice to
    /// the router and did not forbid it.
    pub fn may_escalate(&self) -> bool {
        self.model == ModelChoice::Auto && self.options.escalate != Some(false)
    }

    /// The request as a body; parsing it gives an equal request.
    pub fn to_body(&self, tenant: &Tenant) -> Value {
        let mut body = serde_json::json!({
            "model": self.model.as_str(),
            "messages": self.messages,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "top_k": self.sampling.top_k,
            "seed": self.sampling.seed,
            "max_completion_tokens": self.sampling.max_completion_tokens,
            "promptyard": {
                "cache": self.options.cache,
                "context": self.options.context,
                "escalate": self.options.escalate,
                "tenant": tenant,
            },
        });
        if !self.options.tags.is_empty() {
            body["promptyard"]["tags"] = Value::from(self.options.tags.clone());
        }
        self.sampling.write_optional(&mut body);
        body
    }
}

/// Limits and defaults that apply to every body.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestLimits {
    /// Largest body, in bytes.
    pub body_bytes_max: usize,
    /// Most messages in one request.
    pub messages_max: usize,
    /// Most `max_completion_tokens` a producer may ask for.
    pub completion_tokens_max: u32,
    /// Tokens generated for requests that name no limit.
    pub completion_tokens_default: u32,
    /// Temperature of requests that name none.
    pub temperature_default: f32,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            body_bytes_max: 4 << 20,
            messages_max: 1024,
            completion_tokens_max: 32_768,
            completion_tokens_default: 256,
            temperature_default: 0.0,
        }
    }
}
