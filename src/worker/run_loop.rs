//! The worker's loop. One task owns everything: deliveries not yet claimed, attempts that run, and
//! the order in which they end.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use metrics::gauge;
use tokio::{
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::task::TaskTracker;

use crate::{
    affinity::prefix,
    broker::{Acker, Consumer, Delivery},
    cache::cache_key,
    engine::{EngineError, Stop},
    job::{CacheKey, JobId, RoutedJob},
    metrics::RUNNING,
    shutdown::Shutdown,
    store::{AttemptOutcome, Settlement},
};

use super::{
    batch_order::{OrderKey, Ordered, take_together},
    cancellation::{self, Stopped, WATCH_INTERVAL},
    disposition::{AttemptContext, Disposition, judge},
    generate::{self, Generated},
    role::Worker,
    semantic_check::Checker,
    settle::{Finished, Settler},
    work_stealing::{LOOK_INTERVAL, OwnQueues, StealRound, WorkStealer},
};

/// Heartbeats within one lease: a lease outlives two that are lost.
const BEATS_PER_LEASE: u32 = 4;
/// Most attempts committed at once.
const SETTLE_MAX: usize = 128;
/// How long to wait before a ledger that failed is asked again.
pub(super) const STORE_RETRY_WAIT: Duration = Duration::from_millis(500);

/// A routed job that waits for a place in the batch.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) routed: RoutedJob,
    pub(super) redelivered: bool,
    pub(super) acker: Acker,
    pub(super) turn: OrderKey,
}

impl Ordered for Waiting {
    fn turn(&mut self) -> &mut OrderKey {
        &mut self.turn
    }
}

/// An attempt that runs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) attempt: u32,
    pub(super) last: bool,
    pub(super) claimed_at: DateTime<Utc>,
    pub(super) routed: RoutedJob,
    pub(super) acker: Acker,
    /// Ends it early.
    pub(super) stop: Stop,
    /// Why it was, if it was.
    pub(super) stopped: Option<Stopped>,
    /// True once another ran beside it: a crash may be that one's doing.
    pub(super) had_company: bool,
}

type Outcome = (JobId, u32, Generated);

/// The state of the loop.
pub(super) struct WorkerLoop {
    pub(super) worker: Worker,
    pub(super) settler: Settler,
    /// Delivered, not claimed.
    pub(super) waiting: VecDeque<Waiting>,
    /// Claimed and handed to the engine.
    running: HashMap<JobId, Running>,
    attempts: FuturesUnordered<BoxFuture<'static, Outcome>>,
    /// Ended, not committed.
    finished: Vec<Finished>,
    settle_at: Option<Instant>,
    /// Claimed, but their earlier attempt vanished or crashed: each runs by itself, and nothing new is
    /// claimed while one waits, so that it gets its turn.
    pub(super) poison_candidates: VecDeque<Running>,
    /// True while a poison candidate runs: nothing joins it.
    alone: bool,
    waiting_max: usize,
    running_max: usize,
    /// The affinity queues whose jobs this worker runs first of all.
    own: OwnQueues,
    /// A look at the affinity queues that is under way.
    looking: Option<JoinHandle<StealRound>>,
    /// A question to the ledger which running jobs were taken back.
    watching: Option<JoinHandle<Vec<(JobId, u32)>>>,
    /// True while nothing is consumed, since the engine could not serve it.
    is_paused: bool,
    /// Ends the settlers' patience with a ledger that is away.
    pub(super) give_up: Shutdown,
    settling: TaskTracker,
}

impl WorkerLoop {
    /// An empty yard for a worker.
    pub(super) fn new(worker: Worker, settler: Settler) -> Self {
        let batch_max = worker.engine.info().batch_max;
        Self {
            waiting: VecDeque::new(),
            running: HashMap::new(),
            attempts: FuturesUnordered::new(),
            finished: Vec::new(),
            settle_at: None,
            poison_candidates: VecDeque::new(),
            alone: false,
            own: OwnQueues::default(),
            looking: None,
            watching: None,
            is_paused: false,
            waiting_max: batch_max,
            running_max: batch_max,
            give_up: Shutdown::new(),
            settling: TaskTracker::new(),
            settler,
            worker,
        }
    }

