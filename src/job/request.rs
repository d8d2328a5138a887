//! The job contract: OpenAI chat-completions bodies, `{"prompt": …}`, and OpenAI batch lines.
//!
//! A body is parsed once, at the rim, into [`Submission`]; every fault becomes a [`Rejection`] that
//! names the field, what was expected and what came, and never quotes prompt text.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Reason, Tenant};

/// Who speaks in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions; OpenAI's `developer` is read as this.
    System,
    /// The person asking.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The name that chat templates expect.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One turn of the conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; text parts are joined.
    pub content: String,
}

/// The model a producer asks for.
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

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 is greedy; up to 2.
    pub temperature: f32,
    /// Nucleus: the smallest set of tokens whose probability reaches this; 0 < p ≤ 1.
    pub top_p: f32,
    /// Keep only this many of the likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Makes sampling repeatable.
    pub seed: Option<u64>,
    /// Generation ends before the first of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Most tokens to generate.
    pub max_completion_tokens: u32,
}

impl Sampling {
    /// True when the same request always gets the same answer, so that an answer may be reused.
    pub fn is_deterministic(&self) -> bool {
        self.temperature == 0.0 || self.seed.is_some()
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
    /// Those of requests that mean the same, too; served as `exact` until semantic reuse exists.
    Semantic,
}

/// What may be done to the context before it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContextMode {
    /// Nothing.
    #[default]
    Keep,
    /// Clean-up that loses nothing; sent unchanged until the clean-up exists.
    Lossless,
    /// Dropping what the question does not need; sent unchanged until pruning exists.
    Prune,
}

/// The request's `promptyard` object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Which answers may be reused.
    #[serde(default)]
    pub cache: CacheMode,
    /// What may be done to the context.
    #[serde(default)]
    pub context: ContextMode,
    /// Whether the small model's answer may be passed on to the large one; the fleet's rule if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escalate: Option<bool>,
}

/// A validated request: all that can change the answer, and nothing else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatRequest {
    /// The model asked for.
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
    /// Writes the request as a body again; parsing it gives an equal request.
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
        if !self.sampling.stop.is_empty() {
            body["stop"] = Value::from(self.sampling.stop.clone());
        }
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

/// A body that cannot become a job, with as much of its envelope as could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// What is wrong and where.
    pub reason: Reason,
    /// The line's own name, if it could be read.
    pub custom_id: Option<String>,
    /// The tenant, if it could be read.
    pub tenant: Option<Tenant>,
}

/// What a producer's body says, before it has an identity.
#[derive(Clone, Debug, PartialEq)]
pub struct Submission {
    /// The line's own name (batch lines only).
    pub custom_id: Option<String>,
    /// Whose job it is, if the body says so.
    pub tenant: Option<Tenant>,
    /// Time allowed from submission, in milliseconds.
    pub deadline_ms: Option<u64>,
    /// The request.
    pub request: ChatRequest,
}

impl Submission {
    /// Reads a body: chat completion, `{"prompt": …}` or a batch line.
    ///
    /// # Errors
    /// A [`Rejection`] that names the first field at fault, what was expected and what came.
    pub fn parse(body: &[u8], limits: &RequestLimits) -> Result<Self, Rejection> {
        let bare = |reason| Rejection {
            reason,
            custom_id: None,
            tenant: None,
        };
        if body.len() > limits.body_bytes_max {
            return Err(bare(Reason::new(
                "body_too_large",
                format!(
                    "the body has {} bytes; at most {} are accepted",
                    body.len(),
                    limits.body_bytes_max
                ),
            )));
        }
        let text = std::str::from_utf8(body).map_err(|fault| {
            bare(Reason::new(
                "invalid_utf8",
                format!(
                    "the body is not UTF-8: bad byte at offset {}",
                    fault.valid_up_to()
                ),
            ))
        })?;
        let value: Value = serde_json::from_str(text).map_err(|fault| {
            bare(Reason::new(
                "invalid_json",
                format!(
                    "the body is not valid JSON at line {} column {}",
                    fault.line(),
                    fault.column()
                ),
            ))
        })?;
        let Value::Object(object) = value else {
            return Err(bare(wrong_type("the body", "an object", &value)));
        };
        Self::from_object(object, limits)
    }

