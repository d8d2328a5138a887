//! The worker as a role: its model, its heartbeat and its subscription.

use std::{sync::Arc, time::Duration};

use crate::{
    broker::{Broker, BrokerError, Consumer, Queue},
    config::{CacheConfig, WorkerConfig},
    engine::{Embedder, Engine},
    job::{ServedModel, Tier},
    scoring::confidence::Confidence,
    store::{Claimant, Heartbeat, Store, StoreError},
};

use super::confidence::ConfidenceCheck;

/// Why a worker ended before the stop was requested.
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
    /// Rates for pruning which parts of a context a question needs.
    pub(super) embedder: Option<Arc<Embedder>>,
    pub(super) config: WorkerConfig,
    /// Set for the small tier, whose answers may be escalated.
    pub(super) confidence_check: Option<ConfidenceCheck>,
    pub(super) cache: CacheConfig,
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
            confidence_check: None,
            cache,
        }
    }

    /// Prunes contexts with the help of an embedder. The prompts that are sent then depend on it, so it
    /// becomes part of the revision under which answers are reused.
    pub fn with_embedder(mut self, embedder: Option<Arc<Embedder>>) -> Self {
        if let Some(embedder) = &embedder {
            self.claimant.revision.push('+');
            self.claimant.revision.push_str(&embedder.revision()[..8]);
        }
        self.embedder = embedder;
        self
    }

    /// Escalates answers of low confidence.
    #[must_use]
    pub fn with_confidence(mut self, confidence: Confidence) -> Self {
        let check = ConfidenceCheck::new(confidence, self.config.escalate_below);
        self.confidence_check = Some(check);
        self
    }

    /// The model that this worker serves.
    pub(super) fn served(&self) -> ServedModel {
        ServedModel {
            model: self.claimant.model.clone(),
            revision: self.claimant.revision.clone(),
        }
    }

    /// Registers this worker in the job database, so that the router knows its model.
    ///
    /// # Errors
    /// When the job database cannot be written.
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

    /// Subscribes to the tier's queue.
    pub(super) async fn consume(&self) -> Result<Consumer, BrokerError> {
        let (queues, prefetch) = self.intake();
        self.broker.consume(&queues, prefetch).await
    }

    /// The queue that is consumed from, and its prefetch.
    pub(super) fn intake(&self) -> ([Queue; 1], u16) {
        // Unacknowledged messages are the running jobs plus as many waiting ones.
        let batch_max = self.engine.info().batch_max;
        let prefetch = u16::try_from(batch_max * 2).unwrap_or(u16::MAX).max(2);
        ([Queue::Tier(self.claimant.tier)], prefetch)
    }
}
