//! Revives jobs that wait for an identical one whose run was lost or failed.

use std::time::Duration;

use crate::{
    broker::{Publication, publisher::publish_all},
    router::Router,
    shutdown::Shutdown,
};

/// How often lost leaders are looked for.
const INTERVAL: Duration = Duration::from_secs(1);
/// How soon again after some were found: what ended one leader often ends the next of its key, and
/// they take over one by one.
const INTERVAL_BUSY: Duration = Duration::from_millis(50);
/// Most jobs promoted at a time.
const PROMOTED_MAX: usize = 256;

/// Promotes waiting jobs at intervals until asked to stop. A promoted job stays promotable until
/// a worker claims it, so one whose message was never published comes up again.
pub(in crate::router) async fn run(router: Router, shutdown: Shutdown) {
    let lease = Duration::from_secs(router.cache.lease_s);
    let mut interval = INTERVAL;
    loop {
        tokio::select! {
            () = shutdown.requested() => return,
            () = tokio::time::sleep(interval) => {}
        }
        interval = INTERVAL;
        match router.store.take_over_flights(PROMOTED_MAX, lease).await {
            Ok(jobs) if jobs.is_empty() => {}
            Ok(jobs) => {
                tracing::info!(
                    jobs = jobs.len(),
                    "jobs take over from identical ones that were lost"
                );
                let messages = jobs.iter().map(Publication::to_tier).collect();
                publish_all(&router.broker, messages, &shutdown).await;
                interval = INTERVAL_BUSY;
            }
            Err(error) => tracing::warn!(%error, "cannot look for jobs whose leader was lost"),
        }
    }
}