    /// Makes a submission of a plain-text prompt.
    ///
    /// # Errors
    /// A [`Rejection`] when the text is blank.
    pub fn from_prompt(prompt: &str, limits: &RequestLimits) -> Result<Self, Rejection> {
        let mut object = Map::new();
        object.insert("prompt".into(), Value::String(prompt.to_owned()));
        Self::from_object(object, limits)
    }

    fn from_object(object: Map<String, Value>, limits: &RequestLimits) -> Result<Self, Rejection> {
        let is_batch_line = object.contains_key("custom_id") || object.contains_key("body");
        let (custom_id, body) = if is_batch_line {
            let (custom_id, body) = unwrap_batch_line(object);
            match body {
                Ok(body) => (custom_id, body),
                Err(reason) => {
                    return Err(Rejection {
                        reason,
                        custom_id,
                        tenant: None,
                    });
                }
            }
        } else {
            (None, object)
        };
        let mut fields = Fields { object: body };
        let mut tenant = None;
        match fields.read(limits, &mut tenant) {
            Ok((request, deadline_ms)) => Ok(Self {
                custom_id,
                tenant,
                deadline_ms,
                request,
            }),
            Err(reason) => Err(Rejection {
                reason,
                custom_id,
                tenant,
            }),
        }
    }
}

/// Longest `custom_id`, in bytes.
const CUSTOM_ID_BYTES_MAX: usize = 512;

/// Takes a batch line apart: its name, if readable, and its body or what is wrong with the line.
fn unwrap_batch_line(
    mut line: Map<String, Value>,
) -> (Option<String>, Result<Map<String, Value>, Reason>) {
    let custom_id = match line.remove("custom_id") {
        None | Some(Value::Null) => None,
        Some(Value::String(id)) if id.is_empty() || id.len() > CUSTOM_ID_BYTES_MAX => {
            let message = format!(
                "custom_id has {} bytes; expected 1 to {CUSTOM_ID_BYTES_MAX}",
                id.len()
            );
            return (None, Err(Reason::new("invalid_value", message)));
        }
        Some(Value::String(id)) => Some(id),
        Some(other) => return (None, Err(wrong_type("custom_id", "a string", &other))),
    };
    let body = take_batch_body(&mut line);
    (custom_id, body)
}

fn take_batch_body(line: &mut Map<String, Value>) -> Result<Map<String, Value>, Reason> {
    match line.remove("method") {
        None => {}
        Some(Value::String(method)) if method == "POST" => {}
        Some(other) => return Err(wrong_value("method", "\"POST\"", &other)),
    }
    match line.remove("url") {
        None => {}
        Some(Value::String(url)) if url == "/v1/chat/completions" => {}
        Some(other) => return Err(wrong_value("url", "\"/v1/chat/completions\"", &other)),
    }
    let body = match line.remove("body") {
        Some(Value::Object(body)) => body,
        Some(other) => return Err(wrong_type("body", "an object", &other)),
        None => {
            return Err(Reason::new(
                "missing_field",
                "a batch line needs body, the chat-completions request",
            ));
        }
    };
    match line.keys().next() {
        Some(field) => Err(unknown_field(field, "custom_id, method, url, body")),
        None => Ok(body),
    }
}

/// Fields that OpenAI clients send and that do not change an answer here.
const IGNORED_FIELDS: [&str; 7] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
];

/// A body's fields, taken out one by one; whatever is left is unknown.
struct Fields {
    object: Map<String, Value>,
}

