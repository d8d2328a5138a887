//! Tells the policy what it decides by: load every second, targets every two, outcomes every minute.

use std::{sync::Arc, time::Duration};

use chrono::{TimeDelta, Utc};
use metrics::{counter, gauge};
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    broker::BrokerError,
    job::Tier,
    metrics::{ROUTER_SHIFT, SHADOWS},
    router::{
        Router, learning,
        model_registry::ModelRegistry,
        policy::Policy,
        target::{isotonic, load::TierLoad},
    },
    scoring::scorer::Scorer,
    shutdown::Shutdown,
    store::{ScopedTarget, Store, StoreError, TierCost},
};

/// How often the queues are looked at.
const LOAD_INTERVAL: Duration = Duration::from_secs(1);
/// Looks at the queues for one at the costs.
const LOOKS_PER_COST: u32 = 10;
/// Jobs from which costs are measured.
const COST_JOBS: usize = 2048;
/// How often targets are read.
const TARGETS_INTERVAL: Duration = Duration::from_secs(2);
/// How often outcomes and weights are read.
const LEARN_INTERVAL: Duration = Duration::from_secs(60);
/// Decisions of earlier runs that are taken in.
pub const PAST_MAX: usize = 4096;
/// Workers unseen for longer run nothing any more.
const WORKER_AGE: TimeDelta = TimeDelta::seconds(120);

/// What was complained of last, so that each error is reported once.
#[derive(Debug, Default)]
pub(in crate::router) struct Reported {
    /// The version of the stored weights that were refused.
    weights: Option<String>,
    /// Why the targets cannot be read.
    targets: Option<String>,
    /// That nothing is learned for a quality.
    no_copies: bool,
}

/// Takes in what an earlier run has decided and learned. A ledger that cannot tell is no reason not
/// to route: the policy then begins anew.
pub(in crate::router) async fn begin(router: &Router, policy: &Policy) -> Reported {
    let mut reported = Reported::default();
    adopt_weights(router, policy, &mut reported).await;
    let targets = read_targets(router, &mut reported)
        .await
        .unwrap_or_default();
    adopt_targets(router, policy, &targets).await;
    learn(router, policy, &mut reported).await;
    reported
}

