//! The worker's loop. One task owns the state: jobs not yet claimed, attempts that run, and attempts
//! not yet committed.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use chrono::Utc;
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use metrics::gauge;
use tokio::{
    task::JoinHandle,
    time::{Instant, Interval, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::task::TaskTracker;

use crate::{
    affinity::prefix,
    broker::{
        Acker, Consumer, Delivery,
        publisher::{acknowledge, reject, requeue},
    },
    engine::{EngineError, Stop},
    job::{JobId, RoutedJob},
    metrics::RUNNING,
    shutdown::Shutdown,
    store::AttemptOutcome,
};

use super::{
    attempt::{Finished, Running},
    batch_order::{OrderKey, Ordered, take_together},
    cancellation::{self, CHECK_INTERVAL},
    disposition::Disposition,
    generate::{self, Generated},
    role::{Worker, WorkerError},
    semantic_check::SemanticCheck,
    settle::Settler,
    work_stealing::{OwnQueues, ROUND_INTERVAL, StealRound, WorkStealer},
};

/// Heartbeats within one lease: a lease survives two lost ones.
const HEARTBEATS_PER_LEASE: u32 = 4;
/// Most attempts committed at once.
const SETTLE_MAX: usize = 128;

/// A routed job that waits for a place in the batch.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) routed: RoutedJob,
    pub(super) redelivered: bool,
    pub(super) acker: Acker,
    order_key: OrderKey,
}

impl Ordered for Waiting {
    fn order_key(&mut self) -> &mut OrderKey {
        &mut self.order_key
    }
}

impl Worker {
    /// Runs jobs until the stop; then requeues those not started and gives those that run up to
    /// `drain_s` to finish.
    ///
    /// # Errors
    /// When it may not consume; a broker or job database that is away is waited for.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), WorkerError> {
        // The heartbeats repeat it.
        if let Err(error) = self.announce().await {
            tracing::warn!(%error, "cannot register this worker yet; the next heartbeat tries again");
        }
        let (queues, prefetch) = self.intake();
        let subscribed = self.broker.subscribe(&queues, prefetch, &shutdown).await?;
        let Some(consumer) = subscribed else {
            return Ok(());
        };
        WorkerLoop::new(self).run(consumer, shutdown).await;
        Ok(())
    }
}

/// The state of the loop.
pub(super) struct WorkerLoop {
    pub(super) worker: Worker,
    pub(super) settler: Settler,
    /// Delivered, not claimed.
    pub(super) waiting: VecDeque<Waiting>,
    /// Claimed and handed to the engine.
    running: HashMap<JobId, Running>,
    attempts: FuturesUnordered<BoxFuture<'static, (JobId, Generated)>>,
    /// Ended, not committed.
    finished: Vec<Finished>,
    settle_at: Option<Instant>,
    /// Claimed, but their earlier attempt vanished or crashed: each runs alone, and nothing new is
    /// claimed while one waits, so that it gets its turn.
    pub(super) poison_candidates: VecDeque<Running>,
    /// True while a poison candidate runs.
    is_isolated: bool,
    /// Most jobs that run, and most that wait.
    batch_max: usize,
    /// The affinity queues assigned to this worker.
    own: OwnQueues,
    /// A work-stealing round in progress.
    steal_round: Option<JoinHandle<StealRound>>,
    /// A check in progress of which running attempts are superseded.
    superseded: Option<JoinHandle<Vec<(JobId, u32)>>>,
    /// True while nothing is consumed, since the engine is not ready.
    is_paused: bool,
    /// Ends the wait of commits and publications for a job database or broker that is away.
    pub(super) give_up: Shutdown,
    settling: TaskTracker,
}

impl WorkerLoop {
    fn new(worker: Worker) -> Self {
        Self {
            settler: Settler {
                broker: worker.broker.clone(),
                store: worker.store.clone(),
                tier: worker.claimant.tier,
                cache_ttl: Duration::from_secs(worker.cache.ttl_s),
            },
            waiting: VecDeque::new(),
            running: HashMap::new(),
            attempts: FuturesUnordered::new(),
            finished: Vec::new(),
            settle_at: None,
            poison_candidates: VecDeque::new(),
            is_isolated: false,
            batch_max: worker.engine.info().batch_max,
            own: OwnQueues::default(),
            steal_round: None,
            superseded: None,
            is_paused: false,
            give_up: Shutdown::new(),
            settling: TaskTracker::new(),
            worker,
        }
    }

