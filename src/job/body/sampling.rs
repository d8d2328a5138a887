//! The sampling fields, and the answer's format.

use std::collections::BTreeMap;

use serde_json::Value;

use super::fields::{Fields, unknown_field, wrong_type, wrong_value};
use crate::job::{
    request::RequestLimits,
    sampling::{NamedSchema, ResponseFormat, Sampling},
    state::Reason,
};

/// Largest repetition penalty; transformers and vLLM name no limit, but beyond this
/// nothing is ever repeated.
const REPETITION_PENALTY_MAX: f64 = 10.0;

impl Fields {
    pub(super) fn sampling(&mut self, limits: &RequestLimits) -> Result<Sampling, Reason> {
        let default = limits.temperature_default;
        let penalty = |p: f64| (-2.0..=2.0).contains(&p);
        Ok(Sampling {
            temperature: self.number("temperature", "a number from 0 to 2", default, |t| {
                (0.0..=2.0).contains(&t)
            })?,
            // It must not round to 0 as f32: that would keep no token.
            top_p: self.number("top_p", "a number above 0, up to 1", 1.0, |p| {
                p as f32 > 0.0 && p <= 1.0
            })?,
            top_k: match self.take("top_k") {
                None => 0,
                Some(value) => value
                    .as_u64()
                    .and_then(|k| u32::try_from(k).ok())
                    .ok_or_else(|| wrong_value("top_k", "a whole number, 0 for all", &value))?,
            },
            min_p: self.number("min_p", "a number from 0 to 1", 0.0, |p| {
                (0.0..=1.0).contains(&p)
            })?,
            repetition_penalty: self.number(
                "repetition_penalty",
                &format!("a number above 0, up to {REPETITION_PENALTY_MAX}"),
                1.0,
                // It must not round to 0 as f32: logits are divided by it.
                |p| p as f32 > 0.0 && p <= REPETITION_PENALTY_MAX,
            )?,
            presence_penalty: self.number(
                "presence_penalty",
                "a number from -2 to 2",
                0.0,
                penalty,
            )?,
            frequency_penalty: self.number(
                "frequency_penalty",
                "a number from -2 to 2",
                0.0,
                penalty,
            )?,
            logit_bias: self.logit_bias()?,
            seed: match self.take("seed") {
                None => None,
                // OpenAI allows negative seeds; their bits serve as the seed.
                Some(value) => Some(
                    value
                        .as_u64()
                        .or_else(|| value.as_i64().map(i64::cast_unsigned))
                        .ok_or_else(|| wrong_value("seed", "an integer", &value))?,
                ),
            },
            stop: self.stop()?,
            max_completion_tokens: self.max_completion_tokens(limits)?,
            logprobs: self.logprobs()?,
            response_format: self.response_format()?,
        })
    }

