//! Semantic hits, run again in the background: how often a reused answer is a wrong one.
//!
//! A hit is drawn with its decision. Once its tier is idle a copy of the job runs (`copies`), and the
//! answers are compared. Where they say different things the entry asks for more likeness from
//! then on, so that no question as far away is given its answer again.

use std::{sync::Arc, time::Duration};

use metrics::counter;

use crate::{
    cache::semantic::says_same,
    job::Tier,
    metrics::SEMANTIC_RECHECKS,
    router::{Router, model_registry::ModelRegistry, policy::Policy, semantic_reuse::Reuse},
    shutdown::Shutdown,
    store::{Recheck, RecheckOutcome, StoreError},
};

use super::{
    copies::{self, LOST_AFTER},
    observer,
};

/// What tells these copies' ids from others'.
const PURPOSE: &str = "recheck";
/// How often hits to run again, and copies that have ended, are looked for.
const INTERVAL: Duration = Duration::from_secs(1);
/// Most rechecks judged at a time.
const JUDGED_MAX: usize = 64;
/// How much more likeness than that of a wrong hit an entry asks for.
const MARGIN: f32 = 0.01;

/// Runs hits again and judges them, until asked to stop.
pub(in crate::router) async fn run(
    router: Router,
    reuse: Arc<Reuse>,
    (policy, directory): (Arc<Policy>, ModelRegistry),
    shutdown: Shutdown,
) {
    loop {
        tokio::select! {
            () = shutdown.requested() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        if let Err(error) = judge(&router, &reuse).await {
            tracing::warn!(%error, "cannot judge reused answers");
        }
        if let Err(error) = make(&router, &policy, &directory, &shutdown).await {
            tracing::warn!(%error, "cannot look for reused answers to check");
        }
    }
}

async fn make(
    router: &Router,
    policy: &Policy,
    directory: &ModelRegistry,
    shutdown: &Shutdown,
) -> Result<(), StoreError> {
    let open = router.store.open_rechecks().await?;
    let Ok(loads) = observer::tier_loads(router, directory, &[]).await else {
        // Whoever uses the broker in earnest tells what is wrong with it.
        return Ok(());
    };
    let [small, large] = loads.map(|load| copies::room(load, open));
    if small.max(large) == 0 {
        return Ok(());
    }
    let due = router
        .store
        .due_rechecks(small.max(large), LOST_AFTER)
        .await?;
    let copies = due
        .into_iter()
        .filter(|(_, tier)| match tier {
            Tier::Small => small > 0,
            Tier::Large => large > 0,
        })
        .map(|(job, tier)| copies::copy_of(job, tier, PURPOSE, policy))
        .collect();
    copies::make(router, copies, shutdown).await?;
    Ok(())
}

async fn judge(router: &Router, reuse: &Arc<Reuse>) -> Result<(), StoreError> {
    let ended = router.store.ended_rechecks(JUDGED_MAX).await?;
    if ended.is_empty() {
        return Ok(());
    }
    let reuse = reuse.clone();
    let compared = tokio::task::spawn_blocking(move || {
        let judgement = |recheck: &Recheck| judgement(recheck, &reuse);
        ended.iter().map(judgement).collect::<Vec<_>>()
    });
    let Ok(judgements) = compared.await else {
        tracing::error!("comparing answers crashed; they are compared again");
        return Ok(());
    };
    let judged = router.store.settle_rechecks(&judgements).await?;
    for judgement in judgements.iter().filter(|j| judged.contains(&j.job)) {
        let outcome = match judgement.agrees {
            Some(true) => "agrees",
            Some(false) => "differs",
            None => "unanswered",
        };
        counter!(SEMANTIC_RECHECKS, "outcome" => outcome).increment(1);
        if judgement.agrees == Some(false) {
            tracing::warn!(
                job = %judgement.job, entry = %judgement.entry,
                "a reused answer differs from the job's own; its entry asks for more likeness now"
            );
        }
    }
    Ok(())
}

/// Compares what a job was given with its own answer. Where the encoder fails only the words count.
fn judgement(recheck: &Recheck, reuse: &Reuse) -> RecheckOutcome {
    let agrees = recheck.own.as_deref().map(|own| {
        let vectors = reuse.encoder.encode(&[&recheck.given, own]).ok();
        let cosine = vectors
            .filter(|vectors| vectors.len() == 2)
            .map(|vectors| vectors[0].iter().zip(&vectors[1]).map(|(a, b)| a * b).sum());
        says_same(&recheck.given, own, cosine)
    });
    RecheckOutcome {
        job: recheck.job,
        entry: recheck.entry,
        agrees,
        // Above 1 no other question comes near enough any more.
        cosine_min: (agrees == Some(false)).then_some(recheck.cosine + MARGIN),
    }
}
