//! Assembles an answer from a stream's events, or from a whole response, which is read as a stream
//! with a single event.

use chrono::{DateTime, Utc};
use serde::{Deserialize, de::IgnoredAny};

use crate::{
    engine::{EngineError, Generate, signals::SignalCollector},
    job::{FinishReason, Likelihood, Message, Signals, TokenLogprob, Usage},
    prompt::estimate_tokens,
};

/// A chat completion, or one chunk of a streamed one.
#[derive(Debug, Deserialize)]
pub(super) struct CompletionChunk {
    choices: Option<Vec<Choice>>,
    usage: Option<UsageFields>,
    /// Changes with the server's weights and settings.
    system_fingerprint: Option<String>,
    object: Option<String>,
    error: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(default)]
    index: u32,
    delta: Option<MessageDelta>,
    /// In whole responses, instead of `delta`.
    message: Option<MessageDelta>,
    finish_reason: Option<String>,
    logprobs: Option<Lenient<Logprobs>>,
}

#[derive(Debug, Default, Deserialize)]
struct MessageDelta {
    content: Option<String>,
    /// Reasoning text under DeepSeek's name, also used by vLLM, llama.cpp and others.
    reasoning_content: Option<Lenient<String>>,
    /// The same under the name of newer vLLM and OpenRouter.
    reasoning: Option<Lenient<String>>,
}

/// Tokens with their log-probabilities. A malformed list costs the signals, never the answer.
#[derive(Debug, Deserialize)]
struct Logprobs {
    content: Vec<ListedToken>,
}

#[derive(Debug, Deserialize)]
struct ListedToken {
    logprob: Option<f64>,
    token: Option<Lenient<String>>,
    bytes: Option<Lenient<Vec<u8>>>,
    top_logprobs: Option<Lenient<Vec<ListedToken>>>,
}

/// A value of the expected type, or anything else, which is ignored.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Lenient<T> {
    Expected(T),
    Other(IgnoredAny),
}

impl<T> Lenient<T> {
    fn expected(self) -> Option<T> {
        match self {
            Self::Expected(value) => Some(value),
            Self::Other(_) => None,
        }
    }
}

impl ListedToken {
    fn logprob(&self) -> f32 {
        self.logprob.map_or(f32::NAN, |logprob| logprob as f32)
    }

    /// Converts the token to the answer's form; without a number it gets [`LOGPROB_NONE`].
    fn into_likelihood(self) -> (Likelihood, Vec<Self>) {
        let logprob = self.logprob();
        let likelihood = Likelihood {
            token: self.token.and_then(Lenient::expected).unwrap_or_default(),
            logprob: if logprob.is_finite() {
                logprob
            } else {
                LOGPROB_NONE
            },
            bytes: self.bytes.and_then(Lenient::expected),
        };
        let others = self.top_logprobs.and_then(Lenient::expected);
        (likelihood, others.unwrap_or_default())
    }
}

/// The log-probability that OpenAI's API reports for a token outside its list.
const LOGPROB_NONE: f32 = -9999.0;

/// Token counts as the server reports them; 0 counts as missing, since no chat is empty.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct UsageFields {
    prompt_tokens: Option<u32>,
    completion_tokens: Option<u32>,
    prompt_tokens_details: Option<PromptDetails>,
}

/// How many prompt tokens came from the server's prefix cache.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u32>,
}

impl CompletionChunk {
    /// True when the server sent an error instead of an answer.
    pub(super) fn is_error(&self) -> bool {
        self.error.is_some() || self.object.as_deref() == Some("error")
    }
}

/// Collects an answer.
#[derive(Debug, Default)]
pub(super) struct AnswerCollector {
    text: String,
    finish_reason: Option<String>,
    has_choice: bool,
    is_done: bool,
    signals: SignalCollector,
    /// The tokens that the server lists, if the request asked for them.
    listed: Option<Vec<TokenLogprob>>,
    /// Estimated tokens of text and reasoning, at least one per delta.
    written: u32,
    usage: UsageFields,
    fingerprint: Option<String>,
    first_token_at: Option<DateTime<Utc>>,
}

/// A complete answer.
#[derive(Debug)]
pub(super) struct CollectedAnswer {
    pub(super) text: String,
    pub(super) finish_reason: FinishReason,
    pub(super) signals: Option<Signals>,
    /// The tokens, if they were requested and the server listed them.
    pub(super) logprobs: Option<Vec<TokenLogprob>>,
    pub(super) usage: Usage,
    /// Whether the counts are estimates because the server reported none.
    pub(super) is_estimated: bool,
    pub(super) fingerprint: Option<String>,
    pub(super) first_token_at: Option<DateTime<Utc>>,
}

impl AnswerCollector {
    /// A collector for the answer to this request.
    pub(super) fn new(request: &Generate) -> Self {
        Self {
            listed: request.sampling.logprobs.map(|_| Vec::new()),
            ..Self::default()
        }
    }

