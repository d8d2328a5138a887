//! Looks at queues and held jobs several times a second, and releases what may go.

use std::{collections::HashMap, time::Duration};

use chrono::{TimeDelta, Utc};
use metrics::{counter, gauge};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::{
    broker::{Publication, publisher::publish_all},
    job::{JobId, Tenant, Tier},
    metrics::{DEFERRED_JOBS, RELEASED},
    router::{Router, model_registry::ModelRegistry},
    shutdown::Shutdown,
    store::{DeferredQueue, Released, StoreError, TenantLimits},
};

use super::{
    admission::QueueSnapshot,
    fair_queue::{Load, Turns},
};

/// How often to look while jobs are held, and while none is.
const LOOK_BUSY: Duration = Duration::from_millis(200);
const LOOK_IDLE: Duration = Duration::from_millis(500);
/// How soon to look once a job is held after none was: its transaction is over by then.
const LOOK_SOON: Duration = Duration::from_millis(30);
/// How often what counts against tenants' limits is counted, and what does no more is removed, where nobody
/// has a limit: with one it is at every look.
const LOADS_INTERVAL: Duration = Duration::from_secs(5);
/// How long a router keeps the lead without a word; what it released longer ago and is not known to have
/// published, it left behind.
const LEAD: Duration = Duration::from_secs(10);
/// How often to look for that.
const UNPUBLISHED_INTERVAL: Duration = Duration::from_secs(5);
/// How often held jobs are counted as far as they may be: where that is far, it takes a while.
const COUNT_INTERVAL: Duration = Duration::from_secs(2);
const COUNT_INTERVAL_LONG: Duration = Duration::from_secs(20);
/// What is far.
const COUNT_LONG: u32 = 100_000;
/// After how long it is asked for again.
const LEAD_KEPT: Duration = Duration::from_secs(3);
/// Held jobs are counted up to here at each look: counting ten times as many was the dearest statement of all.
const COUNTED_MAX: u32 = 1_000;
/// Jobs released in one transaction.
const RELEASE_MAX: usize = 512;
/// Jobs released to a tier at one look, and those of one tenant that are looked at for it. With more, a look
/// takes so long where ledger and broker are slow that the queues run dry meanwhile, and nobody who comes
/// gets a turn.
const LOOKED_AT_MAX: usize = 1024;
/// Jobs of one tenant whose time has come that go to the router at one look.
const DUE_MAX: usize = 512;

/// How long to wait before a ledger that failed is asked again.
const STORE_RETRY_WAIT: Duration = Duration::from_millis(500);

/// How long a submission that was taken back is remembered by routers: longer than anything of it lies in
/// their queue.
const CANCELLED_FOR: TimeDelta = TimeDelta::days(1);

/// What a router keeps from one look to the next.
#[derive(Default)]
struct Round {
    /// Small's turns and large's.
    turns: [Turns; 2],
    /// Whether the last release left no room in the queue of each.
    filled: [bool; 2],
    /// When it took or kept the lead last.
    led_at: Option<Instant>,
    /// When it looked for jobs last that were released and perhaps not published.
    unpublished_at: Option<Instant>,
    /// When what counts against limits was counted last.
    loads_at: Option<Instant>,
}

impl Round {
    /// True while this router leads; the ledger is asked only when part of the lease is over.
    async fn leads(&mut self, router: &Router) -> Result<bool, StoreError> {
        if self.led_at.is_some_and(|at| at.elapsed() < LEAD_KEPT) {
            return Ok(true);
        }
        let now = Instant::now();
        let leads = router
            .store
            .acquire_leadership("release", &router.name, LEAD)
            .await?;
        self.led_at = leads.then_some(now);
        Ok(leads)
    }
}

/// Looks for the first time, before anything is routed: what was taken back is to be known by then.
pub(in crate::router) async fn begin(
    router: &Router,
    directory: &ModelRegistry,
    shutdown: &Shutdown,
) {
    let mut round = Round::default();
    if let Err(error) = look(router, directory, &mut round, shutdown).await {
        tracing::warn!(%error, "cannot look at held jobs yet");
    }
}

/// Looks and releases until asked to stop.
pub(in crate::router) async fn run(router: Router, directory: ModelRegistry, shutdown: Shutdown) {
    let mut round = Round::default();
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
                count(&router).await;
                continue;
            }
            // The first job of a flood need not wait for the next look.
            () = router.holding.any_held(), if !was_busy => sleep(LOOK_SOON).await,
        }
        let begun = Instant::now();
        let look = look(&router, &directory, &mut round, &shutdown).await;
        let is_busy = look.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot look at held jobs; they wait");
            false
        });
        was_busy = is_busy;
        let interval = if is_busy { LOOK_BUSY } else { LOOK_IDLE };
        wait = interval.saturating_sub(begun.elapsed());
    }
}

/// Counts what is held, far beyond what a look does, and stops the intake where that is too much.
async fn count(router: &Router) {
    let most = router.config.deferred_max;
    let held = match router.store.deferred_counts(most).await {
        Ok(counts) => counts.iter().map(|count| u64::from(*count)).sum::<u64>(),
        Err(error) => {
            tracing::warn!(%error, "held jobs cannot be counted");
            return;
        }
    };
    let is_full = held >= u64::from(most);
    if router.holding.set_full(is_full) {
        tracing::warn!(
            held,
            most,
            is_full,
            "jobs are held as far as they may be: no more are taken in while is_full"
        );
    }
}

