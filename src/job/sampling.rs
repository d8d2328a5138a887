//! Sampling parameters and the answer's format.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::{Map, Value};

/// How tokens are chosen. The default is greedy, with one token at most.
///
/// A field at its neutral value is not serialized, so that a request has the same digest as before the
/// field existed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 is greedy; up to 2.
    pub temperature: f32,
    /// Nucleus: the smallest set of tokens whose probability reaches this; 0 < p ≤ 1.
    pub top_p: f32,
    /// Keeps only this many of the most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps only tokens with at least this share of the highest probability; 0 keeps all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in the prompt or the answer (Keskar et
    /// al., 2019); 1 has no effect.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of every token in the answer; -2 to 2.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub presence_penalty: f32,
    /// Subtracted from a token's logit for each occurrence in the answer; -2 to 2.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens; -100 to 100.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub logit_bias: BTreeMap<u32, f32>,
    /// Makes sampling reproducible.
    pub seed: Option<u64>,
    /// Generation ends before the first of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Most tokens to generate.
    pub max_completion_tokens: u32,
    /// Returns each token's log-probability and those of this many alternatives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<u8>,
    /// The answer's format.
    #[serde(default, skip_serializing_if = "ResponseFormat::is_text")]
    pub response_format: ResponseFormat,
}

impl Sampling {
    /// Most entries of `logit_bias`.
    pub const LOGIT_BIAS_MAX: usize = 1024;
    /// Most alternatives of a token.
    pub const TOP_LOGPROBS_MAX: u8 = 20;

    /// True when the same request always gets the same answer, so that an answer may be reused.
    pub fn is_deterministic(&self) -> bool {
        self.temperature == 0.0 || self.seed.is_some()
    }

    /// Adds the fields that are not neutral to a body.
    pub(super) fn write_optional(&self, body: &mut Value) {
        for (name, value, neutral) in [
            ("min_p", self.min_p, 0.0),
            ("repetition_penalty", self.repetition_penalty, 1.0),
            ("presence_penalty", self.presence_penalty, 0.0),
            ("frequency_penalty", self.frequency_penalty, 0.0),
        ] {
            if value != neutral {
                body[name] = Value::from(value);
            }
        }
        if !self.logit_bias.is_empty() {
            let bias = self.logit_bias.iter();
            let bias: Map<String, Value> = bias
                .map(|(token, bias)| (token.to_string(), Value::from(*bias)))
                .collect();
            body["logit_bias"] = Value::from(bias);
        }
        if !self.stop.is_empty() {
            body["stop"] = Value::from(self.stop.clone());
        }
        if let Some(top_logprobs) = self.logprobs {
            body["logprobs"] = Value::Bool(true);
            body["top_logprobs"] = Value::from(top_logprobs);
        }
        if !self.response_format.is_text() {
            body["response_format"] = self.response_format.to_json();
        }
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: None,
            stop: Vec::new(),
            max_completion_tokens: 1,
            logprobs: None,
            response_format: ResponseFormat::Text,
        }
    }
}

/// An answer's format, as in OpenAI's API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ResponseFormat {
    /// Anything.
    #[default]
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that a schema describes.
    JsonSchema {
        /// The schema and its name.
        json_schema: NamedSchema,
    },
}

impl ResponseFormat {
    /// True when any text is allowed.
    pub fn is_text(&self) -> bool {
        *self == Self::Text
    }

    /// True when an answer can be parsed: as an object for `json_object`, as any JSON value for a schema.
    /// It does not check the schema, which the engine enforces.
    pub fn is_met_by(&self, answer: &str) -> bool {
        match self {
            Self::Text => true,
            Self::JsonObject => serde_json::from_str::<Map<String, Value>>(answer).is_ok(),
            Self::JsonSchema { .. } => serde_json::from_str::<IgnoredAny>(answer).is_ok(),
        }
    }

    /// The value of a body's `response_format`.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self).expect("a format has only text keys")
    }
}

/// A JSON schema with the name its producer gave it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NamedSchema {
    /// The producer's name for the schema.
    pub name: String,
    /// The schema; the order of its properties is the order in which they are written.
    pub schema: Value,
    /// OpenAI's `strict`, passed on to model servers; the in-process engine always enforces the schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

impl NamedSchema {
    /// Longest name, in bytes.
    pub const NAME_BYTES_MAX: usize = 64;
    /// Largest schema as JSON, in bytes.
    pub const SCHEMA_BYTES_MAX: usize = 64 << 10;
}

fn one() -> f32 {
    1.0
}

fn is_one(number: &f32) -> bool {
    *number == 1.0
}

fn is_zero(number: &f32) -> bool {
    *number == 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_met_by_answers_that_parse() {
        let schema = ResponseFormat::JsonSchema {
            json_schema: NamedSchema {
                name: "n".to_owned(),
                schema: Value::Bool(true),
                strict: None,
            },
        };
        for (answer, object, any) in [
            (r#" {"a": [1]} "#, true, true),
            ("[1]", false, true),
            (r#"{"a": [1"#, false, false),
            (r#"{"a": 1} and more"#, false, false),
            ("```json\n{}\n```", false, false),
            ("", false, false),
        ] {
            assert_eq!(
                ResponseFormat::JsonObject.is_met_by(answer),
                object,
                "{answer}"
            );
            assert_eq!(schema.is_met_by(answer), any, "{answer}");
            assert!(ResponseFormat::Text.is_met_by(answer));
        }
    }

    #[test]
    fn neutral_fields_are_not_serialized_and_old_requests_parse() {
        let old =
            r#"{"temperature":0.5,"top_p":1.0,"top_k":0,"seed":null,"max_completion_tokens":9}"#;
        let read: Sampling = serde_json::from_str(old).expect("a request of before");
        assert_eq!(
            read,
            Sampling {
                temperature: 0.5,
                max_completion_tokens: 9,
                ..Sampling::default()
            }
        );
        assert_eq!(serde_json::to_string(&read).expect("JSON"), old);
    }
}