    /// Adds the next chunk; `written_at` is when its tokens were generated, if known.
    pub(super) fn take(&mut self, chunk: CompletionChunk, written_at: Option<DateTime<Utc>>) {
        if let Some(usage) = chunk.usage {
            // Some servers report running counts; the last one is final.
            self.usage = usage;
        }
        let fingerprint = chunk.system_fingerprint;
        let fingerprint = fingerprint.filter(|text| !text.is_empty());
        self.fingerprint = fingerprint.or(self.fingerprint.take());
        for choice in chunk.choices.into_iter().flatten() {
            if choice.index == 0 {
                self.take_choice(choice, written_at);
            }
        }
    }

    fn take_choice(&mut self, choice: Choice, written_at: Option<DateTime<Utc>>) {
        self.has_choice = true;
        let delta = choice.delta.or(choice.message).unwrap_or_default();
        let reasoning = delta.reasoning_content.or(delta.reasoning);
        let reasoning = reasoning.and_then(Lenient::expected).unwrap_or_default();
        let content = delta.content.unwrap_or_default();
        for written in [&reasoning, &content] {
            if !written.is_empty() {
                let tokens = estimate_tokens(written).max(1);
                self.written = self.written.saturating_add(saturated(tokens));
            }
        }
        let logprobs = choice.logprobs.and_then(Lenient::expected);
        let listed = logprobs.map(|list| list.content).unwrap_or_default();
        if !(reasoning.is_empty() && content.is_empty() && listed.is_empty()) {
            self.first_token_at = self.first_token_at.or(written_at);
        }
        for token in listed {
            self.signals.push(token.logprob(), None);
            if let Some(kept) = &mut self.listed {
                let (chosen, others) = token.into_likelihood();
                let top_logprobs = others.into_iter().map(|other| other.into_likelihood().0);
                kept.push(TokenLogprob {
                    chosen,
                    top_logprobs: top_logprobs.collect(),
                });
            }
        }
        self.text.push_str(&content);
        self.finish_reason = choice.finish_reason.or(self.finish_reason.take());
    }

    /// Records the stream's end marker.
    pub(super) fn end(&mut self) {
        self.is_done = true;
    }

    /// Ends the answer with the text so far.
    pub(super) fn cut_short(&mut self) {
        self.finish_reason = Some("length".to_owned());
    }

    /// True once a token has arrived.
    pub(super) fn has_begun(&self) -> bool {
        self.first_token_at.is_some()
    }

    /// True once the answer is complete, even if counts or the end of the stream may follow.
    pub(super) fn is_complete(&self) -> bool {
        self.is_done || self.finish_reason.is_some()
    }

    /// Finishes the answer to this prompt.
    ///
    /// # Errors
    /// When there was no choice, or its finish reason means that there is no answer.
    pub(super) fn finish(self, prompt: &[Message]) -> Result<CollectedAnswer, EngineError> {
        if !self.has_choice {
            let message = "the server's response has no choices".to_owned();
            return Err(EngineError::Crashed(message));
        }
        let finish_reason = match self.finish_reason.as_deref() {
            Some("length") => FinishReason::Length,
            // TGI reports `eos_token` and `stop_sequence`.
            Some("stop" | "eos_token" | "stop_sequence") | None => FinishReason::Stop,
            Some("content_filter") => {
                let message = "the server's content filter withheld the answer".to_owned();
                return Err(EngineError::Unservable(message));
            }
            Some(other) => {
                let message = format!("the server ended the answer with finish reason {other:?}");
                return Err(EngineError::Crashed(message));
            }
        };
        let signals = self.signals.finish(finish_reason == FinishReason::Length);
        let reported = |count: Option<u32>| count.filter(|count| *count > 0);
        let (prompt_reported, completion_reported) = (
            reported(self.usage.prompt_tokens),
            reported(self.usage.completion_tokens),
        );
        let prompt_tokens = prompt_reported.unwrap_or_else(|| {
            let texts = prompt.iter().map(|message| message.content.as_str());
            saturated(texts.map(estimate_tokens).sum::<usize>().max(1))
        });
        // In order of accuracy: the server's count, the tokens it listed, an estimate.
        let listed = signals.map(|signals| signals.tokens);
        let completion_tokens = completion_reported.or(listed).unwrap_or(self.written);
        let details = self.usage.prompt_tokens_details.unwrap_or_default();
        let cached = details.cached_tokens.unwrap_or(0);
        Ok(CollectedAnswer {
            text: self.text,
            finish_reason,
            signals,
            logprobs: self.listed.filter(|listed| !listed.is_empty()),
            usage: Usage {
                prompt_tokens,
                prompt_tokens_computed: prompt_tokens.saturating_sub(cached),
                completion_tokens,
            },
            is_estimated: prompt_reported.is_none()
                || (completion_reported.is_none() && self.written > 0),
            fingerprint: self.fingerprint,
            first_token_at: self.first_token_at,
        })
    }
}