    /// Works until the stop, then drains.
    async fn run(mut self, consumer: Consumer, shutdown: Shutdown) {
        let mut consumer = Some(consumer);
        let mut heartbeats = delayed(self.worker.claimant.lease / HEARTBEATS_PER_LEASE);
        let mut rounds = delayed(ROUND_INTERVAL);
        let mut checks = delayed(CHECK_INTERVAL);
        let is_shared = self.worker.broker.is_shared();
        loop {
            self.start_waiting(&shutdown).await;
            let free = self.batch_max.saturating_sub(self.waiting.len());
            let settle_at = self.settle_at;
            tokio::select! {
                () = shutdown.requested() => break,
                batch = next_of(&mut consumer, free), if free > 0 => {
                    if batch.is_empty() {
                        break;
                    }
                    self.take(batch).await;
                }
                batch = next_of(&mut self.own.consumer, free), if free > 0 => self.take(batch).await,
                Some((id, generated)) = self.attempts.next() => self.end(id, generated),
                () = sleep_until(settle_at.unwrap_or_else(Instant::now)), if settle_at.is_some() => {
                    self.commit();
                }
                _ = heartbeats.tick() => self.heartbeat(false).await,
                _ = rounds.tick(), if is_shared && self.steal_round.is_none() && !self.is_paused => {
                    self.steal();
                }
                Some(round) = ended(&mut self.steal_round) => self.adopt(round).await,
                _ = checks.tick() => {
                    self.follow_engine(&mut consumer).await;
                    self.check_running();
                }
                Some(superseded) = ended(&mut self.superseded) => self.supersede(&superseded),
            }
        }
        self.drain(consumer, &mut heartbeats).await;
    }

    /// Stops consuming while the engine is not ready, so that other workers take the jobs, and
    /// consumes again when it is.
    async fn follow_engine(&mut self, consumer: &mut Option<Consumer>) {
        let is_ready = self.worker.engine.is_ready();
        if self.is_paused && is_ready {
            match self.worker.consume().await {
                Ok(open) => {
                    tracing::info!("the engine is ready: consuming again");
                    *consumer = Some(open);
                    self.is_paused = false;
                }
                Err(error) => tracing::warn!(%error, "cannot consume; trying again"),
            }
        } else if !self.is_paused && !is_ready {
            tracing::warn!("the engine is not ready: consuming stops, waiting jobs are requeued");
            self.is_paused = true;
            let own = std::mem::take(&mut self.own).consumer;
            for open in [consumer.take(), own].into_iter().flatten() {
                open.close().await;
            }
            self.requeue_waiting().await;
        }
    }

    async fn requeue_waiting(&mut self) {
        let ackers = self.waiting.drain(..).map(|waiting| waiting.acker);
        requeue(&self.worker.broker, ackers.collect()).await;
    }

    /// Stops late attempts, and starts to read which ones are superseded.
    fn check_running(&mut self) {
        let now = Utc::now();
        for running in self.running.values_mut() {
            running.stop_if_late(now);
        }
        if self.superseded.is_none() && !self.running.is_empty() {
            let running = self.running.iter();
            let attempts = running
                .map(|(id, running)| (*id, running.attempt))
                .collect();
            let store = self.worker.store.clone();
            self.superseded = Some(cancellation::superseded(store, attempts));
        }
    }

    fn supersede(&mut self, attempts: &[(JobId, u32)]) {
        for (id, attempt) in attempts {
            if let Some(running) = self.running.get_mut(id)
                && running.attempt == *attempt
            {
                running.supersede();
            }
        }
    }

    /// Starts a work-stealing round.
    fn steal(&mut self) {
        let stealer = WorkStealer {
            broker: self.worker.broker.clone(),
            store: self.worker.store.clone(),
            tier: self.worker.claimant.tier,
            worker: self.worker.claimant.worker.clone(),
            prefetch: u16::try_from(self.batch_max.div_ceil(2)).unwrap_or(u16::MAX),
        };
        let taken = self.running.len() + self.waiting.len();
        let free = self.batch_max.saturating_sub(taken);
        let is_idle = free * 2 >= self.batch_max && self.poison_candidates.is_empty();
        let own = self.own.queues.clone();
        self.steal_round = Some(tokio::spawn(stealer.round(own, free, is_idle)));
    }

