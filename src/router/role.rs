//! The router as a role: what its loop and its tasks work with.

use std::sync::{Arc, Mutex};

use metrics::counter;
use tokio::time::Instant;

use crate::{
    affinity::{self, Placement},
    broker::{Broker, Publication},
    cache::semantic::Encoder,
    config::{CacheConfig, RouterConfig},
    job::{JobId, RequestLimits, RoutedJob, Tier},
    metrics::PLACED,
    shutdown::Shutdown,
    store::Store,
};

use super::{
    model_registry::{ModelRegistry, ServedModels},
    policy::Policy,
    scheduling::AdmissionControl,
    semantic_reuse::Reuse,
};

/// The role that gives each job its tier.
#[derive(Clone, Debug)]
pub struct Router {
    pub(super) broker: Broker,
    pub(super) store: Store,
    pub(super) config: RouterConfig,
    pub(super) cache: CacheConfig,
    pub(super) limits: RequestLimits,
    /// Finds paraphrases of answered questions, if there is an encoder.
    pub(super) reuse: Option<Arc<Reuse>>,
    /// Decides which jobs are deferred.
    pub(super) admission: Arc<AdmissionControl>,
    /// Tells this router from others in leases.
    pub(super) name: Arc<str>,
    /// Where prompt prefixes were sent, small first.
    placements: Arc<Mutex<[Placement; 2]>>,
    created_at: Instant,
}

/// What every task of a running router works with.
#[derive(Clone, Debug)]
pub(super) struct TaskContext {
    pub(super) router: Router,
    pub(super) policy: Arc<Policy>,
    pub(super) registry: ModelRegistry,
    /// Ends the task.
    pub(super) shutdown: Shutdown,
}

impl Router {
    /// A router over a broker and a job database.
    pub fn new(
        broker: Broker,
        store: Store,
        config: RouterConfig,
        cache: CacheConfig,
        limits: RequestLimits,
    ) -> Self {
        Self {
            reuse: None,
            admission: Arc::new(AdmissionControl::new(config.window_jobs)),
            name: JobId::now().to_string().into(),
            broker,
            store,
            config,
            cache,
            limits,
            placements: Arc::default(),
            created_at: Instant::now(),
        }
    }

    /// Gives paraphrases each other's answers, where their requests allow it.
    #[must_use]
    pub fn with_encoder(mut self, encoder: Option<Arc<dyn Encoder>>) -> Self {
        self.reuse = encoder.map(|encoder| Arc::new(Reuse::new(encoder, self.cache.clone())));
        self
    }

    /// The message that brings a job to its tier: on the affinity queue of the worker that has its
    /// prompt prefix in its cache, or on the queue that all workers of the tier share.
    pub(super) fn to_tier(&self, routed: &RoutedJob, models: &ServedModels) -> Publication {
        let tier = routed.tier;
        let assignment = models
            .assignment(tier)
            .filter(|_| self.config.prefix_affinity);
        let queue = assignment.and_then(|assignment| {
            let prefix = affinity::prefix::of(&routed.job.head.tenant, &routed.job.request);
            let now_s = self.created_at.elapsed().as_secs_f64();
            let mut placements = self.placements.lock().expect("nobody panics in it");
            let placement = &mut placements[usize::from(tier == Tier::Large)];
            placement.place(&prefix, assignment, now_s)
        });
        let place = if queue.is_some() {
            "affinity"
        } else {
            "shared"
        };
        counter!(PLACED, "tier" => tier.as_str(), "place" => place).increment(1);
        match queue {
            Some(queue) => Publication::to_affinity_queue(routed, queue),
            None => Publication::to_tier(routed),
        }
    }
}
