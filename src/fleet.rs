//! All roles in one process, or some of them: started in order, supervised, and drained together.
//!
//! Comes in: the configuration and the roles. Goes out: running tasks and the addresses they listen
//! on. Roles meet only through the broker and the job database, so the same code runs a fleet of one
//! process or many.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::FutureExt;
use metrics::{counter, gauge};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{task::JoinSet, time::MissedTickBehavior};

use crate::{
    api::{self, Api, ServeError},
    broker::{Broker, BrokerError},
    cache::semantic::Encoder,
    config::{CacheConfig, Config},
    engine::{self, Embedder, EmbedderError, Engine, EngineInfo, OpenError, local::is_bundled},
    job::{JobId, Tier},
    metrics::{CACHE_BYTES, CACHE_ENTRIES, CACHE_REMOVED, QUEUE_READY},
    router::{Router, RouterError},
    scoring::confidence::{Confidence, ConfidenceError},
    shutdown::Shutdown,
    store::{CacheLimits, Store, StoreError},
    telemetry::{self, Readiness, TelemetryError},
    worker::{Worker, WorkerError},
};

/// How often queue depths are read for the metrics.
const DEPTH_INTERVAL: Duration = Duration::from_secs(5);
/// How often partitions are created ahead.
const PARTITION_INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// How often the cache is cleaned.
const CACHE_INTERVAL: Duration = Duration::from_secs(60);