    /// Works until told to stop, then drains.
    pub(super) async fn run(mut self, consumer: Consumer, shutdown: Shutdown) {
        let mut consumer = Some(consumer);
        let lease = self.worker.claimant.lease;
        let mut beats = interval(lease / BEATS_PER_LEASE);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watches = interval(WATCH_INTERVAL);
        watches.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let is_shared = self.worker.broker.is_shared();
        loop {
            self.start_waiting(&shutdown).await;
            let room = self.waiting_max.saturating_sub(self.waiting.len());
            let settle_at = self.settle_at;
            tokio::select! {
                () = shutdown.requested() => break,
                batch = next_of(&mut consumer, room.max(1)), if room > 0 => {
                    if batch.is_empty() {
                        break;
                    }
                    self.take(batch).await;
                }
                batch = next_of(&mut self.own.consumer, room.max(1)), if room > 0 => self.take(batch).await,
                Some(outcome) = self.attempts.next() => self.end(outcome),
                () = sleep_until(settle_at.unwrap_or_else(Instant::now)), if settle_at.is_some() => {
                    self.commit();
                }
                _ = beats.tick() => self.beat(false).await,
                _ = looks.tick(), if is_shared && self.looking.is_none() && !self.is_paused => self.look(),
                Some(look) = ended(&mut self.looking) => self.adopt(look).await,
                _ = watches.tick() => {
                    self.mind_engine(&mut consumer).await;
                    self.watch();
                }
                Some(gone) = ended(&mut self.watching) => self.withdraw(&gone),
            }
        }
        self.drain(consumer, &mut beats).await;
    }

    /// Stops consuming while the engine could not serve anything, so that others take the jobs, and
    /// begins again when it can.
    async fn mind_engine(&mut self, consumer: &mut Option<Consumer>) {
        let is_ready = self.worker.engine.is_ready();
        if self.is_paused && is_ready {
            match self.worker.consume().await {
                Ok(open) => {
                    tracing::info!("the engine is ready: jobs are taken again");
                    *consumer = Some(open);
                    self.is_paused = false;
                }
                Err(error) => tracing::warn!(%error, "cannot consume yet"),
            }
        } else if !self.is_paused && !is_ready {
            tracing::warn!(
                "the engine is not ready: no more jobs are taken, waiting ones are put back"
            );
            self.is_paused = true;
            let affinity_queues = std::mem::take(&mut self.own).consumer;
            for open in [consumer.take(), affinity_queues].into_iter().flatten() {
                open.close().await;
            }
            let waiting = self
                .waiting
                .drain(..)
                .map(|waiting| waiting.acker)
                .collect();
            self.settler.requeue(waiting).await;
        }
    }

    /// Stops what is late, and asks the ledger what was taken back.
    fn watch(&mut self) {
        let now = Utc::now();
        self.running
            .values_mut()
            .for_each(|running| cancellation::stop_late(running, now));
        if self.watching.is_none() && !self.running.is_empty() {
            let running = self.running.iter();
            let attempts = running
                .map(|(id, running)| (*id, running.attempt))
                .collect();
            self.watching = Some(cancellation::ask(self.worker.store.clone(), attempts));
        }
    }

    fn withdraw(&mut self, gone: &[(JobId, u32)]) {
        for (id, attempt) in gone {
            if let Some(running) = self.running.get_mut(id)
                && running.attempt == *attempt
            {
                cancellation::withdraw(running);
            }
        }
    }

    /// Looks at the affinity queues, beside the loop.
    fn look(&mut self) {
        let batch_max = self.running_max;
        let lookout = WorkStealer {
            broker: self.worker.broker.clone(),
            store: self.worker.store.clone(),
            tier: self.worker.claimant.tier,
            worker: self.worker.claimant.worker.clone(),
            prefetch: u16::try_from(batch_max.div_ceil(2)).unwrap_or(u16::MAX),
        };
        let free = batch_max.saturating_sub(self.running.len() + self.waiting.len());
        let is_idle = free * 2 >= batch_max && self.poison_candidates.is_empty();
        let own = self.own.affinity_queues.clone();
        self.looking = Some(tokio::spawn(lookout.look(own, free, is_idle)));
    }

    /// Takes over what a look led to.
    async fn adopt(&mut self, look: StealRound) {
        if let Some(own) = look.own {
            let before = std::mem::replace(&mut self.own, own);
            if let Some(consumer) = before.consumer {
                consumer.close().await;
            }
        }
        self.take(look.stolen).await;
    }

