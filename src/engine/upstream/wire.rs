//! What goes over the wire: the part of OpenAI's API that chat completions need.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    engine::{Generate, signals::SignalCollector},
    job::{FinishReason, Message, ResponseFormat, Signals},
};

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
    /// Nor is this, nor the next: vLLM's names.
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
    /// The older name, which every compatible server knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    /// The newer one, which OpenAI's own models demand.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<u8>,
}

/// Peculiarities of a server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dialect {
    /// Speaks of `max_completion_tokens`.
    pub(super) is_openai: bool,
    /// Gives log-probabilities.
    pub(super) logprobs: bool,
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
        }
    }
}

/// A chat completion.
#[derive(Debug, Deserialize)]
pub(super) struct Completion {
    choices: Vec<Choice>,
    pub(super) usage: Option<UsageFields>,
    /// Changes with the server's weights and settings.
    pub(super) system_fingerprint: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    message: AnswerMessage,
    finish_reason: Option<String>,
    logprobs: Option<Logprobs>,
}

#[derive(Debug, Deserialize)]
struct AnswerMessage {
    content: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Logprobs {
    content: Option<Vec<TokenLogprob>>,
}

#[derive(Debug, Deserialize)]
struct TokenLogprob {
    logprob: f64,
}

/// What a server counted.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct UsageFields {
    #[serde(default)]
    pub(super) prompt_tokens: u32,
    #[serde(default)]
    pub(super) completion_tokens: u32,
    #[serde(default)]
    pub(super) prompt_tokens_details: Option<PromptDetails>,
}

/// How many of the prompt's tokens came from the server's prefix cache.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct PromptDetails {
    #[serde(default)]
    pub(super) cached_tokens: Option<u32>,
}

/// The one answer of a completion.
#[derive(Debug)]
pub(super) struct FirstChoice {
    pub(super) text: String,
    pub(super) finish_reason: FinishReason,
    pub(super) signals: Option<Signals>,
}

impl Completion {
    /// The first choice; `Err` says what is wrong with the response.
    pub(super) fn take_first(&mut self) -> Result<FirstChoice, String> {
        if self.choices.is_empty() {
            return Err("the server's response has no choices".to_owned());
        }
        let choice = self.choices.swap_remove(0);
        let finish_reason = match choice.finish_reason.as_deref() {
            Some("length") => FinishReason::Length,
            // TGI says `eos_token` and `stop_sequence`.
            Some("stop" | "eos_token" | "stop_sequence") | None => FinishReason::Stop,
            Some(other) => return Err(format!("the server ended the answer with {other:?}")),
        };
        let tokens = choice
            .logprobs
            .and_then(|logprobs| logprobs.content)
            .unwrap_or_default();
        let mut signals = SignalCollector::default();
        for token in &tokens {
            signals.push(token.logprob as f32, None);
        }
        Ok(FirstChoice {
            text: choice.message.content.unwrap_or_default(),
            finish_reason,
            signals: signals.finish(finish_reason == FinishReason::Length),
        })
    }
}

/// An error as OpenAI writes it, or one of the shapes that others use.
#[derive(Debug, Default)]
pub(super) struct ErrorBody {
    pub(super) code: String,
    pub(super) message: String,
}

impl ErrorBody {
    pub(super) fn read(body: &[u8]) -> Self {
        let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let error = if value["error"].is_object() {
            &value["error"]
        } else {
            &value
        };
        let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        let message = value["error"]
            .as_str()
            .map_or_else(|| text("message"), str::to_owned);
        let code = Some(text("code"))
            .filter(|code| !code.is_empty())
            .unwrap_or_else(|| text("type"));
        Self { code, message }
    }

    /// True when the prompt does not fit the model's context.
    pub(super) fn is_context_too_long(&self) -> bool {
        // OpenAI has the code; llama.cpp the type; vLLM only the words.
        ["context_length_exceeded", "exceed_context_size_error"].contains(&self.code.as_str())
            || self.message.contains("maximum context length")
    }

    /// Context length and prompt length, where the message tells them: "maximum context length is
    /// 4096 tokens. However, … resulted in 5000 tokens", "request has 4999 input tokens".
    pub(super) fn context_numbers(&self) -> Option<(usize, usize)> {
        let after = self.message.split("context length is ").nth(1)?;
        let mut numbers = after
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|digits| digits.parse::<usize>().ok());
        let context_tokens = numbers.next()?;
        // The largest number told is the whole request, when it is told at all.
        let tokens = numbers.max()?;
        Some((context_tokens, tokens))
    }
}
