//! Finds, now and then, what a error left behind, and puts it right.

use std::time::Duration;

use chrono::TimeDelta;
use metrics::counter;

use crate::{
    broker::{Publication, Queue, publisher::publish_all},
    job::{JobId, Tier},
    metrics::{RESCUED, observe_end},
    router::Router,
    shutdown::Shutdown,
    store::{Released, RescueRules, Rescued, StoreError},
};

/// Most jobs put right at once; with so many the next sweep comes at once.
const RESCUED_MAX: usize = 512;
/// Times longer that a job may lie in a queue which is not empty before its message counts as lost:
/// there it may just be its turn that has not come.
const BUSY_FACTOR: i32 = 6;
/// Open jobs that one sweep looks at, of those that may be lost; the next one goes on behind them.
const LOOKED_AT_MAX: usize = 20_000;
/// Sweeps within one lead.
const RESCUES_PER_LEASE: u32 = 3;
/// What a job that nothing has happened to is looked for, as a part of the time that it is given.
const LOOKS_PER_LOSS: u64 = 20;
/// Shortest and longest time between sweeps.
const INTERVAL_MIN: Duration = Duration::from_millis(500);
const INTERVAL_MAX: Duration = Duration::from_secs(30);

/// Sweeps until asked to stop.
pub(in crate::router) async fn run(router: Router, shutdown: Shutdown) {
    let stuck_after = Duration::from_secs(router.config.stuck_after_s);
    let interval = (stuck_after / LOOKS_PER_LOSS as u32).clamp(INTERVAL_MIN, INTERVAL_MAX);
    for what in ["stuck", "expired", "attempt"] {
        counter!(RESCUED, "what" => what).increment(0);
    }
    let (mut wait, mut from) = (interval, None);
    loop {
        tokio::select! {
            () = shutdown.requested() => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = interval;
        match rescue(&router, interval, &mut from, &shutdown).await {
            Ok(true) => wait = Duration::ZERO,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "cannot rescue stuck jobs; retrying"),
        }
    }
}

/// Sweeps once, from a job on; true when there may be more.
async fn rescue(
    router: &Router,
    interval: Duration,
    from: &mut Option<JobId>,
    shutdown: &Shutdown,
) -> Result<bool, StoreError> {
    let lead = interval * RESCUES_PER_LEASE;
    if !router
        .store
        .acquire_leadership("rescuer", &router.name, lead)
        .await?
    {
        return Ok(false);
    }
    let Ok(depths) = router.broker.depths().await else {
        // Nothing could be published.
        return Ok(false);
    };
    let is_empty = |is_meant: &dyn Fn(Queue) -> bool| {
        let mut meant = depths.iter().filter(|depth| is_meant(depth.queue));
        meant.all(|depth| depth.ready == 0)
    };
    let stuck_after = TimeDelta::seconds(
        i64::try_from(router.config.stuck_after_s).unwrap_or(i64::from(u32::MAX)),
    );
    let rescued = router
        .store
        .rescue(RescueRules {
            stuck_after,
            stuck_after_busy: stuck_after * BUSY_FACTOR,
            is_empty: [
                is_empty(&|queue| queue == Queue::In),
                is_empty(&|queue| queue.tier() == Some(Tier::Small)),
                is_empty(&|queue| queue.tier() == Some(Tier::Large)),
            ],
            limit: RESCUED_MAX,
            from: *from,
            looked_at_max: LOOKED_AT_MAX,
        })
        .await?;
    let is_full = rescued.stuck.len() >= RESCUED_MAX || rescued.expired.len() >= RESCUED_MAX;
    if rescued.stuck.len() < RESCUED_MAX {
        *from = rescued.next;
    }
    follow_up(router, &rescued, shutdown).await;
    Ok(is_full)
}

async fn follow_up(router: &Router, rescued: &Rescued, shutdown: &Shutdown) {
    for (what, count) in [
        ("stuck", rescued.stuck.len() as u64),
        ("expired", rescued.expired.len() as u64),
        ("attempt", rescued.attempts),
    ] {
        counter!(RESCUED, "what" => what).increment(count);
    }
    if !rescued.stuck.is_empty() {
        tracing::warn!(
            jobs = rescued.stuck.len(),
            "jobs whose message seems stuck are published again"
        );
    }
    for record in &rescued.expired {
        observe_end(record);
    }
    let stuck = rescued.stuck.iter().map(|stuck| match stuck {
        Released::Router(job) => Publication::to_router(job),
        Released::Tier(routed) => Publication::to_tier(routed),
    });
    let replies = rescued.expired.iter().filter_map(Publication::reply);
    publish_all(&router.broker, stuck.chain(replies).collect(), shutdown).await;
}
