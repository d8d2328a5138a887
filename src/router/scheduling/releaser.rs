//! The releaser: polls queues and deferred jobs several times a second, and releases the jobs that may
//! go.

use std::{collections::HashMap, time::Duration};

use chrono::{TimeDelta, Utc};
use metrics::{counter, gauge};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::{
    broker::{Publication, publisher::publish_all},
    job::{JobId, Tenant, Tier},
    metrics::{DEFERRED_JOBS, RELEASED},
    router::role::{Router, TaskContext},
    store::{DeferredQueue, Released, StoreError, TenantLimits, wait_out},
};

use super::{
    admission::QueueSnapshot,
    fair_queue::{FairQueue, LoadCount},
};

/// Time between polls while jobs are deferred, and while none is.
const POLL_BUSY: Duration = Duration::from_millis(200);
const POLL_IDLE: Duration = Duration::from_millis(500);
/// Time to the next poll when a job is deferred after none was: its transaction is over by then.
const POLL_SOON: Duration = Duration::from_millis(30);
/// How often tenants' loads are counted, which also removes old counts, while no tenant has limits; with
/// limits they are counted at every poll.
const LOADS_INTERVAL: Duration = Duration::from_secs(5);
/// The leadership's lease. Jobs released longer ago that are not noted as published were left behind by
/// their router.
const LEASE: Duration = Duration::from_secs(10);
/// Age at which the leadership is renewed.
const LEASE_RENEWAL: Duration = Duration::from_secs(3);
/// How often the leader looks for released jobs that were not published.
const UNPUBLISHED_INTERVAL: Duration = Duration::from_secs(5);
/// How often deferred jobs are counted up to `router.deferred_max`, and how often where that exceeds
/// [`COUNT_LONG`] and a count takes long.
const COUNT_INTERVAL: Duration = Duration::from_secs(2);
const COUNT_INTERVAL_LONG: Duration = Duration::from_secs(20);
const COUNT_LONG: u32 = 100_000;
/// Deferred jobs are counted up to here at each poll: ten times as many made the count the most
/// expensive statement of all.
const COUNTED_MAX: u32 = 1_000;
/// Jobs released in one transaction.
const RELEASE_MAX: usize = 512;
/// Jobs released to a tier at one poll, and jobs of one tenant read for it. With more, a poll takes so
/// long on a slow job database or broker that the queues run dry meanwhile.
const RELEASED_PER_POLL_MAX: usize = 1024;
/// Jobs whose start time has come that go to the router at one poll.
const DUE_MAX: usize = 512;
/// How long routers remember cancelled submissions: longer than their jobs can be in the router's queue.
const CANCELLED_FOR: TimeDelta = TimeDelta::days(1);

/// What a router keeps from one poll to the next.
#[derive(Default)]
struct Releaser {
    /// Small's and large's.
    fair_queues: [FairQueue; 2],
    /// Whether the last release filled the queue of each tier.
    filled: [bool; 2],
    /// When it acquired or renewed the leadership last.
    led_at: Option<Instant>,
    /// When it looked last for released jobs that were not published.
    unpublished_at: Option<Instant>,
    /// When the tenants' loads were counted last.
    loads_at: Option<Instant>,
}

impl Releaser {
    /// True while this router leads; asks the job database only when the lease is to be renewed.
    async fn leads(&mut self, router: &Router) -> Result<bool, StoreError> {
        if self.led_at.is_some_and(|at| at.elapsed() < LEASE_RENEWAL) {
            return Ok(true);
        }
        let now = Instant::now();
        let leads = router
            .store
            .acquire_leadership("release", &router.name, LEASE)
            .await?;
        self.led_at = leads.then_some(now);
        Ok(leads)
    }
}

/// Polls once before anything is routed, since the first jobs may belong to cancelled submissions.
pub(in crate::router) async fn begin(context: &TaskContext) {
    if let Err(error) = poll(context, &mut Releaser::default()).await {
        tracing::warn!(%error, "cannot read the deferred jobs yet");
    }
}

/// Polls and releases.
pub(in crate::router) async fn run(context: TaskContext) {
    let TaskContext {
        router, shutdown, ..
    } = &context;
    let mut releaser = Releaser::default();
    counter!(RELEASED).increment(0);
    let (mut wait, mut was_busy) = (Duration::ZERO, false);
    let mut counts = interval(if router.config.deferred_max > COUNT_LONG {
        COUNT_INTERVAL_LONG
    } else {
        COUNT_INTERVAL
    });
    counts.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.requested() => return,
            () = sleep(wait) => {}
            _ = counts.tick() => {
                count(router).await;
                continue;
            }
            // The first job of a flood need not wait for the next poll.
            () = router.admission.any_deferred(), if !was_busy => sleep(POLL_SOON).await,
        }
        let begun = Instant::now();
        was_busy = poll(&context, &mut releaser).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot release deferred jobs; they wait");
            false
        });
        let interval = if was_busy { POLL_BUSY } else { POLL_IDLE };
        wait = interval.saturating_sub(begun.elapsed());
    }
}

/// Counts deferred jobs up to `router.deferred_max`, where the intake stops.
async fn count(router: &Router) {
    let most = router.config.deferred_max;
    let deferred = match router.store.deferred_counts(most).await {
        Ok(counts) => counts.iter().map(|count| u64::from(*count)).sum::<u64>(),
        Err(error) => {
            tracing::warn!(%error, "cannot count the deferred jobs");
            return;
        }
    };
    let is_full = deferred >= u64::from(most);
    if !router.admission.set_full(is_full) {
        return;
    }
    if is_full {
        tracing::warn!(
            deferred,
            "router.deferred_max jobs are deferred: no more jobs are taken in"
        );
    } else {
        tracing::info!(deferred, "jobs are taken in again");
    }
}

