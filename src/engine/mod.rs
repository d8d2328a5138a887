//! A conversation becomes tokens.
//!
//! Comes in: messages and sampling parameters. Goes out: an answer with its tokens and timings.
//! An engine knows nothing of jobs' lives, queues or the ledger. [`candle`] runs a model in this
//! process on a thread of its own, [`upstream`] asks an OpenAI-compatible server, [`scripted`]
//! answers by rule, for tests and load. `watchdog` opens one again that hangs.

mod admission;
mod embedder;
pub mod local;
mod pulse;
pub mod scripted;
mod signals;
mod stop;
pub mod upstream;
mod watchdog;

use std::{fmt, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;

pub use embedder::{Embedder, EmbedderError, cosine};
pub use stop::Stop;
use watchdog::Watched;

use crate::{
    config::{ModelConfig, SecretUrl},
    job::{Answer, Message, Priority, Sampling, Signals, Tenant, Tier},
};

/// What an engine serves.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineInfo {
    /// The served model's name.
    pub model: String,
    /// Changes whenever the same greedy request may be answered differently: a digest of weights,
    /// tokenizer, template and configuration.
    pub revision: String,
    /// Longest context in tokens, prompt and answer together; `None` when a server does not tell.
    pub context_tokens: Option<usize>,
    /// Sequences it runs at once.
    pub batch_max: usize,
    /// Parameters that a token is multiplied with, where the engine can tell.
    pub parameters: Option<u64>,
}

/// A request to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct Generate {
    /// The conversation to continue.
    pub messages: Vec<Message>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Used when the sampling names no seed, so that a repeated attempt samples alike.
    pub seed_default: u64,
    /// When and beside whom it is computed; never what is answered.
    pub terms: Terms,
}

/// What decides when and beside whom a request is computed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Terms {
    /// Whose request it is; what was computed for one tenant's prompts is not used for another's
    /// unless the configuration says so.
    pub tenant: Tenant,
    /// High goes before normal.
    pub priority: Priority,
    /// When the answer is due.
    pub deadline: Option<DateTime<Utc>>,
    /// Ends the request before its answer is whole.
    pub stop: Stop,
}

/// An answer and when it came about.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The answer.
    pub answer: Answer,
    /// What its tokens tell about how right it may be, where the engine gives log-probabilities.
    pub signals: Option<Signals>,
    /// When computing began (after any wait inside the engine).
    pub started_at: DateTime<Utc>,
    /// When the first token was there, where the engine can tell.
    pub first_token_at: Option<DateTime<Utc>>,
    /// When the last token was there.
    pub finished_at: DateTime<Utc>,
}

/// Why there is no answer; the variants say what the caller does next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// Never on this model; a model with a longer context may take it.
    #[error(
        "the prompt has {prompt_tokens} tokens; {model} takes {context_tokens} with at least one for the answer"
    )]
    ContextTooLong {
        /// The model's name.
        model: String,
        /// Tokens of the prompt with its chat template.
        prompt_tokens: usize,
        /// The model's context length.
        context_tokens: usize,
    },
    /// Never: the request asks for what the engine cannot do, or a server called it invalid.
    #[error("the engine cannot serve the request: {0}")]
    Unservable(String),
    /// Later: the engine's queue is full, or a server is overloaded, throttles or is down.
    #[error("the engine is not available: {message}")]
    Unavailable {
        /// What went wrong.
        message: String,
        /// What a server asked for.
        retry_after_ms: Option<u64>,
    },
    /// Now, elsewhere or again: the engine failed while computing.
    #[error("the engine failed: {0}")]
    Crashed(String),
    /// The request was stopped before there was anything of its answer.
    #[error("the request was stopped")]
    Stopped,
    /// The engine was closed.
    #[error("the engine is closed")]
    Closed,
}

/// Why an engine cannot be opened: one line with what was found and what helps.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the {tier} model {model}: {message}")]
pub struct OpenError {
    /// The tier it was meant for.
    pub tier: Tier,
    /// The directory, hub name or URL.
    pub model: String,
    /// What was found, what was expected.
    pub message: String,
}

/// Turns conversations into answers, many at once.
pub trait Engine: Send + Sync + fmt::Debug {
    /// What it serves.
    fn info(&self) -> &EngineInfo;

    /// Starts generating at once; the future waits for the answer. Dropping the future gives the
    /// sequence up within a step. Up to [`EngineInfo::batch_max`] requests run side by side, more
    /// wait in a bounded queue; a full queue gives [`EngineError::Unavailable`].
    fn generate(&self, request: Generate) -> BoxFuture<'static, Result<Generation, EngineError>>;

    /// False while the engine could not serve a request; drives `/readyz`.
    fn is_ready(&self) -> bool;

    /// How long the step under way has taken so far, the longest there is when what computes steps is
    /// gone; `None` where nothing is computed now, or not in this process.
    fn stalled(&self) -> Option<Duration>;
}

/// Opens the engine that a tier's configuration names, and opens it again should it hang.
///
/// `model` is `scripted:…` ([`scripted`]), an `http(s)://` URL ([`upstream`]), a directory or a hub
/// name ([`candle`]); without one the checkpoint bundled with the binary is used.
///
/// # Errors
/// [`OpenError`] in one line when the model cannot be had or is not understood.
pub async fn open(tier: Tier, config: &ModelConfig) -> Result<Arc<dyn Engine>, OpenError> {
    let engine = open_once(tier, config).await?;
    if config.step_hang_s == 0 {
        return Ok(engine);
    }
    let limit = Duration::from_secs(config.step_hang_s);
    let config = config.clone();
    let reopen = Box::new(move || {
        let config = config.clone();
        Box::pin(async move { open_once(tier, &config).await }) as BoxFuture<'static, _>
    });
    Ok(Watched::over(engine, tier, limit, reopen))
}

async fn open_once(tier: Tier, config: &ModelConfig) -> Result<Arc<dyn Engine>, OpenError> {
    let model = config.model.as_deref();
    let error = |message: String| OpenError {
        tier,
        model: match model {
            // It may hold a password.
            Some(url) if is_url(url) => SecretUrl::new(url).masked(),
            Some(model) => model.to_owned(),
            None => "bundled".to_owned(),
        },
        message,
    };
    match model {
        Some(script) if script.starts_with("scripted:") => {
            let engine = scripted::ScriptedEngine::from_script(script, config).map_err(error)?;
            Ok(Arc::new(engine))
        }
        Some(url) if is_url(url) => {
            let engine = upstream::UpstreamEngine::connect(tier, url, config)
                .await
                .map_err(error)?;
            Ok(Arc::new(engine))
        }
        _ => {
            let engine = local::LocalEngine::open(tier, config)
                .await
                .map_err(error)?;
            Ok(Arc::new(engine))
        }
    }
}

fn is_url(model: &str) -> bool {
    model.starts_with("http://") || model.starts_with("https://")
}
