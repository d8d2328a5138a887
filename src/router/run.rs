//! The router's loop: micro-batches, each admitted in one ledger transaction, published with
//! pipelined confirms, and acknowledged when everything it led to is durable.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use chrono::{DateTime, Utc};
use metrics::{counter, histogram};
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::task::TaskTracker;

use crate::{
    affinity::{self, Placement},
    broker::{Acker, Broker, BrokerError, Delivery, Publication, Queue, publisher::publish_all},
    cache::semantic::Encoder,
    config::{CacheConfig, RouterConfig},
    job::{AnswerSource, JobId, JobRecord, JobState, Reason, RequestLimits, RoutedJob, Tier},
    metrics::{ADMITTED, PLACED, ROUTED, ROUTER_BATCH, ROUTER_SECONDS, SCORE, observe_end},
    scoring::scorer::{Scorer, ScorerError},
    shutdown::Shutdown,
    store::{Admission, AdmissionDecision, Admitted, Store, StoreError},
};

use super::{
    intake::{self, Intake, IntakeContext},
    model_registry::{ModelRegistry, ServedModels},
    policy::Policy,
    scheduling::{self, AdmissionControl},
    semantic_reuse::{self, Reuse},
    tasks::{dead_letters, observer, recheck, rescuer, shadow, single_flight},
};

/// Why the router ended before it was reported to.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// It cannot consume.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// It cannot read the ledger.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its weights cannot be used.
    #[error(transparent)]
    Scorer(#[from] ScorerError),
}

/// How long to wait before a ledger that failed is asked again.
const STORE_RETRY_WAIT: Duration = Duration::from_millis(500);

/// Batches of questions that are looked up at once; the others go past them meanwhile.
const LOOKUPS_MAX: usize = 2;

/// The role that gives each job its tier.
#[derive(Clone, Debug)]
pub struct Router {
    pub(super) broker: Broker,
    pub(super) store: Store,
    pub(super) config: RouterConfig,
    pub(super) cache: CacheConfig,
    limits: RequestLimits,
    /// Finds questions that ask the same, if there is an encoder.
    reuse: Option<Arc<Reuse>>,
    /// Which jobs wait for their tenant's turn.
    pub(super) holding: Arc<AdmissionControl>,
    /// What this router is called among others.
    pub(super) name: Arc<str>,
    /// Where prompt prefixes went, small first.
    placements: Arc<Mutex<[Placement; 2]>>,
    begun: Instant,
}

impl Router {
    /// A router over a broker and a ledger.
    pub fn new(
        broker: Broker,
        store: Store,
        config: RouterConfig,
        cache: CacheConfig,
        limits: RequestLimits,
    ) -> Self {
        Self {
            reuse: None,
            holding: Arc::new(AdmissionControl::new(config.window_jobs)),
            name: JobId::now().to_string().into(),
            broker,
            store,
            config,
            cache,
            limits,
            placements: Arc::default(),
            begun: Instant::now(),
        }
    }

    /// Lets questions that ask the same be answered alike, where their requests allow it.
    #[must_use]
    pub fn with_encoder(mut self, encoder: Option<Arc<dyn Encoder>>) -> Self {
        self.reuse = encoder.map(|encoder| Arc::new(Reuse::new(encoder, self.cache.clone())));
        self
    }

    pub(super) fn limits(&self) -> &RequestLimits {
        &self.limits
    }

    /// Routes until reported to stop; then finishes the batches in hand and returns the rest.
    ///
    /// # Errors
    /// When its weights cannot be used, or it may not consume; interruptions are waited out.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), RouterError> {
        let scorer = Scorer::open(self.config.weights.as_deref().map(Path::new))?;
        let Some(directory) = self.open_directory(&shutdown).await? else {
            return Ok(());
        };
        let (queues, prefetch) = ([Queue::In], self.config.prefetch);
        let intake = self.broker.subscribe(&queues, prefetch, &shutdown).await?;
        let (queues, prefetch) = ([Queue::Dead], dead_letters::PREFETCH);
        let dead = self.broker.subscribe(&queues, prefetch, &shutdown).await?;
        let (Some(mut consumer), Some(dead)) = (intake, dead) else {
            return Ok(());
        };
        let policy = Arc::new(Policy::new(&self.config, scorer));
        let reported = observer::begin(&self, &policy).await;
        scheduling::releaser::begin(&self, &directory, &shutdown).await;
        let tasks = TaskTracker::new();
        tasks.spawn(directory.clone().keep_fresh(shutdown.child()));
        tasks.spawn(single_flight::run(self.clone(), shutdown.child()));
        tasks.spawn(dead_letters::run(self.clone(), dead, shutdown.child()));
        tasks.spawn(scheduling::releaser::run(
            self.clone(),
            directory.clone(),
            shutdown.child(),
        ));
        tasks.spawn(rescuer::run(self.clone(), shutdown.child()));
        let knows = (policy.clone(), directory.clone());
        tasks.spawn(observer::run(
            self.clone(),
            knows.clone(),
            reported,
            shutdown.child(),
        ));
        if self.config.shadow_share > 0.0 {
            tasks.spawn(shadow::run(self.clone(), knows.clone(), shutdown.child()));
        }
        if let Some(reuse) = self.reuse.clone() {
            let store = self.store.clone();
            tasks.spawn(reuse.clone().keep_fresh(store, shutdown.child()));
            tasks.spawn(recheck::run(self.clone(), reuse, knows, shutdown.child()));
        }
        let lookups = Arc::new(Semaphore::new(LOOKUPS_MAX));