    /// Takes over the result of a work-stealing round.
    async fn adopt(&mut self, round: StealRound) {
        if let Some(own) = round.own {
            let before = std::mem::replace(&mut self.own, own);
            if let Some(consumer) = before.consumer {
                consumer.close().await;
            }
        }
        self.take(round.stolen).await;
    }

    /// Takes deliveries in. A message that is no routed job becomes a dead letter.
    async fn take(&mut self, batch: Vec<Delivery>) {
        let (mut foreign, mut duplicates) = (Vec::new(), Vec::new());
        for delivery in batch {
            match serde_json::from_slice::<RoutedJob>(&delivery.body) {
                Ok(routed) => duplicates.extend(self.admit(Waiting {
                    order_key: OrderKey {
                        prefix: prefix::of(&routed.job.head.tenant, &routed.job.request),
                        passed_over: 0,
                    },
                    routed,
                    redelivered: delivery.redelivered,
                    acker: delivery.acker,
                })),
                Err(_) => foreign.push(delivery.acker),
            }
        }
        acknowledge(&self.worker.broker, duplicates).await;
        if !foreign.is_empty() {
            tracing::warn!(
                messages = foreign.len(),
                "messages that are no routed jobs become dead letters"
            );
            reject(&self.worker.broker, foreign).await;
        }
    }

    /// Takes a job in; returns the acker of a duplicate of a job that is here already.
    fn admit(&mut self, arrival: Waiting) -> Option<Acker> {
        let id = arrival.routed.job.head.id;
        let poison_candidate = self
            .poison_candidates
            .iter_mut()
            .find(|candidate| candidate.routed.job.head.id == id);
        let claimed = self
            .running
            .get_mut(&id)
            .or(poison_candidate)
            .map(|running| &mut running.acker);
        let waiting = self.waiting.iter_mut().find(|w| w.routed.job.head.id == id);
        match claimed.or(waiting.map(|waiting| &mut waiting.acker)) {
            None => {
                self.waiting.push_back(arrival);
                None
            }
            Some(acker) if acker.is_live() => Some(arrival.acker),
            Some(acker) => {
                // The connection broke meanwhile: the same message again, with an acker that works.
                *acker = arrival.acker;
                None
            }
        }
    }

    /// Claims waiting jobs for the free places of the batch and hands them to the engine.
    async fn start_waiting(&mut self, shutdown: &Shutdown) {
        while !self.is_isolated && !self.is_paused && !shutdown.is_requested() {
            if !self.poison_candidates.is_empty() {
                if self.running.is_empty()
                    && let Some(candidate) = self.poison_candidates.pop_front()
                {
                    self.is_isolated = true;
                    self.start(candidate);
                }
                return;
            }
            let free = self.batch_max.saturating_sub(self.running.len());
            let count = free.min(self.waiting.len());
            if count == 0 {
                return;
            }
            let chosen: Vec<_> = take_together(&mut self.waiting, count)
                .into_iter()
                .filter(|waiting| waiting.acker.is_live())
                .collect();
            if !chosen.is_empty() && !self.claim(chosen, shutdown).await {
                return;
            }
        }
    }

    /// Hands a claimed job to the engine.
    pub(super) fn start(&mut self, mut running: Running) {
        running.had_company = !self.running.is_empty();
        if running.had_company {
            let others = self.running.values_mut();
            others.for_each(|other| other.had_company = true);
        }
        let id = running.routed.job.head.id;
        let generation = self.generation(&running.routed, running.stop.clone());
        self.attempts
            .push(Box::pin(async move { (id, generation.await) }));
        self.running.insert(id, running);
        self.show_running();
    }

