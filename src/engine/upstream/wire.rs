//! The wire format: the part of OpenAI's API that chat completions need, in a server's dialect.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::ErrorBody;
use crate::{
    engine::Generate,
    job::{Message, ResponseFormat},
};

/// The server's list of models; vLLM includes the context lengths.
#[derive(Debug, Deserialize)]
pub(super) struct ModelList {
    pub(super) data: Vec<ModelEntry>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ModelEntry {
    pub(super) id: String,
    pub(super) max_model_len: Option<usize>,
    pub(super) created: Option<serde_json::Value>,
}

/// A chat completion request.
#[derive(Debug, Serialize)]
pub(super) struct CompletionRequest<'a> {
    model: &'a str,
    messages: &'a [Message],
    temperature: f32,
    top_p: f32,
    /// Not part of OpenAI's API; sent only when set.
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<u32>,
    /// vLLM's name, as is the next; not part of OpenAI's API.
    #[serde(skip_serializing_if = "Option::is_none")]
    min_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repetition_penalty: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    presence_penalty: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    frequency_penalty: Option<f32>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    logit_bias: &'a BTreeMap<u32, f32>,
    #[serde(skip_serializing_if = "ResponseFormat::is_text")]
    response_format: &'a ResponseFormat,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<i64>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop: &'a [String],
    /// The older name, supported by all compatible servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    /// The newer name, which OpenAI's own models require.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
}

#[derive(Debug, Serialize)]
struct StreamOptions {
    /// Requests token counts, which streams otherwise lack.
    include_usage: bool,
}

/// What a server supports; everything is assumed until it is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dialect {
    /// Uses `max_completion_tokens`.
    pub(super) is_openai: bool,
    /// Supports log-probabilities.
    pub(super) logprobs: bool,
    /// Supports streaming.
    pub(super) stream: bool,
    /// Supports stream options.
    pub(super) stream_options: bool,
}

impl Dialect {
    /// The dialect of a server that has rejected nothing yet.
    pub(super) fn new(is_openai: bool) -> Self {
        Self {
            is_openai,
            logprobs: true,
            stream: true,
            stream_options: true,
        }
    }

    /// This dialect without the parameter that an error names; `None` when it names none that was sent.
    pub(super) fn without_refused(self, error: &ErrorBody) -> Option<Self> {
        if self.stream && self.stream_options && error.names("stream_options") {
            Some(Self {
                stream_options: false,
                ..self
            })
        } else if self.logprobs && (error.names("logprobs") || error.names("top_logprobs")) {
            Some(Self {
                logprobs: false,
                ..self
            })
        } else if self.stream && error.names("stream") {
            Some(self.without_stream())
        } else {
            None
        }
    }

    /// This dialect without streaming.
    pub(super) fn without_stream(self) -> Self {
        Self {
            stream: false,
            ..self
        }
    }

    /// What both dialects support.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            is_openai: self.is_openai,
            logprobs: self.logprobs && other.logprobs,
            stream: self.stream && other.stream,
            stream_options: self.stream_options && other.stream_options,
        }
    }
}

impl<'a> CompletionRequest<'a> {
    pub(super) fn new(model: &'a str, request: &'a Generate, dialect: Dialect) -> Self {
        let sampling = &request.sampling;
        let most = Some(sampling.max_completion_tokens);
        // Servers expect a signed seed; greedy decoding needs none.
        let seed = sampling.seed.unwrap_or(request.seed_default) & i64::MAX as u64;
        Self {
            model,
            messages: &request.messages,
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: Some(sampling.top_k).filter(|top_k| *top_k > 0),
            min_p: Some(sampling.min_p).filter(|min_p| *min_p > 0.0),
            repetition_penalty: Some(sampling.repetition_penalty).filter(|p| *p != 1.0),
            presence_penalty: Some(sampling.presence_penalty).filter(|p| *p != 0.0),
            frequency_penalty: Some(sampling.frequency_penalty).filter(|p| *p != 0.0),
            logit_bias: &sampling.logit_bias,
            response_format: &sampling.response_format,
            seed: (sampling.temperature > 0.0).then_some(seed as i64),
            stop: &sampling.stop,
            max_tokens: most.filter(|_| !dialect.is_openai),
            max_completion_tokens: most.filter(|_| dialect.is_openai),
            logprobs: dialect.logprobs.then_some(true),
            top_logprobs: (sampling.logprobs).filter(|top| dialect.logprobs && *top > 0),
            stream: dialect.stream.then_some(true),
            stream_options: (dialect.stream && dialect.stream_options).then_some(StreamOptions {
                include_usage: true,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejected_parameters_are_dropped_one_by_one() {
        let refused = |text: &str| {
            let body = format!(r#"{{"error":{{"message":"{text}"}}}}"#);
            ErrorBody::read(body.as_bytes())
        };
        let all = Dialect::new(false);
        let no_options = all
            .without_refused(&refused("stream_options: unknown, stream or not"))
            .expect("named");
        assert!(no_options.stream && !no_options.stream_options && no_options.logprobs);
        let no_list = no_options
            .without_refused(&refused("'logprobs' is not supported"))
            .expect("named");
        let least = no_list
            .without_refused(&refused("stream=True is not supported"))
            .expect("named");
        assert!(!least.stream && !least.logprobs);
        for field in ["stream", "stream_options", "logprobs", "temperature"] {
            assert_eq!(least.without_refused(&refused(field)), None, "{field}");
        }
        assert_eq!(all.and(no_list), no_list);
    }
}
