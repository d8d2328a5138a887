//! Reads the fields of a chat-completions body; each error says what to change.

pub(super) mod fields;
mod sampling;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::Value;

use self::fields::{Fields, unknown_field, wrong_type, wrong_value};
use super::{
    identity::Tenant,
    request::{ChatRequest, Message, ModelChoice, Options, RequestLimits, Role},
    schedule::Schedule,
    state::Reason,
};

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

impl Fields {
    /// Reads every field; the tenant also when another field is invalid.
    pub(super) fn read(
        &mut self,
        limits: &RequestLimits,
        tenant: &mut Option<Tenant>,
    ) -> Result<(ChatRequest, Schedule), Reason> {
        let (options, schedule) = self.extension(tenant)?;
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
                "model, messages or prompt, max_completion_tokens, temperature, top_p, top_k, min_p, \
                 repetition_penalty, presence_penalty, frequency_penalty, logit_bias, seed, stop, \
                 logprobs, top_logprobs, response_format, promptyard",
            ));
        }
        let request = ChatRequest {
            model,
            messages,
            sampling,
            options,
        };
        Ok((request, schedule))
    }

    fn extension(&mut self, tenant: &mut Option<Tenant>) -> Result<(Options, Schedule), Reason> {
        let mut inner = match self.take("promptyard") {
            None => return Ok((Options::default(), Schedule::default())),
            Some(Value::Object(object)) => Self { object },
            Some(other) => return Err(wrong_type("promptyard", "an object", &other)),
        };
        *tenant = match inner.take("tenant") {
            None => None,
            Some(Value::String(name)) => Some(name.try_into().map_err(|error: String| {
                Reason::new("invalid_value", format!("promptyard.tenant: {error}"))
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
            tags: inner.tags()?,
        };
        let schedule = inner.schedule()?;
        match inner.object.keys().next() {
            Some(field) => Err(unknown_field(
                &format!("promptyard.{field}"),
                "attempts_max, cache, context, deadline_ms, escalate, not_before, tags, tenant",
            )),
            None => Ok((options, schedule)),
        }
    }

    fn schedule(&mut self) -> Result<Schedule, Reason> {
        let most = Schedule::AHEAD_MS_MAX;
        let expected = format!("milliseconds from 0 to {most}");
        let deadline_ms = self.whole_number("deadline_ms", 0..=most, &expected)?;
        let most = Schedule::ATTEMPTS_MAX;
        let expected = format!("a whole number from 1 to {most}");
        let attempts_max = self.whole_number("attempts_max", 1..=u64::from(most), &expected)?;
        let not_before = match self.take("not_before") {
            None => None,
            Some(value) => Some(value.as_str().and_then(read_start).ok_or_else(|| {
                let expected = "a time within a year, such as \"2026-01-31T12:00:00Z\" (RFC 3339)";
                wrong_value("promptyard.not_before", expected, &value)
            })?),
        };
        Ok(Schedule {
            deadline_ms,
            not_before,
            attempts_max: attempts_max.and_then(|count| u32::try_from(count).ok()),
        })
    }

    fn whole_number(
        &mut self,
        name: &str,
        allowed: std::ops::RangeInclusive<u64>,
        expected: &str,
    ) -> Result<Option<u64>, Reason> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(number) if allowed.contains(&number) => Ok(Some(number)),
            _ => Err(wrong_value(&format!("promptyard.{name}"), expected, &value)),
        }
    }

    /// A tag that is repeated counts once.
    fn tags(&mut self) -> Result<Vec<String>, Reason> {
        let list = match self.take("tags") {
            None => return Ok(Vec::new()),
            Some(Value::Array(list)) => list,
            Some(other) => return Err(wrong_type("promptyard.tags", "a list of strings", &other)),
        };
        let error = |what: String| Reason::new("invalid_value", format!("promptyard.tags: {what}"));
        if list.len() > Options::TAGS_MAX {
            let most = Options::TAGS_MAX;
            return Err(error(format!(
                "expected at most {most}, found {}",
                list.len()
            )));
        }
        let mut tags: Vec<String> = Vec::with_capacity(list.len());
        for item in list {
            match item {
                Value::String(tag) if tags.contains(&tag) => {}
                Value::String(tag) if Options::is_tag(&tag) => tags.push(tag),
                _ => {
                    let most = Options::TAG_BYTES_MAX;
                    return Err(error(format!(
                        "each is 1 to {most} characters of A-Z a-z 0-9 . _ - : /"
                    )));
                }
            }
        }
        Ok(tags)
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

    /// Accepts only the neutral value of unsupported parameters.
    fn refuse_unsupported(&mut self) -> Result<(), Reason> {
        type IsNeutral = fn(&Value) -> bool;
        let neutral: [(&str, IsNeutral); 4] = [
            ("n", |v| v.as_u64() == Some(1)),
            ("stream", |v| v == &Value::Bool(false)),
            ("stream_options", |_| false),
            ("tools", |v| v.as_array().is_some_and(Vec::is_empty)),
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

/// Reads a job's earliest start.
fn read_start(text: &str) -> Option<DateTime<Utc>> {
    let at = DateTime::parse_from_rfc3339(text).ok()?.to_utc();
    let most = TimeDelta::milliseconds(Schedule::AHEAD_MS_MAX as i64);
    (at - Utc::now() <= most).then_some(at)
}

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
