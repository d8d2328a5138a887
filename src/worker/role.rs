//! The worker as a role: who it is, what it tells the ledger, and its start.

use std::{sync::Arc, time::Duration};

use crate::{
    broker::{Broker, BrokerError, Consumer, Queue},
    config::{CacheConfig, WorkerConfig},
    engine::{Embedder, Engine},
    job::{ServedModel, Tier},
    scoring::confidence::Confidence,
    shutdown::Shutdown,
    store::{Claimant, Heartbeat, Store, StoreError},
};

use super::{confidence::ConfidenceCheck, run_loop::WorkerLoop, settle::Settler};

/// Why a worker ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// It cannot consume.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// The role that runs one tier's jobs.
#[derive(Debug)]
pub struct Worker {
    pub(super) broker: Broker,
    pub(super) store: Store,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) claimant: Claimant,
    /// Helps pruning to tell what a question needs.
    pub(super) embedder: Option<Arc<Embedder>>,
    pub(super) config: WorkerConfig,
    /// Only of the small tier: its answers may be escalated.
    pub(super) doubter: Option<ConfidenceCheck>,
    cache: CacheConfig,
}

impl Worker {
    /// A worker named `name` that serves a tier with an engine.
    pub fn new(
        name: String,
        tier: Tier,
        (broker, store, engine): (Broker, Store, Arc<dyn Engine>),
        config: WorkerConfig,
        cache: CacheConfig,
    ) -> Self {
        let info = engine.info();
        let claimant = Claimant {
            worker: name,
            tier,
            model: info.model.clone(),
            revision: info.revision.clone(),
            attempts_max: config.attempts_max,
            lease: Duration::from_secs(config.lease_s),
        };
        Self {
            broker,
            store,
            engine,
            claimant,
            embedder: None,
            config,
            doubter: None,
            cache,
        }
    }

    /// Lets pruning ask an embedder, too. What is sent then depends on it, so it is part of the
    /// revision under which answers are reused.
    pub fn with_embedder(mut self, embedder: Option<Arc<Embedder>>) -> Self {
        if let Some(embedder) = &embedder {
            self.claimant.revision.push('+');
            self.claimant.revision.push_str(&embedder.revision()[..8]);
        }
        self.embedder = embedder;
        self
    }

    /// Escalates answers that the calibration is not sure of.
    #[must_use]
    pub fn with_confidence(mut self, confidence: Confidence) -> Self {
        let doubter = ConfidenceCheck::new(confidence, self.config.escalate_below);
        self.doubter = Some(doubter);
        self
    }

    /// What this worker serves.
    pub(super) fn served(&self) -> ServedModel {
        ServedModel {
            model: self.claimant.model.clone(),
            revision: self.claimant.revision.clone(),
        }
    }

    /// Tells the ledger that this worker is there, so that the router knows its model.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub async fn announce(&self) -> Result<(), StoreError> {
        self.store.heartbeat(&self.heartbeat(0, false)).await
    }

    pub(super) fn heartbeat(&self, running: usize, draining: bool) -> Heartbeat {
        Heartbeat {
            claimant: self.claimant.clone(),
            batch_max: u32::try_from(self.engine.info().batch_max).unwrap_or(u32::MAX),
            context_tokens: self
                .engine
                .info()
                .context_tokens
                .and_then(|tokens| u32::try_from(tokens).ok()),
            running: u32::try_from(running).unwrap_or(u32::MAX),
            draining,
            takes_affinity_queues: self.broker.is_shared(),
        }
    }

    /// Runs jobs until told to stop; then returns what it has not started and gives what runs up
    /// to `drain_s` to finish.
    ///
    /// # Errors
    /// When it may not consume; interruptions are waited out.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), WorkerError> {
        // The first heartbeat tells it again.
        if let Err(error) = self.announce().await {
            tracing::warn!(%error, "the router does not know this worker yet");
        }
        let (queues, prefetch) = self.intake();
        let subscribed = self.broker.subscribe(&queues, prefetch, &shutdown).await?;
        let Some(consumer) = subscribed else {
            return Ok(());
        };
        let settler = Settler {
            broker: self.broker.clone(),
            store: self.store.clone(),
            tier: self.claimant.tier,
            cache_ttl: Duration::from_secs(self.cache.ttl_s),
        };
        WorkerLoop::new(self, settler).run(consumer, shutdown).await;
        Ok(())
    }

    /// Begins to take the tier's jobs.
    pub(super) async fn consume(&self) -> Result<Consumer, BrokerError> {
        let (queues, prefetch) = self.intake();
        self.broker.consume(&queues, prefetch).await
    }

    /// The queue that is consumed from, and how many messages of it may be here.
    fn intake(&self) -> ([Queue; 1], u16) {
        // A consumer's unacknowledged messages are those that run, plus as many again in wait.
        let batch_max = self.engine.info().batch_max;
        let prefetch = u16::try_from(batch_max * 2).unwrap_or(u16::MAX).max(2);
        ([Queue::Tier(self.claimant.tier)], prefetch)
    }
}
