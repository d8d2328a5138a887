//! Engine for any server with OpenAI's chat completions API: vLLM, llama.cpp, TGI, a hosted API.
//!
//! Conversations in; answers out, or errors classified by what the caller does next. `gate` admits
//! requests within the concurrency `limit` that it learns, `exchange` sends them in the `wire` format
//! and reads the stream's `events` into an `answer`, `error` classifies failures, `server` tracks
//! whether the server is up, and `address_filter` restricts its addresses. At most `batch_max`
//! requests are in flight and a bounded number waits. Answers are returned whole, not streamed.

mod address_filter;
mod answer;
mod error;
mod events;
mod exchange;
mod gate;
mod limit;
mod server;
mod wire;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use tokio::time::Instant;

use super::{Engine, EngineError, EngineInfo, Generate, Generation, slots::RequestSlots};
use crate::{
    config::ModelConfig,
    job::{Answer, Tier},
};
use answer::CollectedAnswer;
use error::ExchangeError;
use gate::{CLOSED_WAIT, RequestGate};
use limit::LoadSignal;
use server::{ModelListError, Server};

/// How long a stopped request may take to return the tokens so far.
const STOP_WAIT: Duration = Duration::from_millis(500);

/// An OpenAI-compatible model server.
#[derive(Debug)]
pub struct UpstreamEngine {
    info: EngineInfo,
    server: Arc<Server>,
    slots: RequestSlots,
}

impl UpstreamEngine {
    /// Connects to a server; `url` is its root or its `/v1`.
    ///
    /// Without a configured name, the first model that the server lists is used, so the server must be
    /// up; with a name it may start later.
    ///
    /// # Errors
    /// One line: the URL is invalid, the server does not respond, or it serves no model.
    pub async fn connect(tier: Tier, url: &str, config: &ModelConfig) -> Result<Self, String> {
        let gate = Arc::new(RequestGate::new(tier, config.batch_max));
        let mut server = Server::new(url, config, gate)?;
        let mut is_down = false;
        let entry = match (&config.name, server.models().await) {
            (Some(name), Ok(models)) => models.into_iter().find(|entry| entry.id == *name),
            (Some(_), Err(error)) => {
                is_down = matches!(error, ModelListError::Down(_));
                None
            }
            (None, Ok(models)) => Some(
                models
                    .into_iter()
                    .next()
                    .ok_or("the server lists no model")?,
            ),
            (None, Err(ModelListError::Down(message) | ModelListError::Refused(message))) => {
                return Err(format!(
                    "{message}; set the model's name to connect without the list"
                ));
            }
        };
        server.describe(config, entry);
        let server = Arc::new(server);
        if is_down {
            server.note_down();
        }
        Ok(Self {
            info: EngineInfo {
                model: server.model.clone(),
                revision: server.revision.clone(),
                context_tokens: server.context_tokens,
                batch_max: config.batch_max,
                parameters: None,
            },
            server,
            slots: RequestSlots::new(config.batch_max),
        })
    }
}

impl Server {
    /// Answers a request. One that the server did not accept, because it is overloaded or down, waits
    /// and is sent again; every other failure is returned to the caller.
    async fn generate(self: &Arc<Self>, request: &Generate) -> Result<Generation, EngineError> {
        let mut permit = self.gate.acquire().await?;
        let mut waiting_since = None;
        loop {
            let started_at = Utc::now();
            let error = match self.exchange(request).await {
                Ok(answer) => {
                    permit.end(LoadSignal::Answered);
                    self.gate.open();
                    return Ok(self.generation(answer, started_at));
                }
                Err(error) => error,
            };
            let wait = match &error {
                ExchangeError::Throttled { retry_after, .. } => {
                    permit.end(LoadSignal::Throttled(*retry_after));
                    retry_after.unwrap_or_default()
                }
                ExchangeError::Unreachable(_) => {
                    self.note_down();
                    permit.end(LoadSignal::Unknown);
                    Duration::ZERO
                }
                ExchangeError::TimedOut(_) => {
                    permit.end(LoadSignal::TimedOut);
                    self.probe_now();
                    return Err(error.into_engine_error());
                }
                ExchangeError::Broken(_) => {
                    self.probe_now();
                    return Err(error.into_engine_error());
                }
                ExchangeError::Answered(_) => return Err(error.into_engine_error()),
            };
            let waited = waiting_since.get_or_insert_with(Instant::now).elapsed();
            if waited.saturating_add(wait) > CLOSED_WAIT {
                return Err(error.into_engine_error());
            }
            permit = self.gate.acquire_retry().await?;
        }
    }

    fn generation(&self, answer: CollectedAnswer, started_at: DateTime<Utc>) -> Generation {
        if answer.is_estimated && !self.estimate_logged.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                model.name = %self.model,
                "the server reports no token counts; they are estimated"
            );
        }
        let revision = match answer.fingerprint {
            Some(fingerprint) => format!("{}-{fingerprint}", self.revision),
            None => self.revision.clone(),
        };
        Generation {
            answer: Answer {
                text: answer.text,
                finish_reason: answer.finish_reason,
                usage: answer.usage,
                model: self.model.clone(),
                revision,
                mean_logprob: answer.signals.map(|signals| signals.mean_logprob),
                logprobs: answer.logprobs,
            },
            signals: answer.signals,
            started_at,
            first_token_at: answer.first_token_at,
            finished_at: Utc::now(),
        }
    }
}

impl Engine for UpstreamEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn generate(&self, request: Generate) -> BoxFuture<'static, Result<Generation, EngineError>> {
        let server = self.server.clone();
        let stop = request.context.stop.clone();
        self.slots.begin(async move {
            tokio::select! {
                answer = server.generate(&request) => answer,
                // A streamed answer ends on its own with the tokens so far.
                () = async { stop.requested().await; tokio::time::sleep(STOP_WAIT).await } => {
                    Err(EngineError::Stopped)
                }
            }
        })
    }

    fn stalled(&self) -> Option<Duration> {
        None
    }

    fn is_ready(&self) -> bool {
        self.server.gate.is_open()
    }
}
