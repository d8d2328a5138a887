//! Any server that speaks OpenAI's chat completions: vLLM, llama.cpp, TGI, a hosted API.
//!
//! Comes in: conversations. Goes out: the server's answers, and its errors sorted by what the
//! caller does next. `gate` lets requests go, as many as `limit` has learnt that the server takes;
//! `exchange` asks in the `wire`'s words and reads `events` into an `answer`; `refusal` sorts what
//! is none; `server` knows whether there is one. No more than `batch_max` requests are in flight; a
//! bounded number waits. Nothing is streamed on: an answer goes out whole.

mod answer;
mod events;
mod exchange;
mod gate;
mod limit;
mod reach;
mod refusal;
mod server;
mod wire;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use tokio::time::Instant;

use super::{Engine, EngineError, EngineInfo, Generate, Generation, admission::Places};
use crate::{
    config::ModelConfig,
    job::{Answer, Tier},
};
use answer::Collected;
use gate::{CLOSED_WAIT, Gate};
use limit::End;
use refusal::Refusal;
use server::{ListError, Server};

/// How long a request that is told to stop may take to hand over what there is.
const STOP_WAIT: Duration = Duration::from_millis(500);

/// A server of an OpenAI-compatible API.
#[derive(Debug)]
pub struct UpstreamEngine {
    info: EngineInfo,
    server: Arc<Server>,
    places: Places,
}

impl UpstreamEngine {
    /// Connects to a server; `url` is its root or its `/v1`.
    ///
    /// Without a configured name the first model that the server lists is used, so it must answer
    /// now; with one it may come up later.
    ///
    /// # Errors
    /// One line: the URL is none, the server does not answer, or it serves no model.
    pub async fn connect(tier: Tier, url: &str, config: &ModelConfig) -> Result<Self, String> {
        let gate = Arc::new(Gate::new(tier, config.batch_max));
        let mut server = Server::new(url, config, gate)?;
        let mut is_lost = false;
        let entry = match (&config.name, server.models().await) {
            (Some(name), Ok(models)) => models.into_iter().find(|entry| entry.id == *name),
            (Some(_), Err(error)) => {
                is_lost = matches!(error, ListError::Down(_));
                None
            }
            (None, Ok(models)) => Some(
                models
                    .into_iter()
                    .next()
                    .ok_or("the server lists no model")?,
            ),
            (None, Err(ListError::Down(message) | ListError::Refused(message))) => {
                return Err(format!("{message}; name the model to do without its list"));
            }
        };
        server.describe(config, entry);
        let server = Arc::new(server);
        if is_lost {
            server.note_lost();
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
            places: Places::new(config.batch_max),
        })
    }
}

impl Server {
    /// Answers a request. One that the server did not take, for its load or for being away, is kept
    /// and sent again; every other failure is the caller's to judge.
    async fn generate(self: &Arc<Self>, request: &Generate) -> Result<Generation, EngineError> {
        let mut turn = self.gate.enter().await?;
        let mut kept_since = None;
        loop {
            let started_at = Utc::now();
            let refusal = match self.exchange(request).await {
                Ok(answer) => {
                    turn.end(End::Answered);
                    self.gate.open();
                    return Ok(self.generation(answer, started_at));
                }
                Err(refusal) => refusal,
            };
            let wait = match &refusal {
                Refusal::Throttled { retry_after, .. } => {
                    turn.end(End::Throttled(*retry_after));
                    retry_after.unwrap_or_default()
                }
                Refusal::Lost(_) => {
                    self.note_lost();
                    turn.end(End::Untold);
                    Duration::ZERO
                }
                Refusal::TimedOut(_) => {
                    turn.end(End::TimedOut);
                    self.note_doubt();
                    return Err(refusal.into_fault());
                }
                Refusal::Broken(_) => {
                    self.note_doubt();
                    return Err(refusal.into_fault());
                }
                Refusal::Answered(_) => return Err(refusal.into_fault()),
            };
            let kept = kept_since.get_or_insert_with(Instant::now).elapsed();
            if kept.saturating_add(wait) > CLOSED_WAIT {
                return Err(refusal.into_fault());
            }
            turn = self.gate.enter_again().await?;
        }
    }

    fn generation(&self, answer: Collected, started_at: DateTime<Utc>) -> Generation {
        if answer.is_estimated && !self.is_estimate_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                model.name = %self.model,
                "the server tells no token counts; they are estimated"
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
        let stop = request.terms.stop.clone();
        self.places.begin(async move {
            tokio::select! {
                answer = server.generate(&request) => answer,
                // A streamed answer ends by itself with what there is.
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
