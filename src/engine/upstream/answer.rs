//! An answer put together: from a stream's events one by one, or from one whole response, which is
//! read as a stream of a single event.

use chrono::{DateTime, Utc};
use serde::{Deserialize, de::IgnoredAny};

use crate::{
    engine::{EngineError, Generate, signals::SignalCollector},
    job::{FinishReason, Likelihood, Message, Signals, TokenLogprob, Usage},
    prompt::estimate_tokens,
};

/// A chat completion, or a part of one as it streams.
#[derive(Debug, Deserialize)]
pub(super) struct Chunk {
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
    delta: Option<Piece>,
    /// What a whole response has instead.
    message: Option<Piece>,
    finish_reason: Option<String>,
    logprobs: Option<Logprobs>,
}

#[derive(Debug, Default, Deserialize)]
struct Piece {
    content: Option<String>,
    /// DeepSeek's name for what a model thinks before it answers; vLLM, llama.cpp and others follow.
    reasoning_content: Option<Text>,
    /// Newer vLLM's and OpenRouter's name for it.
    reasoning: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Text {
    Plain(String),
    Other(IgnoredAny),
}

/// Listed tokens with their log-probabilities. An odd list costs the signals, never the answer;
/// odd `bytes` and `top_logprobs` of a token are passed over.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Logprobs {
    Listed { content: Vec<Listed> },
    Other(IgnoredAny),
}

#[derive(Debug, Deserialize)]
struct Listed {
    logprob: Option<f64>,
    token: Option<Text>,
    bytes: Option<Odd<Vec<u8>>>,
    top_logprobs: Option<Odd<Vec<Listed>>>,
}

/// What is expected, or something else that is passed over.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Odd<T> {
    Expected(T),
    Other(IgnoredAny),
}

impl<T> Odd<T> {
    fn expected(self) -> Option<T> {
        match self {
            Self::Expected(value) => Some(value),
            Self::Other(_) => None,
        }
    }
}

impl Listed {
    fn logprob(&self) -> f32 {
        self.logprob.map_or(f32::NAN, |logprob| logprob as f32)
    }

    /// The token as an answer tells it; one without a number counts as the unlikeliest that
    /// servers write.
    fn into_likelihood(self) -> (Likelihood, Vec<Self>) {
        let logprob = self.logprob();
        let likelihood = Likelihood {
            token: match self.token {
                Some(Text::Plain(token)) => token,
                Some(Text::Other(_)) | None => String::new(),
            },
            logprob: if logprob.is_finite() {
                logprob
            } else {
                LOGPROB_NONE
            },
            bytes: self.bytes.and_then(Odd::expected),
        };
        let others = self.top_logprobs.and_then(Odd::expected);
        (likelihood, others.unwrap_or_default())
    }
}

/// What OpenAI's API writes for a token that is out of its list.
const LOGPROB_NONE: f32 = -9999.0;

/// What a server counted; 0 and nothing are alike, since no chat is empty.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct UsageFields {
    prompt_tokens: Option<u32>,
    completion_tokens: Option<u32>,
    prompt_tokens_details: Option<PromptDetails>,
}

/// How many of the prompt's tokens came from the server's prefix cache.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u32>,
}

impl Chunk {
    /// True when this is an error in an answer's place.
    pub(super) fn is_error(&self) -> bool {
        self.error.is_some() || self.object.as_deref() == Some("error")
    }
}

/// An answer as it grows.
#[derive(Debug, Default)]
pub(super) struct Collector {
    text: String,
    finish_reason: Option<String>,
    has_choice: bool,
    is_done: bool,
    signals: SignalCollector,
    /// The tokens that the server lists, where the request asked for them.
    listed: Option<Vec<TokenLogprob>>,
    /// Tokens of text and reasoning, estimated, at least one for each piece.
    written: u32,
    usage: UsageFields,
    fingerprint: Option<String>,
    first_token_at: Option<DateTime<Utc>>,
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Collected {
    pub(super) text: String,
    pub(super) finish_reason: FinishReason,
    pub(super) signals: Option<Signals>,
    /// The tokens, where they were asked for and the server listed them.
    pub(super) logprobs: Option<Vec<TokenLogprob>>,
    pub(super) usage: Usage,
    /// The server told no counts: they are estimates.
    pub(super) is_estimated: bool,
    pub(super) fingerprint: Option<String>,
    pub(super) first_token_at: Option<DateTime<Utc>>,
}

impl Collector {
    /// Nothing so far, of an answer to this request.
    pub(super) fn new(request: &Generate) -> Self {
        Self {
            listed: request.sampling.logprobs.map(|_| Vec::new()),
            ..Self::default()
        }
    }

    /// Takes the next part; `written_at` is when its tokens were written, where that is known.
    pub(super) fn take(&mut self, chunk: Chunk, written_at: Option<DateTime<Utc>>) {
        if let Some(usage) = chunk.usage {
            // Some servers count along: the last word counts.
            self.usage = usage;
        }
        let told = chunk.system_fingerprint.filter(|told| !told.is_empty());
        self.fingerprint = told.or(self.fingerprint.take());
        for choice in chunk.choices.into_iter().flatten() {
            if choice.index == 0 {
                self.take_choice(choice, written_at);
            }
        }
    }