    /// The job's answer: a near question's, where the model says that it serves, else its own.
    fn generation(&self, routed: &RoutedJob, stop: Stop) -> BoxFuture<'static, Generated> {
        let (engine, embedder) = (self.worker.engine.clone(), self.worker.embedder.clone());
        let Some(candidate) = routed.candidate.clone() else {
            return generate::generate(&engine, embedder.as_ref(), &routed.job, stop);
        };
        let check = SemanticCheck {
            store: self.worker.store.clone(),
            engine: engine.clone(),
            tier: self.worker.claimant.tier,
        };
        let job = routed.job.clone();
        Box::pin(async move {
            match check.reuse(&job, &candidate).await {
                Some(generated) => generated,
                None => generate::generate(&engine, embedder.as_ref(), &job, stop).await,
            }
        })
    }

    /// Adds an attempt that ended to the next commit.
    fn end(&mut self, id: JobId, generated: Generated) {
        let Some(running) = self.running.remove(&id) else {
            return;
        };
        if self.running.is_empty() {
            self.is_isolated = false;
        }
        self.show_running();
        self.finished.push(self.worker.finish(running, generated));
        if self.finished.len() >= SETTLE_MAX {
            self.commit();
        } else if self.settle_at.is_none() {
            let linger = Duration::from_millis(self.worker.config.settle_linger_ms);
            self.settle_at = Some(Instant::now() + linger);
        }
    }

    /// Commits the finished attempts in a task of its own.
    fn commit(&mut self) {
        self.settle_at = None;
        let group = std::mem::take(&mut self.finished);
        if group.is_empty() {
            return;
        }
        let (settler, give_up) = (self.settler.clone(), self.give_up.clone());
        self.settling
            .spawn(async move { settler.settle(group, &give_up).await });
    }

    async fn heartbeat(&mut self, is_draining: bool) {
        let heartbeat = self.worker.heartbeat(self.running.len(), is_draining);
        if let Err(error) = self.worker.store.heartbeat(&heartbeat).await {
            tracing::warn!(%error, "no heartbeat written; other workers may claim the running jobs");
        }
    }

    fn show_running(&self) {
        let tier = self.worker.claimant.tier.as_str();
        gauge!(RUNNING, "tier" => tier).set(self.running.len() as f64);
    }

    /// Requeues jobs that were not started, lets running ones finish, and requeues the rest without
    /// counting their attempts.
    async fn drain(mut self, consumer: Option<Consumer>, heartbeats: &mut Interval) {
        if let Some(consumer) = consumer {
            consumer.close().await;
        }
        if let Some(round) = self.steal_round.take()
            && let Ok(round) = round.await
        {
            self.adopt(round).await;
        }
        if let Some(consumer) = self.own.consumer.take() {
            consumer.close().await;
        }
        self.requeue_waiting().await;
        let deadline = Instant::now() + Duration::from_secs(self.worker.config.drain_s);
        while !self.running.is_empty() {
            tokio::select! {
                Some((id, generated)) = self.attempts.next() => self.end(id, generated),
                _ = heartbeats.tick() => self.heartbeat(true).await,
                () = sleep_until(deadline) => break,
            }
        }
        self.attempts.clear();
        let running = self.running.drain().map(|(_, running)| running);
        let left: Vec<_> = running.chain(self.poison_candidates.drain(..)).collect();
        if !left.is_empty() {
            tracing::info!(
                jobs = left.len(),
                "jobs that did not finish within worker.drain_s are requeued"
            );
        }
        for running in left {
            let finished = self.worker.finish(running, Err(EngineError::Closed).into());
            debug_assert_eq!(finished.follow_up.disposition, Disposition::Requeue);
            debug_assert_eq!(finished.settlement.outcome, AttemptOutcome::Returned);
            self.finished.push(finished);
        }
        self.commit();
        self.settling.close();
        // The job database gets one more lease; after that the broker delivers the messages again.
        if tokio::time::timeout(self.worker.claimant.lease, self.settling.wait())
            .await
            .is_err()
        {
            self.give_up.request();
            self.settling.wait().await;
        }
        self.heartbeat(true).await;
    }
}

fn delayed(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// The next messages of a consumer; pending forever without one. A consumer that has ended is dropped.
async fn next_of(consumer: &mut Option<Consumer>, max: usize) -> Vec<Delivery> {
    let Some(open) = consumer else {
        return std::future::pending().await;
    };
    let batch = open.next_batch(max, Duration::ZERO).await;
    if batch.is_empty() {
        *consumer = None;
    }
    batch
}

/// The result of a task; pending forever without one.
async fn ended<T>(task: &mut Option<JoinHandle<T>>) -> Option<T> {
    let Some(running) = task else {
        return std::future::pending().await;
    };
    let outcome = running.await;
    *task = None;
    outcome
        .inspect_err(|error| tracing::error!(%error, "a background task of the worker crashed; it starts again"))
        .ok()
}
