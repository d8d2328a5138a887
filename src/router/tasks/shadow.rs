//! Shadow copies: jobs that small has answered run on large as well, while large is idle.
//!
//! A job is drawn with its routing decision; its copy is made (`copies`) once it has its answer.

use std::time::Duration;

use metrics::counter;

use crate::{job::Tier, metrics::SHADOWS, router::role::TaskContext, store::StoreError};

use super::{
    copies::{self, STUCK_AFTER},
    observer,
};

/// Distinguishes the ids of these copies from others'.
const PURPOSE: &str = "shadow";
/// Time between scans for drawn jobs.
const INTERVAL: Duration = Duration::from_secs(1);

/// Makes copies.
pub(in crate::router) async fn run(context: TaskContext) {
    while context.shutdown.sleep(INTERVAL).await {
        if let Err(error) = copy_drawn(&context).await {
            tracing::warn!(%error, "cannot look for jobs to copy; trying again");
        }
    }
}

async fn copy_drawn(context: &TaskContext) -> Result<(), StoreError> {
    let store = &context.router.store;
    let open = store.close_shadows().await?;
    let Ok([_, large]) = observer::tier_loads(context, &[]).await else {
        // The main loop reports broker errors.
        return Ok(());
    };
    let allowed = copies::allowed(large, open);
    if allowed == 0 {
        return Ok(());
    }
    let due = store.due_shadows(allowed, STUCK_AFTER).await?;
    let copy = |job| copies::copy_of(job, Tier::Large, PURPOSE, &context.policy);
    let made = copies::make(context, due.into_iter().map(copy).collect()).await?;
    counter!(SHADOWS).increment(made);
    Ok(())
}