fn saturated(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::job::Role;

    fn prompt() -> Vec<Message> {
        vec![Message {
            role: Role::User,
            content: "Name a city".to_owned(),
        }]
    }

    fn collect(chunks: &[Value]) -> Result<CollectedAnswer, EngineError> {
        let mut collector = AnswerCollector::default();
        for (at, chunk) in (0..).zip(chunks) {
            let chunk = CompletionChunk::deserialize(chunk).expect("a chunk");
            collector.take(chunk, DateTime::from_timestamp(at, 0));
        }
        collector.finish(&prompt())
    }

    fn delta(delta: Value, logprobs: Value) -> Value {
        json!({"choices": [{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": null}]})
    }

    fn stop() -> Value {
        json!({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    }

    #[test]
    fn a_stream_and_a_whole_response_give_the_same_answer() {
        let listed = |logprob: Value| json!({"content": [{"token": "x", "logprob": logprob, "bytes": [120], "top_logprobs": [{"token": "y", "logprob": null}]}]});
        let streamed = collect(&[
            json!({"choices": [], "prompt_filter_results": []}),
            delta(json!({"role": "assistant", "content": ""}), json!(null)),
            delta(json!({"content": "Pa"}), listed(json!(-0.5))),
            json!({"choices": [{"index": 1, "delta": {"content": "another"}}]}),
            delta(json!({"content": "ris"}), listed(json!(-0.25))),
            stop(),
            json!({"choices": [], "system_fingerprint": "f", "usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}}),
        ]);
        let whole = collect(&[json!({
            "choices": [{"message": {"content": "Paris"}, "finish_reason": "stop",
                "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -0.25}]}}],
            "system_fingerprint": "f",
            "usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
        })]);
        let (streamed, whole) = (streamed.expect("an answer"), whole.expect("an answer"));
        assert_eq!(streamed.text, "Paris");
        assert_eq!(streamed.first_token_at.map(|at| at.timestamp()), Some(2));
        assert_eq!(
            (
                streamed.text,
                streamed.signals,
                streamed.usage,
                streamed.fingerprint
            ),
            (whole.text, whole.signals, whole.usage, whole.fingerprint)
        );
        assert!(!streamed.is_estimated);
    }

    #[test]
    fn reasoning_counts_as_tokens_but_not_as_text() {
        for name in ["reasoning_content", "reasoning"] {
            let answer = collect(&[
                delta(json!({name: "Hm"}), json!(null)),
                delta(json!({name: " well"}), json!(null)),
                delta(
                    json!({"content": "Paris", "reasoning": {"odd": 1}}),
                    json!(null),
                ),
                stop(),
            ]);
            let answer = answer.expect("an answer");
            assert_eq!(answer.text, "Paris");
            assert_eq!(answer.first_token_at.map(|at| at.timestamp()), Some(0));
            assert_eq!(answer.usage.completion_tokens, 3);
        }
    }

    #[test]
    fn missing_counts_are_estimated() {
        let list = json!({"content": [{"logprob": -1.0}, {"logprob": null}, {}]});
        let zeros =
            json!({"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": null}});
        let answer = collect(&[
            delta(json!({"content": "Paris"}), list),
            stop(),
            zeros.clone(),
        ]);
        let answer = answer.expect("an answer");
        assert_eq!(answer.usage.completion_tokens, 3, "as listed");
        assert_eq!(answer.usage.prompt_tokens, 3, "three words");
        assert!(answer.is_estimated);
        assert_eq!(answer.signals.expect("signals").min_logprob, -100.0);
        let text = delta(
            json!({"content": "Paris or Rome"}),
            json!({"tokens": ["odd"]}),
        );
        let answer = collect(&[text, stop(), zeros]).expect("an answer");
        assert_eq!(answer.usage.completion_tokens, 3, "as estimated");
        assert_eq!(answer.signals, None, "a malformed list is ignored");
        let empty = json!({"choices": [{"message": {"content": null}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}});
        assert!(!collect(&[empty]).expect("an answer").is_estimated);
    }

    #[test]
    fn responses_without_an_answer_are_errors() {
        let ended = |reason: &str| collect(&[json!({"choices": [{"finish_reason": reason}]})]);
        assert!(matches!(collect(&[]), Err(EngineError::Crashed(_))));
        assert!(matches!(ended("tool_calls"), Err(EngineError::Crashed(_))));
        let filtered = ended("content_filter");
        assert!(matches!(filtered, Err(EngineError::Unservable(_))));
        for error in [
            json!({"error": {"message": "m"}}),
            json!({"object": "error"}),
        ] {
            assert!(
                CompletionChunk::deserialize(&error)
                    .expect("a chunk")
                    .is_error()
            );
        }
        assert!(
            !CompletionChunk::deserialize(&json!({"error": null}))
                .expect("a chunk")
                .is_error()
        );
    }
}
