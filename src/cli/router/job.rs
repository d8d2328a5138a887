//! `router explain JOB`: why a job went where it went, and what the other tier would have cost.

use anyhow::Context;
use serde_json::{Value, json};

use crate::{
    config::Config,
    console::options::{init_logs, require_database, say},
    fleet,
    job::{Job, JobId, JobRecord, Tier},
    scoring::{features::Features, scorer::Scorer},
    store::{DecisionRecord, Store, TierCost},
};

/// Jobs from which costs are measured.
pub const COST_JOBS: usize = 2048;

/// Tells of a job.
pub async fn explain(id: JobId, config: &Config, top: usize, json: bool) -> anyhow::Result<()> {
    init_logs(config)?;
    require_database(config)?;
    let store = fleet::open_store(config, false).await?;
    let found = gather(&store, config, id).await;
    store.close().await;
    let found = found?;
    say(&if json {
        found.to_string()
    } else {
        to_text(&found, top)
    })?;
    Ok(())
}

async fn gather(store: &Store, config: &Config, id: JobId) -> anyhow::Result<Value> {
    let decision = store.decision(id).await?;
    let decision = decision.with_context(|| format!("the ledger has no job {id}"))?;
    let record = store.records(&[id]).await?.pop();
    let record = record.with_context(|| format!("the ledger has no job {id}"))?;
    anyhow::ensure!(
        decision.score.is_some(),
        "job {id} is {} and was never routed",
        record.state
    );
    let job = store.job(id).await?;
    let costs = store.tier_costs(COST_JOBS).await?;
    let scorer = scorer_of(store, config, decision.scorer.as_deref()).await?;
    let other = match ran_elsewhere(store, &decision, &record).await? {
        Some(ran) => ran,
        None => other_cost(&record, &costs),
    };
    Ok(describe(
        &decision,
        &record,
        job.as_ref(),
        scorer.as_ref(),
        other,
    ))
}

/// The weights that made the decision, if they can still be had.
async fn scorer_of(
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

/// What the job's own last run took.
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

/// What the other tier did take, where it ran the job as well: as its copy, or before it was escalated.
async fn ran_elsewhere(
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

/// What a tier's jobs take in the mean.
pub fn mean_cost(cost: &TierCost) -> Value {
    json!({
        "tier": cost.tier,
        "seconds": cost.seconds_mean,
        "completion_tokens": cost.completion_tokens_mean,
        "jobs_measured": cost.jobs,
    })
}

/// What the other tier would take: the mean of its jobs, more or less as this job's answer is longer
/// or shorter than its own tier's.
fn other_cost(record: &JobRecord, costs: &[TierCost]) -> Value {
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
        format!("cost       {}", cost_in_words(&found["cost"])),
        format!("other      {}", other_in_words(&found["other"])),
    ];
    for name in ["shadow", "shadow_of"] {
        if let Some(id) = found[name].as_str() {
            lines.push(format!("{name:<10} {id}"));
        }
    }
    for said in found["feedback"].as_array().into_iter().flatten() {
        lines.push(format!(
            "feedback   {} by {}",
            number(&said["score"]),
            word(&said["source"])
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
            "moved by   unknown: the weights of that version, or the prompt, are gone".to_owned(),
        ),
    }
    lines.join("\n")
}

/// What a run took; a job that was answered from the cache took none.
fn cost_in_words(cost: &Value) -> String {
    match (cost["seconds"].as_f64(), cost["completion_tokens"].as_u64()) {
        (Some(seconds), Some(tokens)) => format!("{seconds:.4} s, {tokens} tokens generated"),
        (None, Some(tokens)) => format!("none of its own, {tokens} tokens reused"),
        (Some(seconds), None) => format!("{seconds:.4} s, no answer"),
        (None, None) => "none yet".to_owned(),
    }
}

/// What the other tier took or would have taken.
fn other_in_words(other: &Value) -> String {
    let tier = other["tier"].as_str().unwrap_or("unknown");
    match (other["measured_on"].as_str(), other["seconds"].as_f64()) {
        (Some(on), _) => format!("{tier} took {} ({on})", cost_in_words(other)),
        (None, Some(seconds)) => format!(
            "{tier} would have taken about {seconds:.4} s and {:.0} tokens, by {} jobs of late",
            other["completion_tokens"].as_f64().unwrap_or_default(),
            other["jobs_measured"]
        ),
        (None, None) => format!("{tier}: unknown, none of its jobs ended within the last hour"),
    }
}