        let permits = Arc::new(Semaphore::new(self.config.batches_in_flight_max));
        let linger = Duration::from_millis(self.config.linger_ms);
        loop {
            let permit = permits.clone().acquire_owned().await.expect("never closed");
            while self.holding.is_full() && !shutdown.is_requested() {
                tokio::time::sleep(STORE_RETRY_WAIT).await;
            }
            let batch = tokio::select! {
                () = shutdown.requested() => break,
                batch = consumer.next_batch(self.config.batch_max, linger) => batch,
            };
            if batch.is_empty() {
                break;
            }
            let (router, stop) = (self.clone(), shutdown.clone());
            let (policy, directory) = (policy.clone(), directory.clone());
            let (tracker, lookups) = (tasks.clone(), lookups.clone());
            tasks.spawn(async move {
                let asking = router.route(batch, &policy, &directory, &stop).await;
                if !asking.is_empty() {
                    let turn = lookups.acquire_owned().await.expect("never closed");
                    tracker.spawn(async move {
                        let models = directory.models();
                        router.look_up(asking, &models, &stop).await;
                        drop(turn);
                    });
                }
                drop(permit);
            });
        }
        consumer.close().await;
        tasks.close();
        tasks.wait().await;
        Ok(())
    }

    /// Reads which models are served, from a ledger that may be away for a while.
    async fn open_directory(
        &self,
        shutdown: &Shutdown,
    ) -> Result<Option<ModelRegistry>, StoreError> {
        loop {
            match ModelRegistry::open(self.store.clone()).await {
                Err(error) if error.is_transient() => {
                    tracing::warn!(%error, "which models are served is not known yet");
                }
                outcome => return outcome.map(Some),
            }
            tokio::select! {
                () = shutdown.requested() => return Ok(None),
                () = tokio::time::sleep(STORE_RETRY_WAIT) => {}
            }
        }
    }

    /// Routes one batch, but for those that ask for semantic reuse: they are returned.
    async fn route(
        &self,
        batch: Vec<Delivery>,
        policy: &Policy,
        directory: &ModelRegistry,
        shutdown: &Shutdown,
    ) -> Vec<Entry> {
        let begun = Instant::now();
        histogram!(ROUTER_BATCH).record(batch.len() as f64);
        let models = directory.models();
        let context = IntakeContext {
            limits: &self.limits,
            policy,
            models: &models,
            semantic: self.reuse.as_deref().map(Reuse::asked),
            now: Utc::now(),
        };
        let mut entries = Vec::with_capacity(batch.len());
        let mut forwards = Vec::new();
        for delivery in batch
            .into_iter()
            .filter(|delivery| delivery.acker.is_live())
        {
            match intake::read(&delivery, context) {
                Intake::Admit(mut admission) => {
                    self.hold(&mut admission, context.now);
                    entries.push(Entry {
                        admission: *admission,
                        acker: delivery.acker,
                    });
                }
                Intake::Forward(routed) => {
                    forwards.push((delivery.acker, vec![Publication::to_tier(&routed)]));
                }
            }
        }
        let (asking, entries): (Vec<_>, Vec<_>) = entries
            .into_iter()
            .partition(|entry| semantic_reuse::asks(&entry.admission));
        let mut finished = forwards;
        self.admit(entries, &models, &mut finished, shutdown).await;
        self.finish(finished, shutdown).await;
        histogram!(ROUTER_SECONDS).record(begun.elapsed().as_secs_f64());
        asking
    }

    /// Holds a job that may not go to its tier yet, and ends one that was taken back already.
    fn hold(&self, admission: &mut Admission, now: DateTime<Utc>) {
        let is_open = !matches!(admission.decision, AdmissionDecision::End { .. });
        if is_open && self.holding.is_cancelled(&admission.head) {
            admission.decision = AdmissionDecision::End {
                state: JobState::Cancelled,
                reason: Reason::new("cancelled", "its submission was taken back"),
            };
        }
        if let (AdmissionDecision::Route(route), Some(request)) =
            (&mut admission.decision, &admission.request)
        {
            let head = &admission.head;
            route.deferral = self.holding.judge(route.tier, head, request, now);
        }
    }

    /// Looks up questions and admits their jobs: beside the batches, since embedding takes a while.
    async fn look_up(&self, asking: Vec<Entry>, models: &ServedModels, shutdown: &Shutdown) {
        let Some(reuse) = &self.reuse else { return };
        let (admissions, ackers): (Vec<_>, Vec<_>) = asking
            .into_iter()
            .map(|entry| (entry.admission, entry.acker))
            .unzip();
        let admissions = reuse.consult(admissions).await;
        let entries = admissions
            .into_iter()
            .zip(ackers)
            .map(|(admission, acker)| Entry { admission, acker })
            .collect();
        let mut finished = Vec::new();
        self.admit(entries, models, &mut finished, shutdown).await;
        self.finish(finished, shutdown).await;
    }

    /// Admits entries in one transaction and adds what is to be published for each.
    ///
    /// A ledger that cannot be reached is asked again; one that refuses the batch is given its
    /// halves, so that a single entry it cannot take ends alone, as a dead letter.
    async fn admit(
        &self,
        entries: Vec<Entry>,
        models: &ServedModels,
        finished: &mut Vec<(Acker, Vec<Publication>)>,
        shutdown: &Shutdown,
    ) {
        let mut parts = vec![entries];
        while let Some(mut part) = parts.pop() {
            if part.is_empty() {
                continue;
            }
            let admissions: Vec<_> = part.iter().map(|entry| entry.admission.clone()).collect();
            let lease = Duration::from_secs(self.cache.lease_s);
            match self.store.admit(&admissions, lease).await {
                Ok(outcomes) => {
                    let mut reused = Vec::new();
                    for (entry, outcome) in part.into_iter().zip(outcomes) {
                        if let Admitted::KeyReused { owner } = outcome {
                            reused.push(entry.refuse_reused_key(&owner.to_string()));
                        } else {
                            let messages = self.messages(&entry, outcome, models);
                            finished.push((entry.acker, messages));
                        }
                    }
                    parts.push(reused);
                }
                Err(error) if error.is_transient() => {
                    tracing::warn!(%error, jobs = part.len(), "jobs wait for the ledger");
                    tokio::select! {
                        () = shutdown.requested() => {
                            self.requeue(part.into_iter().map(|entry| entry.acker)).await;
                        }
                        () = tokio::time::sleep(STORE_RETRY_WAIT) => parts.push(part),
                    }
                }
                Err(error) if part.len() == 1 => {
                    tracing::error!(%error, "the ledger cannot take a job; it becomes a dead letter");
                    let ackers = part.into_iter().map(|entry| entry.acker).collect();
                    if let Err(error) = self.broker.reject(ackers).await {
                        tracing::warn!(%error, "not rejected; it will be delivered again");
                    }
                }
                Err(_) => {
                    let rest = part.split_off(part.len() / 2);
                    parts.push(rest);
                    parts.push(part);
                }
            }
        }
    }

    /// The messages that an admission's outcome calls for.
    fn messages(
        &self,
        entry: &Entry,
        outcome: Admitted,
        models: &ServedModels,
    ) -> Vec<Publication> {
        let is_new = matches!(outcome, Admitted::Routed | Admitted::Deferred);
        if is_new && let AdmissionDecision::Route(route) = &entry.admission.decision {
            counter!(ROUTED, "tier" => route.tier.as_str()).increment(1);
            histogram!(SCORE).record(route.decision.score);
        }
        if outcome != Admitted::Routed {
            return entry.messages(outcome);
        }
        count("routed");
        let routed = intake::routed(&entry.admission);
        routed
            .iter()
            .map(|routed| self.to_tier(routed, models))
            .collect()
    }

    /// The message that brings a job to its tier: on the affinity queue of the worker that holds its prompt prefix, or
    /// for whoever has a place.
    pub(super) fn to_tier(&self, routed: &RoutedJob, models: &ServedModels) -> Publication {
        let tier = routed.tier;
        let affinity_queue = models
            .assignment(tier)
            .filter(|_| self.config.affinity_queues);
        let affinity_queue = affinity_queue.and_then(|assignment| {
            let job = &routed.job;
            let prefix = affinity::prefix::of(&job.head.tenant, &job.request);
            let now_s = self.begun.elapsed().as_secs_f64();
            let mut placements = self.placements.lock().expect("nobody panics in it");
            let placement = &mut placements[usize::from(tier == Tier::Large)];
            placement.place(&prefix, assignment, now_s)
        });
        let place = if affinity_queue.is_some() {
            "affinity_queue"
        } else {
            "shared"
        };
        counter!(PLACED, "tier" => tier.as_str(), "place" => place).increment(1);
        match affinity_queue {
            Some(affinity_queue) => Publication::to_affinity_queue(routed, affinity_queue),
            None => Publication::to_tier(routed),
        }
    }

    /// Publishes what each delivery led to, then acknowledges those whose messages are all out.
    pub(super) async fn finish(
        &self,
        finished: Vec<(Acker, Vec<Publication>)>,
        shutdown: &Shutdown,
    ) {
        let mut messages = Vec::new();
        let mut counts = Vec::with_capacity(finished.len());
        let mut ackers = Vec::with_capacity(finished.len());
        for (acker, out) in finished {
            counts.push(out.len());
            messages.extend(out);
            ackers.push(acker);
        }
        let mut done = publish_all(&self.broker, messages, shutdown)
            .await
            .into_iter();
        let (mut acked, mut returned) = (Vec::new(), Vec::new());
        for (acker, count) in ackers.into_iter().zip(counts) {
            // Every flag is consumed, so that the next acker finds its own.
            let all_out = done.by_ref().take(count).filter(|is_out| !is_out).count() == 0;
            if all_out {
                acked.push(acker)
            } else {
                returned.push(acker)
            }
        }
        if let Err(error) = self.broker.ack(acked).await {
            tracing::warn!(%error, "not acknowledged; the messages will be delivered again");
        }
        self.requeue(returned.into_iter()).await;
    }

    pub(super) async fn requeue(&self, ackers: impl Iterator<Item = Acker>) {
        let ackers: Vec<_> = ackers.collect();
        if ackers.is_empty() {
            return;
        }
        if let Err(error) = self.broker.requeue(ackers).await {
            tracing::warn!(%error, "not put back; the broker does so when the connection ends");
        }
    }
}

