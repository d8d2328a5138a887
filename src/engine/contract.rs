//! What every engine implements: the request it takes, the answer or error it returns, and how it
//! reports its state.

use std::{fmt, time::Duration};

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::job::{Answer, Message, Priority, Sampling, Signals, Tenant, Tier};

/// Describes the model that an engine serves.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineInfo {
    /// The served model's name.
    pub model: String,
    /// Digest of weights, tokenizer, chat template and configuration. It changes whenever the same
    /// greedy request may get another answer.
    pub revision: String,
    /// Context length in tokens, prompt and answer together; `None` when a server does not report it.
    pub context_tokens: Option<usize>,
    /// Sequences that run at once.
    pub batch_max: usize,
    /// Parameters multiplied per token, where the engine knows them.
    pub parameters: Option<u64>,
}

/// A request to generate an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Generate {
    /// The conversation to continue.
    pub messages: Vec<Message>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Seed used when `sampling` has none, so that a retry samples the same tokens.
    pub seed_default: u64,
    /// Affects when the request runs and which KV blocks it may share, never its answer.
    pub context: RequestContext,
}

#[cfg(test)]
impl Generate {
    /// A request with one user message.
    pub(super) fn from_prompt(content: &str, max_completion_tokens: u32) -> Self {
        Self {
            messages: vec![Message {
                role: crate::job::Role::User,
                content: content.to_owned(),
            }],
            sampling: Sampling {
                max_completion_tokens,
                ..Sampling::default()
            },
            seed_default: 1,
            context: RequestContext::default(),
        }
    }
}

/// Tenant, priority, deadline and stop signal of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestContext {
    /// The tenant. Cached prompt prefixes are shared between tenants only if the configuration
    /// allows it.
    pub tenant: Tenant,
    /// High priority runs before normal.
    pub priority: Priority,
    /// When the answer is due.
    pub deadline: Option<DateTime<Utc>>,
    /// Ends the request early.
    pub stop: Stop,
}

/// A signal that ends one request early. The engine then returns the tokens generated so far, with
/// finish reason `length`, or [`EngineError::Stopped`] if there are none. Clones share the signal.
#[derive(Clone, Debug, Default)]
pub struct Stop(CancellationToken);

impl Stop {
    /// Requests the stop; later calls have no effect.
    pub fn request(&self) {
        self.0.cancel();
    }

    /// True once the stop was requested.
    pub fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until the stop is requested.
    pub async fn requested(&self) {
        self.0.cancelled().await;
    }
}

/// Stop signals do not distinguish requests: all compare equal.
impl PartialEq for Stop {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// An answer with its timings.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The answer.
    pub answer: Answer,
    /// Confidence signals, where the engine provides log-probabilities.
    pub signals: Option<Signals>,
    /// When computing began, after any wait inside the engine.
    pub started_at: DateTime<Utc>,
    /// When the first token was generated, where the engine knows it.
    pub first_token_at: Option<DateTime<Utc>>,
    /// When the last token was generated.
    pub finished_at: DateTime<Utc>,
}

/// Why a request has no answer; the variants tell the caller what to do next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// Do not retry on this model; one with a longer context may answer.
    #[error(
        "the prompt has {prompt_tokens} tokens; {model} has a context of {context_tokens}, of which the answer needs at least one"
    )]
    ContextTooLong {
        /// The model's name.
        model: String,
        /// Tokens of the prompt with its chat template.
        prompt_tokens: usize,
        /// The model's context length.
        context_tokens: usize,
    },
    /// Do not retry: the engine does not support the request, or a server rejected it as invalid.
    #[error("the engine cannot serve the request: {0}")]
    Unservable(String),
    /// Retry later: the engine's queue is full, or a server is overloaded, throttling or down.
    #[error("the engine is not available: {message}")]
    Unavailable {
        /// What went wrong.
        message: String,
        /// The delay that a server asked for.
        retry_after_ms: Option<u64>,
    },
    /// Retry now, here or elsewhere: the engine failed while computing.
    #[error("the engine failed: {0}")]
    Crashed(String),
    /// The request was stopped before its first token.
    #[error("the request was stopped before its first token")]
    Stopped,
    /// The engine was closed.
    #[error("the engine is closed")]
    Closed,
}

/// Why an engine cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the {tier} model {model}: {message}")]
pub struct OpenError {
    /// The tier that the model serves.
    pub tier: Tier,
    /// The directory, hub name or URL.
    pub model: String,
    /// One line: what was found and what was expected.
    pub message: String,
}

/// Generates answers for many conversations at once.
pub trait Engine: Send + Sync + fmt::Debug {
    /// Describes the served model.
    fn info(&self) -> &EngineInfo;

    /// Starts generating at once; the future resolves to the answer. Dropping the future frees the
    /// sequence within one step. Up to [`EngineInfo::batch_max`] requests run concurrently and more
    /// wait in a bounded queue; when it is full, the result is [`EngineError::Unavailable`].
    fn generate(&self, request: Generate) -> BoxFuture<'static, Result<Generation, EngineError>>;

    /// False while the engine cannot serve requests; `/readyz` reports it.
    fn is_ready(&self) -> bool;

    /// How long the current step has been running: [`Duration::MAX`] when the computing thread has
    /// died, `None` when no step runs or the model is not in this process.
    fn stalled(&self) -> Option<Duration>;
}