/// Why a fleet could not start, or ended before the stop was requested.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant passes on the error of a stage")]
pub enum FleetError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Engine(#[from] OpenError),
    #[error(transparent)]
    Embedder(#[from] EmbedderError),
    #[error(transparent)]
    Router(#[from] RouterError),
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error(transparent)]
    Api(#[from] ServeError),
    #[error(transparent)]
    Confidence(#[from] ConfidenceError),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error("the {role} role panicked; see the log")]
    Panicked { role: &'static str },
}

/// Opens an embedder on a blocking thread, since it reads files and may download them.
async fn open_embedder(model: String) -> Result<Arc<Embedder>, FleetError> {
    let opened = tokio::task::spawn_blocking(move || Embedder::open(&model)).await;
    let embedder = opened.map_err(|_| FleetError::Panicked { role: "embedder" })??;
    Ok(Arc::new(embedder))
}

/// The embedders of this process's roles, for contexts and for the cache; shared where both use the
/// same model.
async fn open_embedders(
    config: &Config,
    roles: &Roles,
) -> Result<(Option<Arc<Embedder>>, Option<Arc<Embedder>>), FleetError> {
    let for_context = match &config.worker.embedder {
        Some(model) if !roles.tiers.is_empty() => Some(open_embedder(model.clone()).await?),
        _ => None,
    };
    let for_cache = match &config.cache.embedder {
        Some(model) if roles.router => match &for_context {
            Some(embedder) if config.worker.embedder.as_ref() == Some(model) => {
                Some(embedder.clone())
            }
            _ => Some(open_embedder(model.clone()).await?),
        },
        _ => None,
    };
    Ok((for_context, for_cache))
}

/// The roles of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    /// Gives jobs their tier.
    pub router: bool,
    /// Runs these tiers' jobs.
    pub tiers: Vec<Tier>,
    /// Takes jobs over HTTP.
    pub api: bool,
    /// Migrates the job database first instead of only checking its schema.
    pub migrate: bool,
}

/// Connects to the broker and the job database of a configuration.
///
/// # Errors
/// When one of them cannot be reached, or the database's schema is of another version.
pub async fn connect(config: &Config, migrate: bool) -> Result<(Broker, Store), FleetError> {
    let store = open_store(config, migrate).await?;
    let broker = Broker::connect(&config.broker, &embedded_path(config)).await?;
    Ok((broker, store))
}

/// Connects to the job database of a configuration. A file has one owner, so it is migrated when its
/// schema is old.
///
/// # Errors
/// When it cannot be reached, or its schema is of another version.
pub async fn open_store(config: &Config, migrate: bool) -> Result<Store, StoreError> {
    let open = async {
        let store = Store::connect(&config.store).await?;
        if migrate {
            store.migrate().await?;
            return Ok(store);
        }
        match store.check_schema().await {
            Err(StoreError::Schema { .. }) if store.is_embedded() => {
                store.migrate().await?;
            }
            outcome => outcome?,
        }
        Ok(store)
    };
    open.await.map_err(|error| match error {
        // SQLite's own messages do not name the file.
        StoreError::Storage { message } => StoreError::Storage {
            message: format!("{}: {message}", config.store.url.masked()),
        },
        error => error,
    })
}

/// The file of the embedded broker's queues: the job database's own, if that is a file.
pub fn embedded_path(config: &Config) -> PathBuf {
    config
        .sqlite_path()
        .unwrap_or_else(|| PathBuf::from("promptyard.db"))
}

/// The calibration of the small model: the configured one, the bundled model's own, or a generic one.
/// Warns when it was fitted for another model.
///
/// # Errors
/// When the weights cannot be used.
pub fn confidence(config: &Config, served: &EngineInfo) -> Result<Confidence, ConfidenceError> {
    let confidence = match &config.worker.confidence {
        Some(path) => Confidence::read(Path::new(path))?,
        None if is_bundled(&config.small) => Confidence::bundled()?,
        None => Confidence::generic(),
    };
    if let Some((model, revision)) = confidence.fitted_for()
        && revision != served.revision
    {
        tracing::warn!(
            "the confidence weights were fitted for {model} {revision}, the small model is {} {}: calibrate again",
            served.model,
            served.revision
        );
    }
    Ok(confidence)
}

/// Roles that run.
#[derive(Debug)]
pub struct Fleet {
    /// Their broker.
    pub broker: Broker,
    /// Their job database.
    pub store: Store,
    /// The engines of the tiers served here.
    pub engines: Vec<(Tier, Arc<dyn Engine>)>,
    /// Where the HTTP interface listens.
    pub api_address: Option<SocketAddr>,
    /// Where metrics and health are served.
    pub metrics_address: Option<SocketAddr>,
    tasks: JoinSet<(&'static str, Result<(), FleetError>)>,
    roles_stop: Shutdown,
    /// Ends the pages for metrics and health, which stay up until the roles have drained.
    pages_stop: Shutdown,
    /// The error of the first role that failed.
    first_error: Option<String>,
}

impl Fleet {
    /// Starts roles; they drain when `shutdown` is requested.
    ///
    /// # Errors
    /// When a role cannot start; no role keeps running then.
    pub async fn start(
        config: &Config,
        roles: &Roles,
        metrics: Option<PrometheusHandle>,
        shutdown: &Shutdown,
    ) -> Result<Self, FleetError> {
        let (broker, store) = connect(config, roles.migrate).await?;
        store.ensure_partitions().await?;
        let mut fleet = Self {
            broker,
            store,
            engines: Vec::new(),
            api_address: None,
            metrics_address: None,
            tasks: JoinSet::new(),
            roles_stop: shutdown.child(),
            pages_stop: Shutdown::new(),
            first_error: None,
        };
        if let Err(error) = fleet.start_roles(config, roles, metrics).await {
            fleet.roles_stop.request();
            // The error that stopped the start is the one to report.
            let _ = fleet.wait().await;
            return Err(error);
        }
        Ok(fleet)
    }

    async fn start_roles(
        &mut self,
        config: &Config,
        roles: &Roles,
        metrics: Option<PrometheusHandle>,
    ) -> Result<(), FleetError> {
        let mut workers = Vec::new();
        let (for_context, for_cache) = open_embedders(config, roles).await?;
        for tier in &roles.tiers {
            let model = match tier {
                Tier::Small => &config.small,
                Tier::Large => &config.large,
            };
            let engine = engine::open(*tier, model).await?;
            let worker = Worker::new(
                worker_name(*tier),
                *tier,
                (self.broker.clone(), self.store.clone(), engine.clone()),
                config.worker.clone(),
                config.cache.clone(),
            )
            .with_embedder(for_context.clone());
            let worker = match tier {
                Tier::Small => worker.with_confidence(confidence(config, engine.info())?),
                Tier::Large => worker,
            };
            // The router reads the models from the job database: register them before it starts.
            worker.announce().await?;
            self.engines.push((*tier, engine));
            workers.push(worker);
        }
        if let Some(handle) = metrics {
            let stop = self.pages_stop.clone();
            let address = telemetry::serve(&config.telemetry, handle, self.readiness(), stop);
            self.metrics_address = address.await?;
        }
        if roles.api {
            let api = Api::new(
                (self.broker.clone(), self.store.clone()),
                config.api.clone(),
                config.request_limits(),
                Duration::from_secs(config.worker.drain_s),
            );
            let (address, server) = api::serve(api, self.roles_stop.clone()).await?;
            self.api_address = Some(address);
            let ended = server.map(|end| end.map_err(|_| FleetError::Panicked { role: "api" }));
            self.spawn("api", ended);
        }
        if roles.router {
            let router = Router::new(
                self.broker.clone(),
                self.store.clone(),
                config.router.clone(),
                config.cache.clone(),
                config.request_limits(),
            )
            .with_encoder(for_cache.map(|embedder| embedder as Arc<dyn Encoder>));
            let stop = self.roles_stop.clone();
            self.spawn("router", async move { Ok(router.run(stop).await?) });
            let (broker, store, stop) = (
                self.broker.clone(),
                self.store.clone(),
                self.roles_stop.clone(),
            );
            let limits = cache_limits(&config.cache);
            self.spawn("upkeep", async move {
                upkeep(broker, store, limits, stop).await;
                Ok(())
            });
        }
        for worker in workers {
            let stop = self.roles_stop.clone();
            self.spawn("worker", async move { Ok(worker.run(stop).await?) });
        }
        Ok(())
    }

    fn spawn(
        &mut self,
        role: &'static str,
        task: impl Future<Output = Result<(), FleetError>> + Send + 'static,
    ) {
        self.tasks.spawn(async move {
            let caught = std::panic::AssertUnwindSafe(task).catch_unwind().await;
            (role, caught.unwrap_or(Err(FleetError::Panicked { role })))
        });
    }

    fn readiness(&self) -> Readiness {
        let (broker, store, engines, stop) = (
            self.broker.clone(),
            self.store.clone(),
            self.engines.clone(),
            self.roles_stop.clone(),
        );
        Arc::new(move || {
            let (broker, store, engines, stop) =
                (broker.clone(), store.clone(), engines.clone(), stop.clone());
            Box::pin(async move {
                if stop.is_requested() {
                    return Err("draining".to_owned());
                }
                if !broker.is_connected() {
                    return Err("waiting for the broker".to_owned());
                }
                if let Some((tier, _)) = engines.iter().find(|(_, engine)| !engine.is_ready()) {
                    return Err(format!("waiting for the {tier} engine"));
                }
                if !store.is_reachable().await {
                    return Err("waiting for the job database".to_owned());
                }
                Ok(())
            })
        })
    }

    /// Waits until a role ends: with an error, or because the stop was requested.
    /// Cancel-safe.
    ///
    /// # Errors
    /// The error it ended with.
    pub async fn ended(&mut self) -> Result<(), FleetError> {
        match self.tasks.join_next().await {
            Some(Ok((role, outcome))) => {
                if let Err(error) = &outcome {
                    self.report(role, error);
                }
                outcome
            }
            Some(Err(_)) | None => Ok(()),
        }
    }

    /// The caller reports the first error. A cause that stops all roles is returned by each of them, so
    /// only different errors are logged.
    fn report(&mut self, role: &'static str, error: &FleetError) {
        let message = error.to_string();
        match &self.first_error {
            None => {
                tracing::info!(role, %error, "a role ended; the others are stopped");
                self.first_error = Some(message);
            }
            Some(first) if *first == message => {}
            Some(_) => tracing::error!(role, %error, "a role ended"),
        }
    }

    /// Waits for every role to end, then closes broker and job database. A role that ends with an error
    /// stops the others.
    ///
    /// # Errors
    /// The first error of a role.
    pub async fn wait(mut self) -> Result<(), FleetError> {
        let mut outcome = Ok(());
        while !self.tasks.is_empty() {
            if let Err(error) = self.ended().await {
                self.roles_stop.request();
                if outcome.is_ok() {
                    outcome = Err(error);
                }
            }
        }
        self.pages_stop.request();
        self.broker.close().await;
        self.store.close().await;
        outcome
    }

    /// Asks the roles to drain and waits for them.
    ///
    /// # Errors
    /// The first error of a role.
    pub async fn stop(self) -> Result<(), FleetError> {
        self.roles_stop.request();
        self.wait().await
    }
}

/// Unique for each process and tier; the random part is the end of a fresh id.
fn worker_name(tier: Tier) -> String {
    let id = JobId::now().to_string();
    format!("{tier}-{}-{}", std::process::id(), &id[id.len() - 8..])
}

fn cache_limits(config: &CacheConfig) -> CacheLimits {
    CacheLimits {
        entries_max: config.entries_max,
        tenant_entries_max: config.tenant_entries_max,
        bytes_max: config.bytes_max,
        stale_after: Duration::from_secs(config.stale_s),
    }
}

/// Removes expired, stale and surplus answers from the cache.
async fn clean_cache(store: &Store, limits: CacheLimits) {
    let upkeep = match store.tend_cache(limits).await {
        Ok(Some(upkeep)) => upkeep,
        // Another process is cleaning it.
        Ok(None) => return,
        Err(error) => {
            tracing::warn!(%error, "cannot clean the cache; trying again");
            return;
        }
    };
    gauge!(CACHE_ENTRIES).set(upkeep.entries as f64);
    gauge!(CACHE_BYTES).set(upkeep.bytes as f64);
    for (cause, count) in [
        ("expired", upkeep.expired),
        ("stale", upkeep.stale),
        ("evicted", upkeep.evicted),
        ("abandoned", upkeep.abandoned),
    ] {
        counter!(CACHE_REMOVED, "cause" => cause).increment(count);
    }
}

/// Keeps the queue gauges, the partitions and the cache up to date.
async fn upkeep(broker: Broker, store: Store, limits: CacheLimits, shutdown: Shutdown) {
    let mut depths = tokio::time::interval(DEPTH_INTERVAL);
    let mut partitions = tokio::time::interval(PARTITION_INTERVAL);
    let mut cache = tokio::time::interval(CACHE_INTERVAL);
    cache.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.requested() => return,
            _ = depths.tick() => match broker.depths().await {
                Ok(depths) => for depth in depths {
                    gauge!(QUEUE_READY, "queue" => depth.queue.name()).set(depth.ready as f64);
                },
                Err(error) => tracing::warn!(%error, "cannot read the queues' depths"),
            },
            _ = cache.tick() => clean_cache(&store, limits).await,
            _ = partitions.tick() => if let Err(error) = store.ensure_partitions().await {
                tracing::error!(%error, "cannot create partitions ahead; rows go to the default one");
            },
        }
    }
}
