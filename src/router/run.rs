//! The router's loop: takes messages in batches and routes a few batches at once, beside the tasks.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::{
    broker::{BrokerError, Consumer, Queue},
    scoring::scorer::{Scorer, ScorerError},
    shutdown::Shutdown,
    store::{StoreError, wait_out},
};

use super::{
    model_registry::ModelRegistry,
    policy::Policy,
    role::{Router, TaskContext},
    scheduling::releaser,
    tasks::{dead_letters, observer, recheck, rescuer, shadow, single_flight},
};

/// Why the router ended before the stop was requested.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// It cannot consume.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// It cannot read the job database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its weights cannot be used.
    #[error(transparent)]
    Scorer(#[from] ScorerError),
}

/// Pause between checks whether jobs may be taken in again.
const FULL_WAIT: Duration = Duration::from_millis(500);
/// Batches of questions that are looked up at once; other batches pass them meanwhile.
const LOOKUPS_MAX: usize = 2;

impl Router {
    /// Routes until the stop; then finishes the batches it has taken and returns the rest.
    ///
    /// # Errors
    /// When its weights cannot be used, or it may not consume; a broker or job database that is away
    /// is waited for.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), RouterError> {
        let scorer = Scorer::open(self.config.weights.as_deref().map(Path::new))?;
        let Some(registry) = open_registry(&self, &shutdown).await? else {
            return Ok(());
        };
        let (queues, prefetch) = ([Queue::In], self.config.prefetch);
        let intake = self.broker.subscribe(&queues, prefetch, &shutdown).await?;
        let (queues, prefetch) = ([Queue::Dead], dead_letters::PREFETCH);
        let dead = self.broker.subscribe(&queues, prefetch, &shutdown).await?;
        let (Some(intake), Some(dead)) = (intake, dead) else {
            return Ok(());
        };
        let context = TaskContext {
            policy: Arc::new(Policy::new(&self.config, scorer)),
            router: self,
            registry,
            shutdown,
        };
        let tasks = TaskTracker::new();
        start_tasks(&context, dead, &tasks).await;
        route_batches(&context, intake, &tasks).await;
        tasks.close();
        tasks.wait().await;
        Ok(())
    }
}

/// Reads which models are served, waiting for a job database that is away. `None` when the stop was
/// requested meanwhile.
async fn open_registry(
    router: &Router,
    shutdown: &Shutdown,
) -> Result<Option<ModelRegistry>, StoreError> {
    loop {
        match ModelRegistry::open(router.store.clone()).await {
            Ok(registry) => return Ok(Some(registry)),
            Err(error) if wait_out(&error, "the served models", shutdown).await => {}
            Err(error) if error.is_transient() => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

async fn start_tasks(context: &TaskContext, dead: Consumer, tasks: &TaskTracker) {
    let TaskContext {
        router,
        registry,
        shutdown,
        ..
    } = context;
    // Policy and admission control read the job database before the first job is routed.
    let reported = observer::begin(context).await;
    releaser::begin(context).await;
    tasks.spawn(registry.clone().keep_fresh(shutdown.clone()));
    tasks.spawn(single_flight::run(context.clone()));
    tasks.spawn(dead_letters::run(context.clone(), dead));
    tasks.spawn(releaser::run(context.clone()));
    tasks.spawn(rescuer::run(context.clone()));
    tasks.spawn(observer::run(context.clone(), reported));
    if router.config.shadow_share > 0.0 {
        tasks.spawn(shadow::run(context.clone()));
    }
    if let Some(reuse) = &router.reuse {
        let (store, shutdown) = (router.store.clone(), shutdown.clone());
        tasks.spawn(reuse.clone().keep_fresh(store, shutdown));
        tasks.spawn(recheck::run(context.clone(), reuse.clone()));
    }
}

/// Takes batches until the stop and routes each in a task of its own.
async fn route_batches(context: &TaskContext, mut intake: Consumer, tasks: &TaskTracker) {
    let TaskContext {
        router, shutdown, ..
    } = context;
    let lookups = Arc::new(Semaphore::new(LOOKUPS_MAX));
    let permits = Arc::new(Semaphore::new(router.config.batches_in_flight_max));
    let linger = Duration::from_millis(router.config.linger_ms);
    loop {
        let permit = permits.clone().acquire_owned().await.expect("never closed");
        while router.admission.is_full() && shutdown.sleep(FULL_WAIT).await {}
        let batch = tokio::select! {
            () = shutdown.requested() => break,
            batch = intake.next_batch(router.config.batch_max, linger) => batch,
        };
        if batch.is_empty() {
            break;
        }
        let (tracker, lookups) = (tasks.clone(), lookups.clone());
        let TaskContext {
            router,
            policy,
            registry,
            shutdown,
        } = context.clone();
        tasks.spawn(async move {
            let models = registry.models();
            let asking = router.route(batch, &policy, &models, &shutdown).await;
            if !asking.items.is_empty() {
                let place = lookups.acquire_owned().await.expect("never closed");
                tracker.spawn(async move {
                    let models = registry.models();
                    router.look_up(asking, &models, &shutdown).await;
                    drop(place);
                });
            }
            drop(permit);
        });
    }
    intake.close().await;
}
