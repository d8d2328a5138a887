//! The rescuer: finds stuck jobs, whose message or worker was lost, and publishes them again.

use std::time::Duration;

use chrono::TimeDelta;
use metrics::counter;

use crate::{
    broker::{Publication, Queue, publisher::publish_all},
    job::{JobId, Tier},
    metrics::{RESCUED, observe_end},
    router::role::TaskContext,
    store::{Released, RescueRules, Rescued, StoreError},
};

/// Most jobs rescued by one scan; if it finds so many, the next follows at once.
const RESCUED_MAX: usize = 512;
/// Times longer that a job may be in a queue which is not empty before it counts as stuck: it may just
/// not have reached the front.
const BUSY_FACTOR: i32 = 6;
/// Most open jobs that one scan reads; the next continues after them.
const SCANNED_MAX: usize = 20_000;
/// Scans within one lease of the leadership.
const SCANS_PER_LEASE: u32 = 3;
/// Scans within `router.stuck_after_s`.
const SCANS_PER_STUCK_AFTER: u32 = 20;
/// Shortest and longest time between scans.
const INTERVAL_MIN: Duration = Duration::from_millis(500);
const INTERVAL_MAX: Duration = Duration::from_secs(30);

/// Rescues stuck jobs.
pub(in crate::router) async fn run(context: TaskContext) {
    let stuck_after = Duration::from_secs(context.router.config.stuck_after_s);
    let interval = (stuck_after / SCANS_PER_STUCK_AFTER).clamp(INTERVAL_MIN, INTERVAL_MAX);
    for what in ["stuck", "expired", "attempt"] {
        counter!(RESCUED, "what" => what).increment(0);
    }
    let (mut wait, mut from) = (interval, None);
    while context.shutdown.sleep(wait).await {
        wait = interval;
        match scan(&context, interval, &mut from).await {
            Ok(true) => wait = Duration::ZERO,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "cannot rescue stuck jobs; trying again"),
        }
    }
}

/// Scans once, from a job on; true when there may be more to rescue.
async fn scan(
    context: &TaskContext,
    interval: Duration,
    from: &mut Option<JobId>,
) -> Result<bool, StoreError> {
    let router = &context.router;
    let lease = interval * SCANS_PER_LEASE;
    if !router
        .store
        .acquire_leadership("rescuer", &router.name, lease)
        .await?
    {
        return Ok(false);
    }
    let Ok(depths) = router.broker.depths().await else {
        // Without the broker nothing could be published.
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
            looked_at_max: SCANNED_MAX,
        })
        .await?;
    let is_full = rescued.stuck.len() >= RESCUED_MAX || rescued.expired.len() >= RESCUED_MAX;
    if rescued.stuck.len() < RESCUED_MAX {
        *from = rescued.next;
    }
    publish(context, &rescued).await;
    Ok(is_full)
}

async fn publish(context: &TaskContext, rescued: &Rescued) {
    for (what, count) in [
        ("stuck", rescued.stuck.len() as u64),
        ("expired", rescued.expired.len() as u64),
        ("attempt", rescued.attempts),
    ] {
        counter!(RESCUED, "what" => what).increment(count);
    }
    if !rescued.stuck.is_empty() {
        tracing::warn!(jobs = rescued.stuck.len(), "stuck jobs are published again");
    }
    for record in &rescued.expired {
        observe_end(record);
    }
    let stuck = rescued.stuck.iter().map(|stuck| match stuck {
        Released::Router(job) => Publication::to_router(job),
        Released::Tier(routed) => Publication::to_tier(routed),
    });
    let replies = rescued.expired.iter().filter_map(Publication::reply);
    let messages = stuck.chain(replies).collect();
    publish_all(&context.router.broker, messages, &context.shutdown).await;
}
