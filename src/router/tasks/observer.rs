//! The observer: updates the policy's load every second, its targets every two, and its outcomes and
//! weights every minute.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use metrics::{counter, gauge};
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    broker::BrokerError,
    job::Tier,
    metrics::{ROUTER_SHIFT, SHADOWS},
    router::{
        learning,
        role::TaskContext,
        target::{isotonic, load::TierLoad},
    },
    scoring::scorer::Scorer,
    store::{ScopedTarget, Store, StoreError, TierCost},
};

/// How often the queues' depths are read.
const LOAD_INTERVAL: Duration = Duration::from_secs(1);
/// Reads of the depths for each read of the costs.
const LOADS_PER_COST: u32 = 10;
/// Jobs from which costs are measured.
const COST_JOBS: usize = 2048;
/// How often targets are read.
const TARGETS_INTERVAL: Duration = Duration::from_secs(2);
/// How often outcomes and weights are read.
const LEARN_INTERVAL: Duration = Duration::from_secs(60);
/// Decisions of earlier runs that the policy starts with.
pub const PAST_MAX: usize = 4096;
/// Workers unseen for longer are taken for gone.
const WORKER_AGE: TimeDelta = TimeDelta::seconds(120);

/// The errors reported last, so that each is logged once.
#[derive(Debug, Default)]
pub(in crate::router) struct Reported {
    /// The version of the stored weights that were refused.
    weights: Option<String>,
    /// Why the targets cannot be read.
    targets: Option<String>,
    /// True once it was logged that nothing is learned for a quality.
    no_copies: bool,
}

/// Reads what earlier runs have decided and learned. If the job database cannot be read, the policy
/// starts without it.
pub(in crate::router) async fn begin(context: &TaskContext) -> Reported {
    let mut reported = Reported::default();
    adopt_weights(context, &mut reported).await;
    let targets = read_targets(context, &mut reported)
        .await
        .unwrap_or_default();
    adopt_targets(context, &targets).await;
    learn(context, &mut reported).await;
    reported
}

/// Keeps the policy up to date.
pub(in crate::router) async fn run(context: TaskContext, mut reported: Reported) {
    let policy = &context.policy;
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
    let (mut reads, mut costs) = (0, Vec::new());
    loop {
        tokio::select! {
            () = context.shutdown.requested() => return,
            _ = lessons.tick() => {
                adopt_weights(&context, &mut reported).await;
                learn(&context, &mut reported).await;
            }
            _ = targets.tick() => {
                if let Some(stored) = read_targets(&context, &mut reported).await
                    && !policy.follows(&stored)
                {
                    adopt_targets(&context, &stored).await;
                    learn(&context, &mut reported).await;
                }
            }
            _ = loads.tick(), if policy.wants_load() => {
                if reads % LOADS_PER_COST == 0 || costs.is_empty() {
                    read_costs(&context.router.store, &mut costs).await;
                }
                reads += 1;
                match tier_loads(&context, &costs).await {
                    Ok([small, large]) => {
                        gauge!(ROUTER_SHIFT).set(policy.observe_load(small, large));
                    }
                    Err(error) => tracing::warn!(%error, "cannot read the queues' depths; the threshold stays"),
                }
            }
        }
    }
}

/// Reads what jobs cost. A tier without a job among the latest, because it is stuck or slow, keeps its
/// last figure.
async fn read_costs(store: &Store, costs: &mut Vec<TierCost>) {
    match store.tier_costs(COST_JOBS).await {
        Ok(latest) => {
            costs.retain(|cost| latest.iter().all(|new| new.tier != cost.tier));
            costs.extend(latest);
        }
        Err(error) => {
            tracing::warn!(%error, "cannot read what jobs cost; the last figures stay in use");
        }
    }
}

/// Each tier's load, small first: the jobs that wait in its queues or are deferred, and its places.
pub(in crate::router) async fn tier_loads(
    TaskContext {
        router, registry, ..
    }: &TaskContext,
    costs: &[TierCost],
) -> Result<[TierLoad; 2], BrokerError> {
    let depths = router.broker.depths().await?;
    let models = registry.models();
    let since = Utc::now() - WORKER_AGE;
    Ok(Tier::ALL.map(|tier| {
        let (running, places) = models.places(tier, since);
        let queues = depths.iter().filter(|d| d.queue.tier() == Some(tier));
        let cost = costs.iter().find(|cost| cost.tier == tier);
        TierLoad {
            waiting: queues.map(|depth| depth.ready).sum::<u64>() + router.admission.deferred(tier),
            running,
            places,
            service_s: cost.map(|cost| cost.seconds_mean),
        }
    }))
}

/// Uses the weights that are active in the job database, unless the configuration names a file. Weights
/// that cannot be read are reported once, and the present ones stay.
async fn adopt_weights(context: &TaskContext, reported: &mut Reported) {
    let TaskContext { router, policy, .. } = context;
    if router.config.weights.is_some() {
        return;
    }
    let stored = match router.store.active_weights().await {
        Ok(Some(stored)) => stored,
        Ok(None) => return,
        Err(error) => {
            tracing::warn!(%error, "cannot read the promoted weights; the present ones stay");
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

/// The targets in the job database; `None` when they cannot be read, and the present ones stay.
async fn read_targets(context: &TaskContext, reported: &mut Reported) -> Option<Vec<ScopedTarget>> {
    match context.router.store.route_targets().await {
        Ok(targets) => {
            reported.targets = None;
            Some(targets)
        }
        Err(error) => {
            let error = error.to_string();
            if reported.targets.as_ref() != Some(&error) {
                tracing::error!(error, "cannot read the targets; the present ones stay");
                reported.targets = Some(error);
            }
            None
        }
    }
}

/// Puts stored targets in force. Scopes without statistics start with those of past decisions.
async fn adopt_targets(context: &TaskContext, stored: &[ScopedTarget]) {
    let TaskContext { router, policy, .. } = context;
    let scorer = policy.scorer();
    let past = router.store.past_decisions(scorer.version(), PAST_MAX);
    let past = past.await.unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read past decisions; shares start without them");
        Vec::new()
    });
    for (scope, target) in policy.set_targets(stored, &past) {
        match target {
            Some(target) => {
                tracing::info!(%scope, route_target = %target, "a new target is in force")
            }
            None => tracing::info!(%scope, "the scope has no target of its own any more"),
        }
    }
}

/// Reads outcomes for targets that are qualities.
async fn learn(context: &TaskContext, reported: &mut Reported) {
    let TaskContext { router, policy, .. } = context;
    if !policy.wants_pairs() {
        return;
    }
    if router.config.shadow_share == 0.0 && !reported.no_copies {
        tracing::warn!(
            "the target is a quality, but router.shadow_share is 0: nothing is learned for it"
        );
        reported.no_copies = true;
    }
    let read: Result<_, StoreError> = router.store.pairs(isotonic::PAIRS_MAX, false).await;
    match read {
        Ok(rows) => policy.observe_pairs(&learning::calibration_pairs(
            rows,
            policy.scorer().version(),
        )),
        Err(error) => tracing::warn!(%error, "cannot read outcomes; the thresholds stay"),
    }
}