/// A delivery on its way through the ledger.
struct Entry {
    admission: Admission,
    acker: Acker,
}

impl Entry {
    /// The messages that an outcome calls for which is not the way to a tier.
    fn messages(&self, outcome: Admitted) -> Vec<Publication> {
        match outcome {
            Admitted::Waiting => {
                count("waiting");
                Vec::new()
            }
            Admitted::Deferred => {
                count("held");
                Vec::new()
            }
            Admitted::Ended(record) => {
                count(match record.state {
                    JobState::Succeeded => record.source.map_or("cache", AnswerSource::as_str),
                    JobState::Expired => "expired",
                    JobState::Cancelled => "cancelled",
                    _ => "rejected",
                });
                observe_end(&record);
                Publication::reply(&record).into_iter().collect()
            }
            Admitted::Known(record) => {
                count("known");
                self.repeat(&record)
            }
            // Routed jobs have a way of their own; the router never admits as queued, and reused keys are
            // refused before.
            Admitted::Routed | Admitted::Queued | Admitted::KeyReused { .. } => Vec::new(),
        }
    }

    /// What a message calls for whose job is known already.
    fn repeat(&self, record: &JobRecord) -> Vec<Publication> {
        if record.state.is_terminal() {
            // The producer asks again, perhaps on another reply queue.
            let mut record = record.clone();
            record.reply_to = self.admission.head.reply_to.clone().or(record.reply_to);
            return Publication::reply(&record).into_iter().collect();
        }
        if record.state == JobState::Routed {
            // A router may have died between commit and publish, or the message was lost. If it
            // is there after all, the worker's claim absorbs the second one.
            return self.to_tier_as(record);
        }
        Vec::new()
    }

    fn to_tier_as(&self, record: &JobRecord) -> Vec<Publication> {
        let Some(mut routed) = intake::routed(&self.admission) else {
            return Vec::new();
        };
        routed.job.head.id = record.id;
        routed.tier = record.tier.unwrap_or(routed.tier);
        vec![Publication::to_tier(&routed)]
    }

    /// The same message as a job of its own that is refused. Its key holds the digest, so that a
    /// redelivery finds the refusal instead of writing another.
    fn refuse_reused_key(mut self, owner: &str) -> Self {
        let head = &mut self.admission.head;
        let key = head.key.take().unwrap_or_default();
        let digest = blake3::Hash::from_bytes(self.admission.digest).to_hex();
        head.key = Some(format!("{key}#{}", &digest.as_str()[..16]));
        self.admission.decision = AdmissionDecision::End {
            state: JobState::Rejected,
            reason: Reason::new(
                "idempotency_key_reused",
                format!("the idempotency key belongs to job {owner}, which asked something else"),
            ),
        };
        self
    }
}

fn count(outcome: &'static str) {
    counter!(ADMITTED, "outcome" => outcome).increment(1);
}