/// Looks once; true when anything is held.
async fn look(
    router: &Router,
    directory: &ModelRegistry,
    round: &mut Round,
    shutdown: &Shutdown,
) -> Result<bool, StoreError> {
    let store = &router.store;
    let counts = store.deferred_counts(COUNTED_MAX).await?;
    for (queue, count) in DeferredQueue::ALL.into_iter().zip(counts) {
        gauge!(DEFERRED_JOBS, "queue" => queue.as_str()).set(f64::from(count));
    }
    let is_deferred = counts[1..].iter().any(|count| *count > 0);
    let tenants = if is_deferred {
        store.deferred_tenants().await?
    } else {
        Vec::new()
    };
    let terms = store.tenants().await?;
    let cancelled = store.cancelled_batches(Utc::now() - CANCELLED_FOR).await?;
    let Ok(depths) = router.broker.depths().await else {
        // Whoever uses the broker in earnest tells what is wrong with it.
        return Ok(is_deferred);
    };
    let ready = Tier::ALL.map(|tier| {
        let queues = depths
            .iter()
            .filter(|depth| depth.queue.tier() == Some(tier));
        queues.map(|depth| depth.ready).sum::<u64>()
    });
    let rooms = router.holding.observe(QueueSnapshot {
        ready,
        held: [counts[1], counts[2]],
        filled: std::mem::take(&mut round.filled),
        tenants,
        terms,
        cancelled,
    });
    let is_any = counts.iter().any(|count| *count > 0);
    let terms = router.holding.terms();
    let is_counted = is_deferred && terms.values().any(TenantLimits::is_limited);
    let is_time = |at: Instant| at.elapsed() >= LOADS_INTERVAL;
    let wants_loads = is_counted || round.loads_at.is_none_or(is_time);
    if wants_loads {
        round.loads_at = Some(Instant::now());
    }
    if !(is_any || wants_loads) || !round.leads(router).await? {
        return Ok(is_any);
    }
    let mut loads: HashMap<Tenant, Load> = HashMap::new();
    if wants_loads {
        let counted = store.tenant_loads().await?;
        loads.extend(
            counted
                .iter()
                .map(|load| (load.tenant.clone(), load.into())),
        );
    }
    let is_time = |at: Instant| at.elapsed() >= UNPUBLISHED_INTERVAL;
    if round.unpublished_at.is_none_or(is_time) {
        round.unpublished_at = Some(Instant::now());
        let jobs = store.unpublished(LEAD, RELEASE_MAX).await?;
        if !jobs.is_empty() {
            tracing::warn!(
                jobs = jobs.len(),
                "released, and perhaps never published: published again"
            );
        }
        release(router, directory, jobs, Asked::Again, shutdown).await?;
    }
    if counts[0] > 0 {
        let due = store.deferred(DeferredQueue::In, DUE_MAX).await?;
        let due = due.into_iter().map(|held| held.job).collect();
        release(router, directory, due, Asked::First, shutdown).await?;
    }
    if !is_deferred {
        return Ok(is_any);
    }
    let queues = Tier::ALL.into_iter().zip(rooms);
    for ((tier, room), turns) in queues.zip(&mut round.turns) {
        let room = usize::try_from(room)
            .unwrap_or(usize::MAX)
            .min(LOOKED_AT_MAX);
        if room == 0 {
            continue;
        }
        let held = store.deferred(DeferredQueue::Tier(tier), room).await?;
        let chosen = turns.choose(held, room, &terms, &mut loads);
        round.filled[usize::from(tier == Tier::Large)] = chosen.len() >= room;
        release(router, directory, chosen, Asked::First, shutdown).await?;
    }
    Ok(is_any)
}

/// Whether a release is the first of its jobs.
#[derive(Clone, Copy, PartialEq)]
enum Asked {
    First,
    /// A router that is gone released them before.
    Again,
}

/// Releases jobs, publishes them and notes that. A ledger that is away is asked again, since it may have
/// released them before its word was lost. Whoever leads next finds what a crash left unpublished, and
/// publishes again what it left published without the note: the second message does no harm.
async fn release(
    router: &Router,
    directory: &ModelRegistry,
    jobs: Vec<JobId>,
    asked: Asked,
    shutdown: &Shutdown,
) -> Result<(), StoreError> {
    for part in jobs.chunks(RELEASE_MAX) {
        let mut again = asked == Asked::Again;
        let released = loop {
            match router.store.release(part, again).await {
                Ok(released) => break released,
                Err(error) if error.is_transient() => {
                    tracing::warn!(%error, jobs = part.len(), "held jobs wait for the ledger");
                    again = true;
                    tokio::select! {
                        () = shutdown.requested() => return Err(error),
                        () = sleep(STORE_RETRY_WAIT) => {}
                    }
                }
                Err(error) => return Err(error),
            }
        };
        counter!(RELEASED).increment(released.len() as u64);
        let models = directory.models();
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