impl Fields {
    fn read(
        &mut self,
        limits: &RequestLimits,
        tenant: &mut Option<Tenant>,
    ) -> Result<(ChatRequest, Option<u64>), Reason> {
        let (options, deadline_ms) = self.extension(tenant)?;
        let model = match self.take("model") {
            None => ModelChoice::Auto,
            Some(Value::String(name)) if !name.is_empty() => ModelChoice::from(name.as_str()),
            Some(other) => return Err(wrong_type("model", "a model's name", &other)),
        };
        let messages = self.messages(limits)?;
        let sampling = self.sampling(limits)?;
        self.refuse_unsupported()?;
        for field in IGNORED_FIELDS {
            self.object.remove(field);
        }
        if let Some(field) = self.object.keys().next() {
            return Err(unknown_field(
                field,
                "model, messages or prompt, max_completion_tokens, temperature, top_p, top_k, seed, stop, promptyard",
            ));
        }
        let request = ChatRequest {
            model,
            messages,
            sampling,
            options,
        };
        Ok((request, deadline_ms))
    }

    /// Takes a field; `null` counts as absent, as OpenAI's clients mean it.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.object.remove(name).filter(|value| !value.is_null())
    }

    fn extension(&mut self, tenant: &mut Option<Tenant>) -> Result<(Options, Option<u64>), Reason> {
        let mut inner = match self.take("promptyard") {
            None => return Ok((Options::default(), None)),
            Some(Value::Object(object)) => Self { object },
            Some(other) => return Err(wrong_type("promptyard", "an object", &other)),
        };
        *tenant = match inner.take("tenant") {
            None => None,
            Some(Value::String(name)) => Some(name.try_into().map_err(|fault: String| {
                Reason::new("invalid_value", format!("promptyard.tenant: {fault}"))
            })?),
            Some(other) => return Err(wrong_type("promptyard.tenant", "a string", &other)),
        };
        let options = Options {
            cache: inner.choice("cache", "\"off\", \"exact\" or \"semantic\"")?,
            context: inner.choice("context", "\"keep\", \"lossless\" or \"prune\"")?,
            escalate: match inner.take("escalate") {
                None => None,
                Some(Value::Bool(escalate)) => Some(escalate),
                Some(other) => {
                    return Err(wrong_type("promptyard.escalate", "true or false", &other));
                }
            },
        };
        let deadline_ms = match inner.take("deadline_ms") {
            None => None,
            Some(value) => match value.as_u64() {
                Some(ms) if ms <= DEADLINE_MS_MAX => Some(ms),
                _ => {
                    let expected = format!("milliseconds from 0 to {DEADLINE_MS_MAX}");
                    return Err(wrong_value("promptyard.deadline_ms", &expected, &value));
                }
            },
        };
        match inner.object.keys().next() {
            Some(field) => Err(unknown_field(
                &format!("promptyard.{field}"),
                "cache, context, escalate, deadline_ms, tenant",
            )),
            None => Ok((options, deadline_ms)),
        }
    }

    fn choice<T: Default + for<'de> Deserialize<'de>>(
        &mut self,
        name: &str,
        expected: &str,
    ) -> Result<T, Reason> {
        match self.take(name) {
            None => Ok(T::default()),
            Some(value) => T::deserialize(&value)
                .map_err(|_| wrong_value(&format!("promptyard.{name}"), expected, &value)),
        }
    }

    fn messages(&mut self, limits: &RequestLimits) -> Result<Vec<Message>, Reason> {
        let messages = match (self.take("prompt"), self.take("messages")) {
            (Some(Value::String(content)), None) => vec![Message {
                role: Role::User,
                content,
            }],
            (Some(other), None) => return Err(wrong_type("prompt", "a string", &other)),
            (None, Some(Value::Array(turns))) => {
                if turns.len() > limits.messages_max {
                    return Err(Reason::new(
                        "invalid_value",
                        format!(
                            "messages has {} entries; at most {} are accepted",
                            turns.len(),
                            limits.messages_max
                        ),
                    ));
                }
                turns
                    .into_iter()
                    .enumerate()
                    .map(|(at, turn)| read_message(at, turn))
                    .collect::<Result<_, _>>()?
            }
            (None, Some(other)) => return Err(wrong_type("messages", "an array", &other)),
            (Some(_), Some(_)) => {
                return Err(Reason::new(
                    "invalid_value",
                    "the body has both prompt and messages; send one of them",
                ));
            }
            (None, None) => {
                return Err(Reason::new(
                    "missing_field",
                    "the body has neither messages nor prompt",
                ));
            }
        };
        if messages.iter().all(|turn| turn.content.trim().is_empty()) {
            return Err(Reason::new("empty_prompt", "the prompt is empty"));
        }
        Ok(messages)
    }

    fn sampling(&mut self, limits: &RequestLimits) -> Result<Sampling, Reason> {
        let default = limits.temperature_default;
        let asked = match (self.take("max_completion_tokens"), self.take("max_tokens")) {
            (Some(value), _) => Some(("max_completion_tokens", value)),
            (None, Some(value)) => Some(("max_tokens", value)),
            (None, None) => None,
        };
        let tokens_max = limits.completion_tokens_max;
        let max_completion_tokens = match asked {
            None => limits.completion_tokens_default,
            Some((name, value)) => match value.as_u64() {
                Some(tokens @ 1..) if tokens <= u64::from(tokens_max) => tokens as u32,
                _ => {
                    let expected = format!("an integer from 1 to {tokens_max}");
                    return Err(wrong_value(name, &expected, &value));
                }
            },
        };
        Ok(Sampling {
            temperature: self.number("temperature", "a number from 0 to 2", default, |t| {
                (0.0..=2.0).contains(&t)
            })?,
            top_p: self.number("top_p", "a number above 0, up to 1", 1.0, |p| {
                p > 0.0 && p <= 1.0
            })?,
            top_k: match self.take("top_k") {
                None => 0,
                Some(value) => value
                    .as_u64()
                    .and_then(|k| u32::try_from(k).ok())
                    .ok_or_else(|| wrong_value("top_k", "a whole number, 0 for all", &value))?,
            },
            seed: match self.take("seed") {
                None => None,
                // Negative seeds are legal with OpenAI; their bits serve as well as any.
                Some(value) => Some(
                    value
                        .as_u64()
                        .or_else(|| value.as_i64().map(i64::cast_unsigned))
                        .ok_or_else(|| wrong_value("seed", "an integer", &value))?,
                ),
            },
            stop: self.stop()?,
            max_completion_tokens,
        })
    }

    fn number(
        &mut self,
        name: &str,
        expected: &str,
        default: f32,
        accepts: impl Fn(f64) -> bool,
    ) -> Result<f32, Reason> {
        match self.take(name) {
            None => Ok(default),
            Some(value) => match value.as_f64() {
                Some(number) if accepts(number) => Ok(number as f32),
                _ => Err(wrong_value(name, expected, &value)),
            },
        }
    }

    fn stop(&mut self) -> Result<Vec<String>, Reason> {
        const EXPECTED: &str = "a string, or up to 4 of them, none empty";
        let stop = match self.take("stop") {
            None => return Ok(Vec::new()),
            Some(Value::String(stop)) => vec![stop],
            Some(Value::Array(list)) => list
                .into_iter()
                .map(|item| match item {
                    Value::String(stop) => Ok(stop),
                    other => Err(wrong_type("stop", EXPECTED, &other)),
                })
                .collect::<Result<_, _>>()?,
            Some(other) => return Err(wrong_type("stop", EXPECTED, &other)),
        };
        if stop.len() > 4 || stop.iter().any(String::is_empty) {
            return Err(Reason::new(
                "invalid_value",
                format!("stop: expected {EXPECTED}"),
            ));
        }
        Ok(stop)
    }

    /// Accepts the neutral value of what this version does not do, and refuses any other.
    fn refuse_unsupported(&mut self) -> Result<(), Reason> {
        type IsNeutral = fn(&Value) -> bool;
        let neutral: [(&str, IsNeutral); 9] = [
            ("n", |v| v.as_u64() == Some(1)),
            ("stream", |v| v == &Value::Bool(false)),
            ("stream_options", |_| false),
            ("logprobs", |v| v == &Value::Bool(false)),
            ("frequency_penalty", |v| v.as_f64() == Some(0.0)),
            ("presence_penalty", |v| v.as_f64() == Some(0.0)),
            ("logit_bias", |v| v.as_object().is_some_and(Map::is_empty)),
            ("tools", |v| v.as_array().is_some_and(Vec::is_empty)),
            ("response_format", |v| v["type"] == "text"),
        ];
        for (name, is_neutral) in neutral {
            if let Some(value) = self.take(name)
                && !is_neutral(&value)
            {
                return Err(Reason::new(
                    "unsupported_parameter",
                    format!("{name} is not supported; leave it out"),
                ));
            }
        }
        Ok(())
    }
}