    fn take_choice(&mut self, choice: Choice, written_at: Option<DateTime<Utc>>) {
        self.has_choice = true;
        let piece = choice.delta.or(choice.message).unwrap_or_default();
        let thought = match piece.reasoning_content.or(piece.reasoning) {
            Some(Text::Plain(thought)) => thought,
            Some(Text::Other(_)) | None => String::new(),
        };
        let content = piece.content.unwrap_or_default();
        for written in [&thought, &content] {
            if !written.is_empty() {
                let tokens = estimate_tokens(written).max(1);
                self.written = self.written.saturating_add(saturated(tokens));
            }
        }
        let listed = match choice.logprobs {
            Some(Logprobs::Listed { content }) => content,
            Some(Logprobs::Other(_)) | None => Vec::new(),
        };
        if !(thought.is_empty() && content.is_empty() && listed.is_empty()) {
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

    /// Notes the end that a stream announces.
    pub(super) fn end(&mut self) {
        self.is_done = true;
    }

    /// Ends the answer with what there is.
    pub(super) fn cut_short(&mut self) {
        self.finish_reason = Some("length".to_owned());
    }

    /// True once a token has come.
    pub(super) fn has_begun(&self) -> bool {
        self.first_token_at.is_some()
    }

    /// True once the answer is whole, whatever may follow (counts, the end of the stream).
    pub(super) fn is_whole(&self) -> bool {
        self.is_done || self.finish_reason.is_some()
    }

    /// The answer to this prompt.
    ///
    /// # Errors
    /// There was no choice, or it ended in a way that makes it no answer.
    pub(super) fn finish(self, prompt: &[Message]) -> Result<Collected, EngineError> {
        if !self.has_choice {
            let message = "the server's response has no choices".to_owned();
            return Err(EngineError::Crashed(message));
        }
        let finish_reason = match self.finish_reason.as_deref() {
            Some("length") => FinishReason::Length,
            // TGI says `eos_token` and `stop_sequence`.
            Some("stop" | "eos_token" | "stop_sequence") | None => FinishReason::Stop,
            Some("content_filter") => {
                let message = "the server's filter withheld the answer".to_owned();
                return Err(EngineError::Unservable(message));
            }
            Some(other) => {
                let message = format!("the server ended the answer with {other:?}");
                return Err(EngineError::Crashed(message));
            }
        };
        let signals = self.signals.finish(finish_reason == FinishReason::Length);
        let told = |count: Option<u32>| count.filter(|count| *count > 0);
        let (prompt_told, completion_told) = (
            told(self.usage.prompt_tokens),
            told(self.usage.completion_tokens),
        );
        let prompt_tokens = prompt_told.unwrap_or_else(|| {
            let texts = prompt.iter().map(|message| message.content.as_str());
            saturated(texts.map(estimate_tokens).sum::<usize>().max(1))
        });
        // As exact as can be had: the server's count, the tokens it listed, an estimate.
        let listed = signals.map(|signals| signals.tokens);
        let completion_tokens = completion_told.or(listed).unwrap_or(self.written);
        let details = self.usage.prompt_tokens_details.unwrap_or_default();
        let cached = details.cached_tokens.unwrap_or(0);
        Ok(Collected {
            text: self.text,
            finish_reason,
            signals,
            logprobs: self.listed.filter(|listed| !listed.is_empty()),
            usage: Usage {
                prompt_tokens,
                prompt_tokens_computed: prompt_tokens.saturating_sub(cached),
                completion_tokens,
            },
            is_estimated: prompt_told.is_none() || (completion_told.is_none() && self.written > 0),
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

    fn collect(chunks: &[Value]) -> Result<Collected, EngineError> {
        let mut collector = Collector::default();
        for (at, chunk) in (0..).zip(chunks) {
            let chunk = Chunk::deserialize(chunk).expect("a chunk");
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
    fn a_stream_gives_what_the_whole_response_gives() {
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
    fn reasoning_is_no_text_but_time_and_tokens() {
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
    fn counts_that_are_not_told_are_estimated() {
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
        assert_eq!(answer.signals, None, "an odd list is no list");
        let empty = json!({"choices": [{"message": {"content": null}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}});
        assert!(!collect(&[empty]).expect("an answer").is_estimated);
    }

    #[test]
    fn what_is_no_answer_is_a_fault() {
        let ended = |reason: &str| collect(&[json!({"choices": [{"finish_reason": reason}]})]);
        assert!(matches!(collect(&[]), Err(EngineError::Crashed(_))));
        assert!(matches!(ended("tool_calls"), Err(EngineError::Crashed(_))));
        let filtered = ended("content_filter");
        assert!(matches!(filtered, Err(EngineError::Unservable(_))));
        for error in [
            json!({"error": {"message": "m"}}),
            json!({"object": "error"}),
        ] {
            assert!(Chunk::deserialize(&error).expect("a chunk").is_error());
        }
        assert!(
            !Chunk::deserialize(&json!({"error": null}))
                .expect("a chunk")
                .is_error()
        );
    }
}
