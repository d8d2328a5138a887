//! `router explain JOB`: why a job was routed to its tier, and what the other tier would have cost.

use anyhow::Context;
use serde_json::{Value, json};

use crate::{
    config::Config,
    console::{
        options::{init_logs, require_database},
        terminal::print_line,
    },
    fleet,
    job::{Job, JobId, JobRecord, Tier},
    scoring::{features::Features, scorer::Scorer},
    store::{DecisionRecord, Store, TierCost},
};

/// Recent jobs from which mean costs are computed.
pub const COST_JOBS: usize = 2048;

/// Explains a job.
pub async fn explain(id: JobId, config: &Config, top: usize, json: bool) -> anyhow::Result<()> {
    init_logs(config)?;
    require_database(config)?;
    let store = fleet::open_store(config, false).await?;
    let found = gather(&store, config, id).await;
    store.close().await;
    let found = found?;
    print_line(&if json {
        found.to_string()
    } else {
        to_text(&found, top)
    })?;
    Ok(())
}

async fn gather(store: &Store, config: &Config, id: JobId) -> anyhow::Result<Value> {
    let decision = store.decision(id).await?;
    let decision = decision.with_context(|| format!("the job database has no job {id}"))?;
    let record = store.records(&[id]).await?.pop();
    let record = record.with_context(|| format!("the job database has no job {id}"))?;
    anyhow::ensure!(
        decision.score.is_some(),
        "job {id} is {} and was never routed",
        record.state
    );
    let job = store.job(id).await?;
    let costs = store.tier_costs(COST_JOBS).await?;
    let scorer = deciding_scorer(store, config, decision.scorer.as_deref()).await?;
    let other = match measured_other_cost(store, &decision, &record).await? {
        Some(cost) => cost,
        None => estimated_other_cost(&record, &costs),
    };
    Ok(describe(
        &decision,
        &record,
        job.as_ref(),
        scorer.as_ref(),
        other,
    ))
}

/// The weights that made the decision, if they are still available.
async fn deciding_scorer(
    store: &Store,
    config: &Config,
    version: Option<&str>,
) -> anyhow::Result<Option<Scorer>> {
    let named = Scorer::open(config.router.weights.as_deref().map(std::path::Path::new))?;
    let stored = store.active_weights().await?;
    let stored = stored.and_then(|stored| Scorer::from_bytes(&stored.weights).ok());
    Ok([Some(named), stored, Some(Scorer::bundled())]
        .into_iter()
        .flatten()
        .find(|scorer| Some(scorer.version()) == version))
}

fn describe(
    decision: &DecisionRecord,
    record: &JobRecord,
    job: Option<&Job>,
    scorer: Option<&Scorer>,
    other: Value,
) -> Value {
    let moved = job.zip(scorer).map(|(job, scorer)| {
        scorer
            .explain(&Features::of(&job.request))
            .into_iter()
            .map(|(feature, share)| json!({"feature": feature, "moved": share}))
            .collect::<Vec<_>>()
    });
    json!({
        "job": record.id,
        "state": record.state,
        "tier": record.tier,
        "reason": decision.route_reason,
        "score": decision.score,
        "threshold": decision.threshold,
        "threshold_base": decision.threshold_base,
        "target": decision.target,
        "target_scope": decision.target_scope,
        "propensity": decision.propensity,
        "scorer": decision.scorer,
        "features_version": decision.features_version,
        "features": moved,
        "shadow": decision.shadow,
        "shadow_of": decision.shadow_of,
        "feedback": decision.feedback.iter().map(|(source, score)| json!({"source": source, "score": score})).collect::<Vec<_>>(),
        "cost": own_cost(record),
        "other": other,
    })
}

/// The cost of the job's last run.
fn own_cost(record: &JobRecord) -> Value {
    let seconds = record
        .started_at
        .zip(record.finished_at)
        .map(|(begun, ended)| (ended - begun).as_seconds_f64());
    json!({
        "seconds": seconds,
        "prompt_tokens": record.answer.as_ref().map(|answer| answer.usage.prompt_tokens),
        "completion_tokens": record.answer.as_ref().map(|answer| answer.usage.completion_tokens),
    })
}

/// The other tier's measured cost, if it ran the job too: as a shadow copy or before escalation.
async fn measured_other_cost(
    store: &Store,
    decision: &DecisionRecord,
    record: &JobRecord,
) -> anyhow::Result<Option<Value>> {
    if let Some(copy) = decision.shadow {
        let copy = store.records(&[copy]).await?.pop();
        let copy = copy.filter(|copy| copy.answer.is_some());
        return Ok(copy.map(|copy| {
            let mut cost = own_cost(&copy);
            cost["tier"] = json!(copy.tier);
            cost["measured_on"] = json!("its copy");
            cost
        }));
    }
    let attempts = store.attempts(record.id).await?;
    let escalated = attempts
        .iter()
        .find(|attempt| attempt.outcome == "escalated" && Some(attempt.tier) != record.tier);
    Ok(escalated.map(|attempt| {
        let ended = attempt.finished_at;
        json!({
            "tier": attempt.tier,
            "seconds": ended.map(|ended| (ended - attempt.claimed_at).as_seconds_f64()),
            "completion_tokens": attempt.completion_tokens,
            "confidence": attempt.confidence,
            "measured_on": attempt.confidence.map_or(
                "the attempt that was escalated".to_owned(),
                |sure| format!("the attempt that was escalated, with a confidence of {sure:.2}"),
            ),
        })
    }))
}

