//! What is asked: the part of OpenAI's API that chat completions need, in a server's dialect.

use serde::{Deserialize, Serialize};

use super::refusal::ErrorBody;
use crate::{engine::Generate, job::Message};

/// The server's list of models; vLLM tells each one's context length.
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
    /// No part of OpenAI's API; sent only when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<i64>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop: &'a [String],
    /// The older name, which every compatible server knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    /// The newer one, which OpenAI's own models demand.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
}

#[derive(Debug, Serialize)]
struct StreamOptions {
    /// The counts, which a stream has only when asked.
    include_usage: bool,
}

/// Peculiarities of a server: everything is asked for until the server refuses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dialect {
    /// Speaks of `max_completion_tokens`.
    pub(super) is_openai: bool,
    /// Gives log-probabilities.
    pub(super) logprobs: bool,
    /// Gives its answer as it grows.
    pub(super) stream: bool,
    /// Takes options of the stream.
    pub(super) stream_options: bool,
}

impl Dialect {
    /// A server's, of which nothing is known.
    pub(super) fn new(is_openai: bool) -> Self {
        Self {
            is_openai,
            logprobs: true,
            stream: true,
            stream_options: true,
        }
    }

    /// This dialect without what an error to it names; `None` when it names nothing that was asked.
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

    /// This dialect without streams.
    pub(super) fn without_stream(self) -> Self {
        Self {
            stream: false,
            ..self
        }
    }

    /// What both speak.
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
        // Servers read a signed number; greedy decoding needs none.
        let seed = sampling.seed.unwrap_or(request.seed_default) & i64::MAX as u64;
        Self {
            model,
            messages: &request.messages,
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: Some(sampling.top_k).filter(|top_k| *top_k > 0),
            seed: (sampling.temperature > 0.0).then_some(seed as i64),
            stop: &sampling.stop,
            max_tokens: most.filter(|_| !dialect.is_openai),
            max_completion_tokens: most.filter(|_| dialect.is_openai),
            logprobs: dialect.logprobs.then_some(true),
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
    fn what_a_server_refuses_by_name_is_left_out_one_by_one() {
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
        for told in ["stream", "stream_options", "logprobs", "temperature"] {
            assert_eq!(least.without_refused(&refused(told)), None, "{told}");
        }
        assert_eq!(all.and(no_list), no_list);
    }
}