    fn max_completion_tokens(&mut self, limits: &RequestLimits) -> Result<u32, Reason> {
        let asked = match (self.take("max_completion_tokens"), self.take("max_tokens")) {
            (Some(value), _) => Some(("max_completion_tokens", value)),
            (None, Some(value)) => Some(("max_tokens", value)),
            (None, None) => None,
        };
        let tokens_max = limits.completion_tokens_max;
        match asked {
            None => Ok(limits.completion_tokens_default),
            Some((name, value)) => match value.as_u64() {
                Some(tokens @ 1..) if tokens <= u64::from(tokens_max) => Ok(tokens as u32),
                _ => {
                    let expected = format!("an integer from 1 to {tokens_max}");
                    Err(wrong_value(name, &expected, &value))
                }
            },
        }
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
            return Err(invalid(format!("stop: expected {EXPECTED}")));
        }
        Ok(stop)
    }

    /// A bias of 0 changes nothing and is left out.
    fn logit_bias(&mut self) -> Result<BTreeMap<u32, f32>, Reason> {
        const EXPECTED: &str = "numbers from -100 to 100 by token id";
        let entries = match self.take("logit_bias") {
            None => return Ok(BTreeMap::new()),
            Some(Value::Object(entries)) => entries,
            Some(other) => return Err(wrong_type("logit_bias", EXPECTED, &other)),
        };
        let most = Sampling::LOGIT_BIAS_MAX;
        if entries.len() > most {
            return Err(invalid(format!(
                "logit_bias has {} entries; at most {most} are accepted",
                entries.len()
            )));
        }
        let mut bias = BTreeMap::new();
        for (name, value) in entries {
            let token: u32 = name.parse().map_err(|_| {
                let shown: String = name.chars().take(16).collect();
                invalid(format!("logit_bias: {shown:?} is no token id"))
            })?;
            let number = value.as_f64().filter(|b| (-100.0..=100.0).contains(b));
            let number = number.ok_or_else(|| wrong_value("logit_bias", EXPECTED, &value))? as f32;
            if number != 0.0 {
                bias.insert(token, number);
            }
        }
        Ok(bias)
    }

    fn logprobs(&mut self) -> Result<Option<u8>, Reason> {
        let wanted = match self.take("logprobs") {
            None => false,
            Some(Value::Bool(wanted)) => wanted,
            Some(other) => return Err(wrong_type("logprobs", "true or false", &other)),
        };
        let most = Sampling::TOP_LOGPROBS_MAX;
        let top = match self.take("top_logprobs") {
            None => 0,
            Some(value) => match value.as_u64().and_then(|top| u8::try_from(top).ok()) {
                Some(top) if top <= most => top,
                _ => {
                    let expected = format!("an integer from 0 to {most}");
                    return Err(wrong_value("top_logprobs", &expected, &value));
                }
            },
        };
        match (wanted, top) {
            (true, top) => Ok(Some(top)),
            (false, 0) => Ok(None),
            (false, _) => Err(invalid("top_logprobs needs logprobs: true".to_owned())),
        }
    }

    fn response_format(&mut self) -> Result<ResponseFormat, Reason> {
        const FIELD: &str = "response_format";
        let mut inner = match self.take(FIELD) {
            None => return Ok(ResponseFormat::Text),
            Some(Value::Object(object)) => Self { object },
            Some(other) => return Err(wrong_type(FIELD, "an object", &other)),
        };
        let kind = inner.take("type").unwrap_or_default();
        let format = match kind.as_str() {
            Some("text") => ResponseFormat::Text,
            Some("json_object") => ResponseFormat::JsonObject,
            Some("json_schema") => ResponseFormat::JsonSchema {
                json_schema: inner.json_schema()?,
            },
            _ => {
                let expected = "\"text\", \"json_object\" or \"json_schema\"";
                return Err(wrong_value("response_format.type", expected, &kind));
            }
        };
        match inner.object.keys().next() {
            Some(field) => Err(unknown_field(
                &format!("{FIELD}.{field}"),
                "type, and json_schema where the type is that",
            )),
            None => Ok(format),
        }
    }

    fn json_schema(&mut self) -> Result<NamedSchema, Reason> {
        const FIELD: &str = "response_format.json_schema";
        let mut inner = match self.take("json_schema") {
            Some(Value::Object(object)) => Self { object },
            Some(other) => return Err(wrong_type(FIELD, "an object", &other)),
            None => return Err(Reason::new("missing_field", format!("{FIELD} is missing"))),
        };
        let field = |name: &str| format!("{FIELD}.{name}");
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        let most = NamedSchema::NAME_BYTES_MAX;
        let name = match inner.take("name") {
            Some(Value::String(name))
                if (1..=most).contains(&name.len()) && name.bytes().all(allowed) =>
            {
                name
            }
            other => {
                let expected = format!("1 to {most} characters of A-Z a-z 0-9 _ -");
                let found = other.unwrap_or_default();
                return Err(wrong_value(&field("name"), &expected, &found));
            }
        };
        let schema = match inner.take("schema") {
            Some(schema @ Value::Object(_)) => schema,
            other => {
                let found = other.unwrap_or_default();
                return Err(wrong_type(&field("schema"), "an object", &found));
            }
        };
        let bytes = schema.to_string().len();
        let most = NamedSchema::SCHEMA_BYTES_MAX;
        if bytes > most {
            return Err(invalid(format!(
                "{} has {bytes} bytes; at most {most} are accepted",
                field("schema")
            )));
        }
        let strict = match inner.take("strict") {
            None => None,
            Some(Value::Bool(strict)) => Some(strict),
            Some(other) => return Err(wrong_type(&field("strict"), "true or false", &other)),
        };
        // A hint for the model; no engine here passes it on.
        inner.take("description");
        match inner.object.keys().next() {
            Some(name) => Err(unknown_field(
                &field(name),
                "name, description, schema, strict",
            )),
            None => Ok(NamedSchema {
                name,
                schema,
                strict,
            }),
        }
    }
}

fn invalid(message: String) -> Reason {
    Reason::new("invalid_value", message)
}
