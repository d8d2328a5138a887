//! Finds, now and then, what a fault left behind, and puts it right.

use std::time::Duration;

use chrono::TimeDelta;
use metrics::counter;

use crate::{
    broker::{Publication, Queue, publisher::publish_all},
    job::{JobId, Tier},
    metrics::{SWEPT, observe_end},
    router::Router,
    shutdown::Shutdown,
    store::{Released, StoreFault, SweepRules, Swept},
};

/// Most jobs put right at once; with so many the next sweep comes at once.
const SWEPT_MAX: usize = 512;
/// Times longer that a job may lie in a queue which is not empty before its message counts as lost:
/// there it may just be its turn that has not come.
const BUSY_FACTOR: i32 = 6;
/// Open jobs that one sweep looks at, of those that may be lost; the next one goes on behind them.
const LOOKED_AT_MAX: usize = 20_000;
/// Sweeps within one lead.
const SWEEPS_PER_LEAD: u32 = 3;
/// What a job that nothing has happened to is looked for, as a part of the time that it is given.
const LOOKS_PER_LOSS: u64 = 20;
/// Shortest and longest time between sweeps.
const INTERVAL_MIN: Duration = Duration::from_millis(500);
const INTERVAL_MAX: Duration = Duration::from_secs(30);

/// Sweeps until asked to stop.
pub(in crate::router) async fn run(router: Router, shutdown: Shutdown) {
    let lost_after = Duration::from_secs(router.config.lost_after_s);
    let interval = (lost_after / LOOKS_PER_LOSS as u32).clamp(INTERVAL_MIN, INTERVAL_MAX);
    for what in ["lost", "expired", "attempt"] {
        counter!(SWEPT, "what" => what).increment(0);
    }
    let (mut wait, mut from) = (interval, None);
    loop {
        tokio::select! {
            () = shutdown.requested() => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = interval;
        match sweep(&router, interval, &mut from, &shutdown).await {
            Ok(true) => wait = Duration::ZERO,
            Ok(false) => {}
            Err(fault) => tracing::warn!(%fault, "cannot sweep"),
        }
    }
}

/// Sweeps once, from a job on; true when there may be more.
async fn sweep(
    router: &Router,
    interval: Duration,
    from: &mut Option<JobId>,
    shutdown: &Shutdown,
) -> Result<bool, StoreFault> {
    let lead = interval * SWEEPS_PER_LEAD;
    if !router.store.lead("sweep", &router.name, lead).await? {
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
    let lost_after = TimeDelta::seconds(
        i64::try_from(router.config.lost_after_s).unwrap_or(i64::from(u32::MAX)),
    );
    let swept = router
        .store
        .sweep(SweepRules {
            lost_after,
            lost_after_busy: lost_after * BUSY_FACTOR,
            is_empty: [
                is_empty(&|queue| queue == Queue::In),
                is_empty(&|queue| queue.tier() == Some(Tier::Small)),
                is_empty(&|queue| queue.tier() == Some(Tier::Large)),
            ],
            limit: SWEPT_MAX,
            from: *from,
            looked_at_max: LOOKED_AT_MAX,
        })
        .await?;
    let is_full = swept.lost.len() >= SWEPT_MAX || swept.expired.len() >= SWEPT_MAX;
    if swept.lost.len() < SWEPT_MAX {
        *from = swept.next;
    }
    follow_up(router, &swept, shutdown).await;
    Ok(is_full)
}

async fn follow_up(router: &Router, swept: &Swept, shutdown: &Shutdown) {
    for (what, count) in [
        ("lost", swept.lost.len() as u64),
        ("expired", swept.expired.len() as u64),
        ("attempt", swept.attempts),
    ] {
        counter!(SWEPT, "what" => what).increment(count);
    }
    if !swept.lost.is_empty() {
        tracing::warn!(
            jobs = swept.lost.len(),
            "jobs whose message seems lost are published again"
        );
    }
    for record in &swept.expired {
        observe_end(record);
    }
    let lost = swept.lost.iter().map(|lost| match lost {
        Released::Router(job) => Publication::to_router(job),
        Released::Tier(routed) => Publication::to_tier(routed),
    });
    let replies = swept.expired.iter().filter_map(Publication::reply);
    publish_all(&router.broker, lost.chain(replies).collect(), shutdown).await;
}
