//! Single-flight takeover: when the run of a job that others wait for is lost or fails, one of the
//! waiting jobs becomes the new leader.

use std::time::Duration;

use crate::{
    broker::{Publication, publisher::publish_all},
    router::role::TaskContext,
};

/// Time between scans for lost leaders.
const INTERVAL: Duration = Duration::from_secs(1);
/// Time to the next scan after some were found: the cause of one leader's end often ends the next of
/// its key, and they take over one by one.
const INTERVAL_BUSY: Duration = Duration::from_millis(50);
/// Most jobs that take over in one scan.
const TAKEOVERS_MAX: usize = 256;

/// Promotes waiting jobs. A new leader can be promoted again until a worker claims it, so one whose
/// message was never published is found by a later scan.
pub(in crate::router) async fn run(
    TaskContext {
        router, shutdown, ..
    }: TaskContext,
) {
    let lease = Duration::from_secs(router.cache.lease_s);
    let mut interval = INTERVAL;
    while shutdown.sleep(interval).await {
        interval = INTERVAL;
        match router.store.take_over_flights(TAKEOVERS_MAX, lease).await {
            Ok(jobs) if jobs.is_empty() => {}
            Ok(jobs) => {
                tracing::info!(
                    jobs = jobs.len(),
                    "jobs take over from identical ones whose run was lost"
                );
                let messages = jobs.iter().map(Publication::to_tier).collect();
                publish_all(&router.broker, messages, &shutdown).await;
                interval = INTERVAL_BUSY;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot look for jobs whose leader was lost; trying again");
            }
        }
    }
}