/// Longest deadline: a year, so that adding it to the present never overflows.
const DEADLINE_MS_MAX: u64 = 365 * 24 * 3600 * 1000;

fn read_message(at: usize, turn: Value) -> Result<Message, Reason> {
    let Value::Object(mut turn) = turn else {
        return Err(wrong_type(&format!("messages[{at}]"), "an object", &turn));
    };
    let field = |name: &str| format!("messages[{at}].{name}");
    let role = match turn.remove("role") {
        Some(Value::String(role)) => match role.as_str() {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            _ => {
                return Err(Reason::new(
                    "invalid_value",
                    format!(
                        "{}: expected system, developer, user or assistant",
                        field("role")
                    ),
                ));
            }
        },
        Some(other) => return Err(wrong_type(&field("role"), "a string", &other)),
        None => {
            return Err(Reason::new(
                "missing_field",
                format!("{} is missing", field("role")),
            ));
        }
    };
    let content = match turn.remove("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => join_text_parts(&field("content"), parts)?,
        Some(other) => {
            return Err(wrong_type(
                &field("content"),
                "a string or text parts",
                &other,
            ));
        }
        None => {
            let message = format!("{} is missing", field("content"));
            return Err(Reason::new("missing_field", message));
        }
    };
    turn.remove("name");
    match turn.into_iter().find(|(_, value)| !value.is_null()) {
        Some((name, _)) => Err(unknown_field(&field(&name), "role, content, name")),
        None => Ok(Message { role, content }),
    }
}

