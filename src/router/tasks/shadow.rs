//! Copies for learning: jobs that small has answered, run on large as well while it is idle.
//!
//! A job is drawn with its decision, and nothing more happens until it has its answer. Then its copy
//! is made (`copies`).

use std::{sync::Arc, time::Duration};

use metrics::counter;

use crate::{
    job::Tier,
    metrics::SHADOWS,
    router::{Router, model_registry::ModelRegistry, policy::Policy},
    shutdown::Shutdown,
    store::StoreError,
};

use super::{
    copies::{self, LOST_AFTER},
    observer,
};

/// What tells these copies' ids from others'.
const PURPOSE: &str = "shadow";
/// How often drawn jobs are looked for.
const INTERVAL: Duration = Duration::from_secs(1);

/// Makes copies until asked to stop.
pub(in crate::router) async fn run(
    router: Router,
    (policy, directory): (Arc<Policy>, ModelRegistry),
    shutdown: Shutdown,
) {
    loop {
        tokio::select! {
            () = shutdown.requested() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        if let Err(error) = look(&router, &policy, &directory, &shutdown).await {
            tracing::warn!(%error, "cannot look for jobs to copy");
        }
    }
}

async fn look(
    router: &Router,
    policy: &Policy,
    directory: &ModelRegistry,
    shutdown: &Shutdown,
) -> Result<(), StoreError> {
    let open = router.store.close_shadows().await?;
    let Ok([_, large]) = observer::tier_loads(router, directory, &[]).await else {
        // Whoever uses the broker in earnest tells what is wrong with it.
        return Ok(());
    };
    let room = copies::room(large, open);
    if room == 0 {
        return Ok(());
    }
    let due = router.store.due_shadows(room, LOST_AFTER).await?;
    let copy = |job| copies::copy_of(job, Tier::Large, PURPOSE, policy);
    let copies = due.into_iter().map(copy).collect();
    let made = copies::make(router, copies, shutdown).await?;
    counter!(SHADOWS).increment(made);
    Ok(())
}