/// Observes until asked to stop.
pub(in crate::router) async fn run(
    router: Router,
    (policy, directory): (Arc<Policy>, ModelRegistry),
    mut reported: Reported,
    shutdown: Shutdown,
) {
    let mut loads = interval(LOAD_INTERVAL);
    let mut targets = interval(TARGETS_INTERVAL);
    let mut lessons = interval(LEARN_INTERVAL);
    for regular in [&mut loads, &mut targets, &mut lessons] {
        regular.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    targets.reset();
    lessons.reset();
    gauge!(ROUTER_SHIFT).set(0.0);
    counter!(SHADOWS).increment(0);
    let (mut looks, mut costs) = (0, Vec::new());
    loop {
        tokio::select! {
            () = shutdown.requested() => return,
            _ = lessons.tick() => {
                adopt_weights(&router, &policy, &mut reported).await;
                learn(&router, &policy, &mut reported).await;
            }
            _ = targets.tick() => {
                if let Some(ledger) = read_targets(&router, &mut reported).await
                    && !policy.follows(&ledger)
                {
                    adopt_targets(&router, &policy, &ledger).await;
                    learn(&router, &policy, &mut reported).await;
                }
            }
            _ = loads.tick(), if policy.wants_load() => {
                if looks % LOOKS_PER_COST == 0 || costs.is_empty() {
                    read_costs(&router.store, &mut costs).await;
                }
                looks += 1;
                match tier_loads(&router, &directory, &costs).await {
                    Ok([small, large]) => {
                        gauge!(ROUTER_SHIFT).set(policy.observe_load(small, large));
                    }
                    Err(error) => tracing::warn!(%error, "cannot read the queues' depths; the threshold stays"),
                }
            }
        }
    }
}

/// Reads what jobs cost. The last figure stands of a tier that has none among the latest jobs, as one
/// that is stuck, or slow beside a fast one.
async fn read_costs(store: &Store, costs: &mut Vec<TierCost>) {
    match store.tier_costs(COST_JOBS).await {
        Ok(latest) => {
            costs.retain(|cost| latest.iter().all(|new| new.tier != cost.tier));
            costs.extend(latest);
        }
        Err(error) => {
            tracing::warn!(%error, "cannot read what jobs cost; the last figures stand");
        }
    }
}

/// What waits for each tier, in its queues or held, and what it takes, small first.
pub(in crate::router) async fn tier_loads(
    router: &Router,
    directory: &ModelRegistry,
    costs: &[TierCost],
) -> Result<[TierLoad; 2], BrokerError> {
    let depths = router.broker.depths().await?;
    let models = directory.models();
    let since = Utc::now() - WORKER_AGE;
    Ok(Tier::ALL.map(|tier| {
        let (running, places) = models.places(tier, since);
        let queues = depths.iter().filter(|d| d.queue.tier() == Some(tier));
        let cost = costs.iter().find(|cost| cost.tier == tier);
        TierLoad {
            waiting: queues.map(|depth| depth.ready).sum::<u64>() + router.holding.deferred(tier),
            running,
            places,
            service_s: cost.map(|cost| cost.seconds_mean),
        }
    }))
}

/// Puts the weights that the ledger calls active in use, unless a file was named. Bytes that are no
/// weights of this version are refused with one line, and the present model stays.
async fn adopt_weights(router: &Router, policy: &Policy, reported: &mut Reported) {
    if router.config.weights.is_some() {
        return;
    }
    let stored = match router.store.active_weights().await {
        Ok(Some(stored)) => stored,
        Ok(None) => return,
        Err(error) => {
            tracing::warn!(%error, "cannot look for promoted weights; the present ones stay");
            return;
        }
    };
    if stored.version == policy.scorer().version()
        || reported.weights.as_ref() == Some(&stored.version)
    {
        return;
    }
    match Scorer::from_bytes(&stored.weights) {
        Ok(scorer) if scorer.version() == policy.scorer().version() => {}
        Ok(scorer) => {
            tracing::info!(version = scorer.version(), "promoted weights are in use");
            policy.promote(scorer);
        }
        Err(error) => {
            tracing::error!(version = stored.version, %error, "stored weights are refused; the present ones stay");
            reported.weights = Some(stored.version);
        }
    }
}

/// The targets that the ledger holds; `None` when it cannot tell, and what held before stays.
async fn read_targets(router: &Router, reported: &mut Reported) -> Option<Vec<ScopedTarget>> {
    match router.store.route_targets().await {
        Ok(targets) => {
            reported.targets = None;
            Some(targets)
        }
        Err(error) => {
            let error = error.to_string();
            if reported.targets.as_ref() != Some(&error) {
                tracing::error!(
                    error,
                    "targets of the ledger cannot be read; the present ones stay"
                );
                reported.targets = Some(error);
            }
            None
        }
    }
}

/// Puts the ledger's targets in force. Scopes of which nothing is known begin with decisions of late.
async fn adopt_targets(router: &Router, policy: &Policy, ledger: &[ScopedTarget]) {
    let scorer = policy.scorer();
    let past = router.store.past_decisions(scorer.version(), PAST_MAX);
    let past = past.await.unwrap_or_else(|error| {
        tracing::warn!(%error, "earlier decisions cannot be read; shares begin anew");
        Vec::new()
    });
    for (scope, target) in policy.set_targets(ledger, &past) {
        match target {
            Some(target) => tracing::info!(%scope, %target, "another target is in force"),
            None => tracing::info!(%scope, "has no target of its own any more"),
        }
    }
}

/// Reads outcomes for targets that are qualities.
async fn learn(router: &Router, policy: &Policy, reported: &mut Reported) {
    if !policy.wants_pairs() {
        return;
    }
    if router.config.shadow_share == 0.0 && !reported.no_copies {
        tracing::warn!(
            "a quality is asked for, but router.shadow_share is 0: nothing is learned for it"
        );
        reported.no_copies = true;
    }
    let read: Result<_, StoreError> = router.store.pairs(isotonic::PAIRS_MAX, false).await;
    match read {
        Ok(rows) => policy.observe_pairs(&learning::calibration_pairs(
            rows,
            policy.scorer().version(),
        )),
        Err(error) => tracing::warn!(%error, "cannot read outcomes; thresholds stay"),
    }
}