fn join_text_parts(field: &str, parts: Vec<Value>) -> Result<String, Reason> {
    let mut text = String::new();
    for part in parts {
        match (part["type"].as_str(), part["text"].as_str()) {
            (Some("text"), Some(piece)) => text.push_str(piece),
            _ => {
                return Err(Reason::new(
                    "unsupported_parameter",
                    format!("{field}: only parts of type text with a string text are supported"),
                ));
            }
        }
    }
    Ok(text)
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn wrong_type(field: &str, expected: &str, found: &Value) -> Reason {
    Reason::new(
        "invalid_type",
        format!("{field}: expected {expected}, found {}", type_name(found)),
    )
}

/// Quotes numbers and booleans; a string may hold prompt text, so only its type is told.
fn wrong_value(field: &str, expected: &str, found: &Value) -> Reason {
    let found = match found {
        Value::Number(number) => number.to_string(),
        Value::Bool(boolean) => boolean.to_string(),
        other => type_name(other).to_owned(),
    };
    Reason::new(
        "invalid_value",
        format!("{field}: expected {expected}, found {found}"),
    )
}

fn unknown_field(field: &str, known: &str) -> Reason {
    // A name is the producer's own text: keep it short.
    let shown: String = field.chars().take(64).collect();
    Reason::new(
        "unknown_field",
        format!("unknown field {shown:?}; known are {known}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<Submission, Rejection> {
        Submission::parse(body.as_bytes(), &RequestLimits::default())
    }

    fn code(body: &str) -> String {
        parse(body).expect_err("must be rejected").reason.code
    }

    #[test]
    fn reads_the_three_shapes_of_a_body() {
        let chat = parse(r#"{"messages":[{"role":"user","content":"hi"}],"temperature":0}"#);
        let prompt = parse(r#"{"prompt":"hi"}"#).expect("prompt");
        let line = parse(
            r#"{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"prompt":"hi"}}"#,
        )
        .expect("line");
        assert_eq!(chat.expect("chat").request, prompt.request);
        assert_eq!(line.request, prompt.request);
        assert_eq!(line.custom_id.as_deref(), Some("a"));
    }

    #[test]
    fn joins_text_parts_and_reads_the_extension() {
        let body = r#"{"messages":[{"role":"developer","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}],
            "stop":"x","max_tokens":5,"promptyard":{"cache":"off","tenant":"t1","deadline_ms":10,"escalate":false}}"#;
        let read = parse(body).expect("valid");
        assert_eq!(read.request.messages[0].role, Role::System);
        assert_eq!(read.request.messages[0].content, "ab");
        assert_eq!(read.request.options.cache, CacheMode::Off);
        assert_eq!(read.tenant.expect("tenant").as_str(), "t1");
        assert_eq!(read.deadline_ms, Some(10));
        assert_eq!(read.request.sampling.max_completion_tokens, 5);
    }

    #[test]
    fn a_request_survives_being_written_and_read_again() {
        let body = r#"{"model":"large","messages":[{"role":"user","content":"hi"}],"temperature":0.7,"top_p":0.9,
            "top_k":40,"seed":18446744073709551615,"stop":["a"],"max_tokens":9,"promptyard":{"cache":"off","tenant":"t"}}"#;
        let read = parse(body).expect("valid");
        let tenant = read.tenant.clone().expect("tenant");
        let again = parse(&read.request.to_body(&tenant).to_string()).expect("valid again");
        assert_eq!(again, read);
    }

    #[test]
    fn names_each_fault() {
        for (body, expected) in [
            ("{", "invalid_json"),
            ("[]", "invalid_type"),
            ("{}", "missing_field"),
            (r#"{"prompt":"  "}"#, "empty_prompt"),
            (r#"{"messages":[]}"#, "empty_prompt"),
            (r#"{"prompt":3}"#, "invalid_type"),
            (r#"{"prompt":"a","max_tokens":-1}"#, "invalid_value"),
            (r#"{"prompt":"a","max_tokens":1.5}"#, "invalid_value"),
            (r#"{"prompt":"a","temperature":"hot"}"#, "invalid_value"),
            (r#"{"prompt":"a","temperature":3}"#, "invalid_value"),
            (r#"{"prompt":"a","n":2}"#, "unsupported_parameter"),
            (r#"{"prompt":"a","max_token":2}"#, "unknown_field"),
            (
                r#"{"prompt":"a","promptyard":{"cachet":"off"}}"#,
                "unknown_field",
            ),
            (
                r#"{"prompt":"a","promptyard":{"cache":"on"}}"#,
                "invalid_value",
            ),
            (
                r#"{"prompt":"a","promptyard":{"deadline_ms":-5}}"#,
                "invalid_value",
            ),
            (
                r#"{"prompt":"a","promptyard":{"tenant":"a b"}}"#,
                "invalid_value",
            ),
            (
                r#"{"messages":[{"role":"robot","content":"a"}]}"#,
                "invalid_value",
            ),
            (
                r#"{"messages":[{"role":"user","content":"a","tool_calls":[]}]}"#,
                "unknown_field",
            ),
            (r#"{"custom_id":7,"body":{"prompt":"a"}}"#, "invalid_type"),
            (
                r#"{"custom_id":"a","url":"/v1/embeddings","body":{"prompt":"a"}}"#,
                "invalid_value",
            ),
            (
                r#"{"prompt":"a","stop":["a","b","c","d","e"]}"#,
                "invalid_value",
            ),
        ] {
            assert_eq!(code(body), expected, "{body}");
        }
        let limits = RequestLimits::default();
        let utf8 = Submission::parse(b"{\"prompt\":\"\xff\"}", &limits).expect_err("not UTF-8");
        assert_eq!(utf8.reason.code, "invalid_utf8");
        let large = vec![b' '; limits.body_bytes_max + 1];
        let large = Submission::parse(&large, &limits).expect_err("too large");
        assert_eq!(large.reason.code, "body_too_large");
    }

    #[test]
    fn keeps_the_name_of_a_rejected_line_and_never_quotes_its_text() {
        let secret = "the patient's name";
        let body =
            format!(r#"{{"custom_id":"row-9","body":{{"prompt":"a","temperature":"{secret}"}}}}"#);
        let rejection = parse(&body).expect_err("wrong type");
        assert_eq!(rejection.custom_id.as_deref(), Some("row-9"));
        assert!(!rejection.reason.message.contains(secret));
    }
}
