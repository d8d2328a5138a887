//! Rechecks: jobs that were given a near question's answer run again in the background, to measure how
//! often such an answer is wrong.
//!
//! A hit is drawn with its routing decision. While its tier is idle a copy of the job runs (`copies`),
//! and the answers are compared. If they disagree, the cache entry requires a higher similarity from
//! then on, so that no question as distant gets its answer again.

use std::{sync::Arc, time::Duration};

use metrics::counter;

use crate::{
    cache::semantic::are_equivalent,
    job::Tier,
    metrics::SEMANTIC_RECHECKS,
    router::{
        role::{Router, TaskContext},
        semantic_reuse::Reuse,
    },
    store::{Recheck, RecheckOutcome, StoreError},
};

use super::{
    copies::{self, STUCK_AFTER},
    observer,
};

/// Distinguishes the ids of these copies from others'.
const PURPOSE: &str = "recheck";
/// Time between scans for hits to run again and for copies that have ended.
const INTERVAL: Duration = Duration::from_secs(1);
/// Most rechecks compared at a time.
const COMPARED_MAX: usize = 64;
/// Similarity, beyond that of a wrong hit, that its entry requires.
const MARGIN: f32 = 0.01;

/// Runs hits again and compares the answers.
pub(in crate::router) async fn run(context: TaskContext, reuse: Arc<Reuse>) {
    while context.shutdown.sleep(INTERVAL).await {
        if let Err(error) = compare_ended(&context.router, &reuse).await {
            tracing::warn!(%error, "cannot compare reused answers; trying again");
        }
        if let Err(error) = copy_hits(&context).await {
            tracing::warn!(%error, "cannot look for reused answers to check; trying again");
        }
    }
}

async fn copy_hits(context: &TaskContext) -> Result<(), StoreError> {
    let store = &context.router.store;
    let open = store.open_rechecks().await?;
    let Ok(loads) = observer::tier_loads(context, &[]).await else {
        // The main loop reports broker errors.
        return Ok(());
    };
    let [small, large] = loads.map(|load| copies::allowed(load, open));
    if small.max(large) == 0 {
        return Ok(());
    }
    let due = store.due_rechecks(small.max(large), STUCK_AFTER).await?;
    let copies = due
        .into_iter()
        .filter(|(_, tier)| match tier {
            Tier::Small => small > 0,
            Tier::Large => large > 0,
        })
        .map(|(job, tier)| copies::copy_of(job, tier, PURPOSE, &context.policy))
        .collect();
    copies::make(context, copies).await?;
    Ok(())
}

async fn compare_ended(router: &Router, reuse: &Arc<Reuse>) -> Result<(), StoreError> {
    let ended = router.store.ended_rechecks(COMPARED_MAX).await?;
    if ended.is_empty() {
        return Ok(());
    }
    let reuse = reuse.clone();
    let compared = tokio::task::spawn_blocking(move || {
        let compare = |recheck: &Recheck| compare(recheck, &reuse);
        ended.iter().map(compare).collect::<Vec<_>>()
    });
    let Ok(outcomes) = compared.await else {
        tracing::error!("comparing answers crashed; they will be compared again");
        return Ok(());
    };
    let settled = router.store.settle_rechecks(&outcomes).await?;
    for outcome in outcomes.iter().filter(|one| settled.contains(&one.job)) {
        let label = match outcome.agrees {
            Some(true) => "agrees",
            Some(false) => "differs",
            None => "unanswered",
        };
        counter!(SEMANTIC_RECHECKS, "outcome" => label).increment(1);
        if outcome.agrees == Some(false) {
            tracing::warn!(
                job = %outcome.job, entry = %outcome.entry,
                "a reused answer differs from the job's own; its cache entry requires a higher similarity now"
            );
        }
    }
    Ok(())
}

/// Compares the answer that a job was given with its own; by their words alone where the encoder
/// fails.
fn compare(recheck: &Recheck, reuse: &Reuse) -> RecheckOutcome {
    let agrees = recheck.own.as_deref().map(|own| {
        let vectors = reuse.encoder.encode(&[&recheck.given, own]).ok();
        let cosine = vectors
            .filter(|vectors| vectors.len() == 2)
            .map(|vectors| vectors[0].iter().zip(&vectors[1]).map(|(a, b)| a * b).sum());
        are_equivalent(&recheck.given, own, cosine)
    });
    RecheckOutcome {
        job: recheck.job,
        entry: recheck.entry,
        agrees,
        // Above 1 no question is near enough.
        cosine_min: (agrees == Some(false)).then_some(recheck.cosine + MARGIN),
    }
}