/// A tier's mean cost per job.
pub fn mean_cost(cost: &TierCost) -> Value {
    json!({
        "tier": cost.tier,
        "seconds": cost.seconds_mean,
        "completion_tokens": cost.completion_tokens_mean,
        "jobs_measured": cost.jobs,
    })
}

/// The other tier's estimated cost: the mean of its jobs, scaled by the length of this job's answer
/// over the mean of its own tier.
fn estimated_other_cost(record: &JobRecord, costs: &[TierCost]) -> Value {
    let other = match record.tier {
        Some(Tier::Small) => Tier::Large,
        _ => Tier::Small,
    };
    let of = |tier| costs.iter().find(|cost| Some(cost.tier) == tier);
    let Some(cost) = of(Some(other)) else {
        return json!({"tier": other, "seconds": null});
    };
    let tokens = record.answer.as_ref();
    let tokens = tokens.map(|answer| f64::from(answer.usage.completion_tokens));
    let scale = tokens.zip(of(record.tier)).map_or(1.0, |(tokens, own)| {
        tokens / own.completion_tokens_mean.max(1.0)
    });
    json!({
        "tier": other,
        "seconds": cost.seconds_mean * scale,
        "completion_tokens": (cost.completion_tokens_mean * scale).round(),
        "jobs_measured": cost.jobs,
    })
}

fn to_text(found: &Value, top: usize) -> String {
    let number = |value: &Value| {
        value
            .as_f64()
            .map_or("unknown".to_owned(), |n| format!("{n:.4}"))
    };
    let word = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
    let mut lines = vec![
        format!(
            "job        {} ({}), tier {}",
            word(&found["job"]),
            word(&found["state"]),
            word(&found["tier"])
        ),
        format!(
            "reason     {}, with probability {}",
            word(&found["reason"]),
            number(&found["propensity"])
        ),
        format!(
            "score      {} by {}",
            number(&found["score"]),
            word(&found["scorer"])
        ),
        format!(
            "threshold  {} (base {}), by the target {} for {}",
            number(&found["threshold"]),
            number(&found["threshold_base"]),
            word(&found["target"]),
            match word(&found["target_scope"]).as_str() {
                "all" => "all jobs",
                scope => scope,
            },
        ),
        format!("cost       {}", cost_text(&found["cost"])),
        format!("other      {}", other_cost_text(&found["other"])),
    ];
    for name in ["shadow", "shadow_of"] {
        if let Some(id) = found[name].as_str() {
            lines.push(format!("{name:<10} {id}"));
        }
    }
    for feedback in found["feedback"].as_array().into_iter().flatten() {
        lines.push(format!(
            "feedback   {} by {}",
            number(&feedback["score"]),
            word(&feedback["source"])
        ));
    }
    match found["features"].as_array() {
        Some(moved) => {
            lines.push("moved by".to_owned());
            lines.extend(moved.iter().take(top).map(|one| {
                let share = one["moved"].as_f64().unwrap_or_default();
                format!("  {share:>+9.4}  {}", word(&one["feature"]))
            }));
        }
        None => lines.push(
            "moved by   unknown: the weights of that version or the prompt no longer exist"
                .to_owned(),
        ),
    }
    lines.join("\n")
}

/// A run's cost as text; a job answered from the cache has none.
fn cost_text(cost: &Value) -> String {
    match (cost["seconds"].as_f64(), cost["completion_tokens"].as_u64()) {
        (Some(seconds), Some(tokens)) => format!("{seconds:.4} s, {tokens} tokens generated"),
        (None, Some(tokens)) => format!("none of its own, {tokens} tokens reused"),
        (Some(seconds), None) => format!("{seconds:.4} s, no answer"),
        (None, None) => "none yet".to_owned(),
    }
}

/// The other tier's cost as text.
fn other_cost_text(other: &Value) -> String {
    let tier = other["tier"].as_str().unwrap_or("unknown");
    match (other["measured_on"].as_str(), other["seconds"].as_f64()) {
        (Some(on), _) => format!("{tier} took {} ({on})", cost_text(other)),
        (None, Some(seconds)) => format!(
            "{tier} would have taken about {seconds:.4} s and {:.0} tokens, estimated from {} recent jobs",
            other["completion_tokens"].as_f64().unwrap_or_default(),
            other["jobs_measured"]
        ),
        (None, None) => format!("{tier}: unknown, as none of its jobs ended within the last hour"),
    }
}