    /// Reads deliveries; what is not a routed job dies, what runs here already is adopted.
    async fn take(&mut self, batch: Vec<Delivery>) {
        let (mut foreign, mut duplicates) = (Vec::new(), Vec::new());
        for delivery in batch {
            match serde_json::from_slice::<RoutedJob>(&delivery.body) {
                Ok(routed) => duplicates.extend(self.admit(Waiting {
                    turn: OrderKey {
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
        self.settler.acknowledge(duplicates).await;
        if !foreign.is_empty() {
            tracing::warn!(
                messages = foreign.len(),
                "messages that are no routed jobs were rejected"
            );
            if let Err(error) = self.worker.broker.reject(foreign).await {
                tracing::warn!(%error, "not rejected; they will be delivered again");
            }
        }
    }

    /// Takes a delivery in; returns the acker of one that is a duplicate of what is here already.
    fn admit(&mut self, arrival: Waiting) -> Option<Acker> {
        let id = arrival.routed.job.head.id;
        let poison_candidate = self
            .poison_candidates
            .iter_mut()
            .find(|s| s.routed.job.head.id == id);
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
                // The connection broke meanwhile: the same message again, with a acker that works.
                *acker = arrival.acker;
                None
            }
        }
    }

    /// Claims waiting jobs for the free places of the batch and hands them to the engine.
    async fn start_waiting(&mut self, shutdown: &Shutdown) {
        while !self.alone && !self.is_paused && !shutdown.is_requested() {
            if !self.poison_candidates.is_empty() {
                if self.running.is_empty()
                    && let Some(poison_candidate) = self.poison_candidates.pop_front()
                {
                    self.alone = true;
                    self.start(poison_candidate);
                }
                return;
            }
            let free = self.running_max.saturating_sub(self.running.len());
            let count = free.min(self.waiting.len());
            if count == 0 {
                return;
            }
            let chosen: Vec<_> = take_together(&mut self.waiting, count)
                .into_iter()
                .filter(|w| w.acker.is_live())
                .collect();
            if !chosen.is_empty() && !self.claim(chosen, shutdown).await {
                return;
            }
        }
    }

    pub(super) fn start(&mut self, mut running: Running) {
        running.had_company = !self.running.is_empty();
        if running.had_company {
            let others = self.running.values_mut();
            others.for_each(|other| other.had_company = true);
        }
        let (id, attempt) = (running.routed.job.head.id, running.attempt);
        let generation = self.generation(&running.routed, running.stop.clone());
        self.attempts
            .push(Box::pin(async move { (id, attempt, generation.await) }));
        self.running.insert(id, running);
        self.show_running();
    }

    /// The job's answer: a near question's, where the model says that it serves, else its own.
    fn generation(&self, routed: &RoutedJob, stop: Stop) -> BoxFuture<'static, Generated> {
        let (engine, embedder) = (self.worker.engine.clone(), self.worker.embedder.clone());
        let Some(candidate) = routed.candidate.clone() else {
            return generate::generate(&engine, embedder.as_ref(), &routed.job, stop);
        };
        let checker = Checker {
            store: self.worker.store.clone(),
            engine: engine.clone(),
            tier: self.worker.claimant.tier,
        };
        let job = routed.job.clone();
        Box::pin(async move {
            match checker.ask(&job, &candidate).await {
                Some(generated) => generated,
                None => generate::generate(&engine, embedder.as_ref(), &job, stop).await,
            }
        })
    }

    /// Moves an attempt that ended to those that wait for their commit.
    fn end(&mut self, (id, attempt, outcome): Outcome) {
        let Some(running) = self.running.remove(&id) else {
            return;
        };
        if self.running.is_empty() {
            self.alone = false;
        }
        self.show_running();
        self.finished.push(self.finish(running, attempt, outcome));
        if self.finished.len() >= SETTLE_MAX {
            self.commit();
        } else if self.settle_at.is_none() {
            let linger = Duration::from_millis(self.worker.config.settle_linger_ms);
            self.settle_at = Some(Instant::now() + linger);
        }
    }

    fn finish(
        &self,
        mut running: Running,
        attempt: u32,
        Generated {
            outcome,
            saved,
            reused,
        }: Generated,
    ) -> Finished {
        let now = Utc::now();
        let (started_at, first_token_at, finished_at) = match &outcome {
            Ok(generation) => (
                generation.started_at,
                generation.first_token_at,
                generation.finished_at,
            ),
            Err(_) => (running.claimed_at, None, now),
        };
        // Whatever shared the step crashed with it; only apart can the innocent show that they are.
        running.routed.poison_candidate = matches!(outcome, Err(EngineError::Crashed(_)));
        // The word on a near question is no answer to be judged.
        let own = outcome.as_ref().ok().filter(|_| reused.is_none());
        let signals = own.and_then(|answer| answer.signals);
        let doubter = self.worker.doubter.as_ref();
        let confidence = doubter.zip(own).and_then(|(doubter, generation)| {
            doubter.confidence(generation, &running.routed.job.request)
        });
        let doubt =
            doubter.and_then(|doubter| doubter.doubt(confidence, &running.routed, finished_at));
        let is_reused = reused.is_some();
        let judge = |outcome| {
            let terms = AttemptContext {
                attempt,
                last: running.last,
                company: running.had_company,
            };
            judge(&running.routed, terms, outcome, doubt.clone())
        };
        let (settled, disposition) = match (reused, running.stopped) {
            (Some(reused), _) => (AttemptOutcome::Reused(reused), Disposition::Done),
            (None, None) => judge(outcome),
            (None, Some(_)) if matches!(outcome, Err(EngineError::Closed)) => judge(outcome),
            (None, Some(stopped)) => cancellation::judge_stopped(stopped, outcome.ok())
                .unwrap_or_else(|whole| judge(Ok(*whole))),
        };
        let own_key = self.own_key(&running.routed);
        let is_own = running.routed.cache_key == own_key;
        // An escalated job whose key covers the large model as well goes on leading its entry.
        let keeps_lead = matches!(settled, AttemptOutcome::Escalate { .. })
            && is_own
            && running.routed.pair.is_some();
        let settlement = Settlement {
            job: running.routed.job.head.id,
            attempt: running.attempt,
            outcome: settled,
            started_at,
            first_token_at,
            finished_at,
            cache_key: running.routed.cache_key.filter(|_| !keeps_lead),
            saved,
            // The entry is for the job's own answer.
            reusable: is_own && !is_reused,
            confidence,
            signals,
        };
        if let (Disposition::Tier(tier), AttemptOutcome::Escalate { .. }) =
            (disposition, &settlement.outcome)
        {
            running.routed = running.routed.moved(tier, keeps_lead);
        }
        Finished {
            settlement,
            disposition,
            routed: running.routed,
            acker: running.acker,
        }
    }

    /// The key that this worker's answer to a job has.
    pub(super) fn own_key(&self, routed: &RoutedJob) -> Option<CacheKey> {
        let served = self.worker.served();
        let (tenant, request) = (&routed.job.head.tenant, &routed.job.request);
        match &routed.pair {
            Some(pair) => {
                let pair = pair.with(self.worker.claimant.tier, served);
                cache_key(tenant, &pair.names(), request)
            }
            None => cache_key(tenant, &[(&served.model, &served.revision)], request),
        }
    }

    /// Commits what has ended, beside the loop.
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

    async fn beat(&mut self, draining: bool) {
        let heartbeat = self.worker.heartbeat(self.running.len(), draining);
        if let Err(error) = self.worker.store.heartbeat(&heartbeat).await {
            tracing::warn!(%error, "no heartbeat written; running jobs may be taken over");
        }
    }

    fn show_running(&self) {
        let tier = self.worker.claimant.tier.as_str();
        gauge!(RUNNING, "tier" => tier).set(self.running.len() as f64);
    }

    /// Returns what was not started, lets what runs finish, and puts the rest back uncharged.
    async fn drain(mut self, consumer: Option<Consumer>, beats: &mut tokio::time::Interval) {
        if let Some(consumer) = consumer {
            consumer.close().await;
        }
        if let Some(looking) = self.looking.take()
            && let Ok(look) = looking.await
        {
            self.adopt(look).await;
        }
        if let Some(consumer) = self.own.consumer.take() {
            consumer.close().await;
        }
        let unstarted = self.waiting.drain(..).map(|w| w.acker).collect();
        self.settler.requeue(unstarted).await;
        let deadline = Instant::now() + Duration::from_secs(self.worker.config.drain_s);
        while !self.running.is_empty() {
            tokio::select! {
                Some(outcome) = self.attempts.next() => self.end(outcome),
                _ = beats.tick() => self.beat(true).await,
                () = sleep_until(deadline) => break,
            }
        }
        self.attempts.clear();
        let running = self.running.drain().map(|(_, running)| running);
        let left: Vec<_> = running.chain(self.poison_candidates.drain(..)).collect();
        if !left.is_empty() {
            tracing::info!(jobs = left.len(), "running jobs are put back");
        }
        for running in left {
            let attempt = running.attempt;
            let finished = self.finish(running, attempt, Err(EngineError::Closed).into());
            debug_assert_eq!(finished.disposition, Disposition::PutBack);
            debug_assert_eq!(finished.settlement.outcome, AttemptOutcome::Returned);
            self.finished.push(finished);
        }
        self.commit();
        self.settling.close();
        // The ledger gets one more lease of patience; then the broker delivers the messages again.
        if tokio::time::timeout(self.worker.claimant.lease, self.settling.wait())
            .await
            .is_err()
        {
            self.give_up.request();
            self.settling.wait().await;
        }
        self.beat(true).await;
    }
}

/// The next messages of a consumer that there may be; never, without one. One that has ended is let go.
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

/// What a task that is under way led to; never, without one.
async fn ended<T>(under_way: &mut Option<JoinHandle<T>>) -> Option<T> {
    let Some(task) = under_way else {
        return std::future::pending().await;
    };
    let outcome = task.await;
    *under_way = None;
    outcome
        .inspect_err(|error| tracing::error!(%error, "a look beside the loop crashed"))
        .ok()
}
