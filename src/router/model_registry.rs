//! Which models the fleet serves, by its workers' heartbeats.

use std::{
    sync::{Arc, RwLock},
    time::Duration,
};

use chrono::{DateTime, Utc};

use crate::{
    affinity::Assignment,
    job::Tier,
    shutdown::Shutdown,
    store::{Store, StoreError, WorkerRecord},
};

/// Workers unseen for longer no longer count as serving their model.
const WORKER_AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// How often the registry is refreshed.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// A snapshot of the served models.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServedModels {
    /// The latest worker first.
    workers: Vec<WorkerRecord>,
    /// Which workers consume which affinity queues, small first.
    assignments: [Option<Assignment>; 2],
}

impl ServedModels {
    /// A snapshot of these workers, the latest first.
    pub fn of(workers: Vec<WorkerRecord>) -> Self {
        let now = Utc::now();
        let assignments = Tier::ALL.map(|tier| Assignment::of(&workers, tier, now));
        Self {
            workers,
            assignments,
        }
    }

    /// Which workers consume which of a tier's affinity queues, where several workers serve it.
    pub fn assignment(&self, tier: Tier) -> Option<&Assignment> {
        self.assignments[usize::from(tier == Tier::Large)].as_ref()
    }

    /// The longest context of a tier in tokens, by its latest worker, where that is known.
    pub fn context_tokens(&self, tier: Tier) -> Option<u32> {
        self.workers
            .iter()
            .find(|worker| worker.tier == tier)
            .and_then(|worker| worker.context_tokens)
    }

    /// Jobs that a tier's workers run, and can run at once, counting workers seen since an instant.
    pub fn places(&self, tier: Tier, since: DateTime<Utc>) -> (u32, u32) {
        self.workers
            .iter()
            .filter(|worker| worker.tier == tier && !worker.draining && worker.seen_at >= since)
            .fold((0, 0), |(running, places), worker| {
                (running + worker.running, places + worker.batch_max)
            })
    }

    /// The name and revision that a tier serves, by its latest worker.
    pub fn of_tier(&self, tier: Tier) -> Option<(&str, &str)> {
        self.workers
            .iter()
            .find(|worker| worker.tier == tier)
            .map(|worker| (worker.model.as_str(), worker.revision.as_str()))
    }

    /// The tier whose latest worker serves a model of this name.
    pub fn tier_of(&self, name: &str) -> Option<Tier> {
        Tier::ALL
            .into_iter()
            .find(|tier| self.of_tier(*tier).is_some_and(|(model, _)| model == name))
    }

    /// The names of the served models, small first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        Tier::ALL
            .into_iter()
            .filter_map(|tier| self.of_tier(tier).map(|(model, _)| model))
    }
}

/// The served models, kept up to date.
#[derive(Clone, Debug)]
pub struct ModelRegistry {
    store: Store,
    models: Arc<RwLock<Arc<ServedModels>>>,
}

impl ModelRegistry {
    /// A registry with the models served now.
    ///
    /// # Errors
    /// When the job database cannot be read.
    pub async fn open(store: Store) -> Result<Self, StoreError> {
        let registry = Self {
            store,
            models: Arc::default(),
        };
        registry.refresh().await?;
        Ok(registry)
    }

    /// The models served now.
    pub fn models(&self) -> Arc<ServedModels> {
        self.models
            .read()
            .expect("nobody panics while holding it")
            .clone()
    }

    /// Refreshes the registry at intervals until the stop.
    pub async fn keep_fresh(self, shutdown: Shutdown) {
        while shutdown.sleep(REFRESH_INTERVAL).await {
            if let Err(error) = self.refresh().await {
                tracing::warn!(%error, "cannot read which models are served; the last ones read stay in use");
            }
        }
    }

    async fn refresh(&self) -> Result<(), StoreError> {
        let mut workers = self.store.workers(WORKER_AGE_MAX).await?;
        workers.sort_by_key(|worker| std::cmp::Reverse(worker.seen_at));
        *self.models.write().expect("nobody panics while holding it") =
            Arc::new(ServedModels::of(workers));
        Ok(())
    }
}