/// Polls once; true when any job is deferred.
async fn poll(context: &TaskContext, releaser: &mut Releaser) -> Result<bool, StoreError> {
    let router = &context.router;
    let store = &router.store;
    let counts = store.deferred_counts(COUNTED_MAX).await?;
    for (queue, count) in DeferredQueue::ALL.into_iter().zip(counts) {
        gauge!(DEFERRED_JOBS, "queue" => queue.as_str()).set(f64::from(count));
    }
    let is_tier_deferred = counts[1..].iter().any(|count| *count > 0);
    let tenants = if is_tier_deferred {
        store.deferred_tenants().await?
    } else {
        Vec::new()
    };
    let limits = store.tenants().await?;
    let cancelled = store.cancelled_batches(Utc::now() - CANCELLED_FOR).await?;
    let Ok(depths) = router.broker.depths().await else {
        // The main loop reports broker errors.
        return Ok(is_tier_deferred);
    };
    let ready = Tier::ALL.map(|tier| {
        let queues = depths
            .iter()
            .filter(|depth| depth.queue.tier() == Some(tier));
        queues.map(|depth| depth.ready).sum::<u64>()
    });
    let free = router.admission.observe(QueueSnapshot {
        ready,
        deferred: [counts[1], counts[2]],
        filled: std::mem::take(&mut releaser.filled),
        tenants,
        limits,
        cancelled,
    });
    let is_any = counts.iter().any(|count| *count > 0);
    let limits = router.admission.limits();
    let is_limited = is_tier_deferred && limits.values().any(TenantLimits::is_limited);
    let is_time = |at: Instant| at.elapsed() >= LOADS_INTERVAL;
    let wants_loads = is_limited || releaser.loads_at.is_none_or(is_time);
    if wants_loads {
        releaser.loads_at = Some(Instant::now());
    }
    if !(is_any || wants_loads) || !releaser.leads(router).await? {
        return Ok(is_any);
    }
    let mut loads: HashMap<Tenant, LoadCount> = HashMap::new();
    if wants_loads {
        let counted = store.tenant_loads().await?;
        let counted = counted.iter();
        loads.extend(counted.map(|load| (load.tenant.clone(), load.into())));
    }
    let is_time = |at: Instant| at.elapsed() >= UNPUBLISHED_INTERVAL;
    if releaser.unpublished_at.is_none_or(is_time) {
        releaser.unpublished_at = Some(Instant::now());
        let jobs = store.unpublished(LEASE, RELEASE_MAX).await?;
        if !jobs.is_empty() {
            tracing::warn!(
                jobs = jobs.len(),
                "released jobs that may not have been published are published again"
            );
        }
        release(context, jobs, Release::Again).await?;
    }
    if counts[0] > 0 {
        let due = store.deferred(DeferredQueue::In, DUE_MAX).await?;
        let due = due.into_iter().map(|deferred| deferred.job).collect();
        release(context, due, Release::First).await?;
    }
    if !is_tier_deferred {
        return Ok(is_any);
    }
    let tiers = Tier::ALL.into_iter().zip(free).enumerate();
    for (at, (tier, free)) in tiers {
        let most = usize::try_from(free)
            .unwrap_or(usize::MAX)
            .min(RELEASED_PER_POLL_MAX);
        if most == 0 {
            continue;
        }
        let deferred = store.deferred(DeferredQueue::Tier(tier), most).await?;
        let chosen = releaser.fair_queues[at].choose(deferred, most, &limits, &mut loads);
        releaser.filled[at] = chosen.len() >= most;
        release(context, chosen, Release::First).await?;
    }
    Ok(is_any)
}

/// Whether a release is the first of its jobs.
#[derive(Clone, Copy, PartialEq)]
enum Release {
    First,
    /// A router that is gone may have released them before.
    Again,
}

/// Releases jobs, publishes them and notes that. After a crash the next leader publishes the jobs that
/// are not noted; a second message does no harm.
async fn release(
    TaskContext {
        router,
        registry,
        shutdown,
        ..
    }: &TaskContext,
    jobs: Vec<JobId>,
    release: Release,
) -> Result<(), StoreError> {
    for part in jobs.chunks(RELEASE_MAX) {
        let mut again = release == Release::Again;
        let released = loop {
            match router.store.release(part, again).await {
                Ok(released) => break released,
                // The release may have been committed.
                Err(error) if wait_out(&error, "deferred jobs", shutdown).await => again = true,
                Err(error) => return Err(error),
            }
        };
        counter!(RELEASED).increment(released.len() as u64);
        let models = registry.models();
        let (ids, messages): (Vec<JobId>, Vec<Publication>) = released
            .iter()
            .map(|released| match released {
                Released::Router(job) => (job.head.id, Publication::to_router(job)),
                Released::Tier(routed) => (routed.job.head.id, router.to_tier(routed, &models)),
            })
            .unzip();
        let done = publish_all(&router.broker, messages, shutdown).await;
        let published: Vec<JobId> = ids
            .into_iter()
            .zip(done)
            .filter_map(|(id, is_done)| is_done.then_some(id))
            .collect();
        router.store.note_published(&published).await?;
    }
    Ok(())
}
