//! `router explain`: of a prompt, what moved its score; of a job, why it went where it went.

use std::{path::Path, process::ExitCode};

use clap::Args;
use serde_json::json;

use crate::{
    cli::options::{Common, complain, require_ledger, say},
    config::{Config, Overrides, RouteTarget, RouterConfig, TargetScope},
    fleet,
    job::{JobId, Tier},
    routing::{features::Features, scorer::Scorer, target},
    store::{ScopedTarget, StoreFault, StoredWeights, TierCost},
};

use super::{in_use, job};

/// Arguments of `router explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// A job's id, or a prompt
    #[arg(value_name = "JOB|TEXT")]
    subject: String,
    /// A tag of the prompt's; may be given again
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// How many of the strongest features to show
    #[arg(long, default_value_t = 12)]
    top: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: Common,
}

/// Runs `router explain`.
pub async fn explain(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let config = args.common.load(Overrides::default())?;
    match args.subject.parse::<JobId>() {
        Ok(id) => job::explain(id, &config, args.top, args.json).await?,
        Err(_) => explain_prompt(args, &config).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What a ledger tells of a prompt that is no job.
#[derive(Default)]
struct Known {
    active: Option<StoredWeights>,
    costs: Vec<TierCost>,
    targets: Vec<ScopedTarget>,
}

/// Asks the ledger, if there is one; a prompt can be explained without.
async fn ask_ledger(config: &Config) -> Known {
    if require_ledger(config).is_err() {
        return Known::default();
    }
    let asked = async {
        let store = fleet::open_store(config, false).await?;
        let active = store.active_weights().await;
        let costs = store.tier_costs(job::COST_JOBS).await;
        let targets = store.route_targets().await;
        store.close().await;
        Ok::<_, StoreFault>(Known {
            active: active?,
            costs: costs?,
            targets: targets?,
        })
    };
    asked.await.unwrap_or_else(|fault| {
        complain(&format!("the ledger cannot be asked: {fault}"));
        Known::default()
    })
}

/// The target that holds for a prompt with these tags, of any tenant without a target of its own.
fn target_of(config: &RouterConfig, ledger: &[ScopedTarget], tags: &[String]) -> RouteTarget {
    let targets = target::in_force(config, ledger);
    let of_tag = |tag: &String| targets.get(&TargetScope::Tag(tag.clone()));
    let own = tags.iter().find_map(of_tag);
    own.or_else(|| targets.get(&TargetScope::All))
        .copied()
        .unwrap_or(config.target)
}

/// The threshold that a prompt by itself can be told: other targets make theirs of the traffic.
fn fixed_threshold(config: &RouterConfig, target: RouteTarget) -> Option<f64> {
    match target {
        RouteTarget::Threshold => Some(config.threshold),
        RouteTarget::ThresholdOf(threshold) => Some(threshold),
        _ => None,
    }
}

async fn explain_prompt(args: &ExplainArgs, config: &Config) -> anyhow::Result<()> {
    let known = ask_ledger(config).await;
    let config = &config.router;
    let scorer = match (&config.weights, &known.active) {
        (None, Some(active)) => in_use(active),
        (path, _) => Scorer::open(path.as_deref().map(Path::new))?,
    };
    let features = Features::of_text(&args.subject).with_tags(args.tag.iter().map(String::as_str));
    let score = scorer.score(&features);
    let mut shares = scorer.explain(&features);
    let target = target_of(config, &known.targets, &args.tag);
    let fixed = fixed_threshold(config, target);
    let threshold = fixed.unwrap_or(config.threshold);
    let tier = if score.gain >= threshold {
        Tier::Large
    } else {
        Tier::Small
    };
    let rest = shares.split_off(args.top.min(shares.len()));
    if !rest.is_empty() {
        let sum = rest.iter().map(|(_, share)| share).sum();
        shares.push((format!("{} others", rest.len()), sum));
    }
    if args.json {
        let moved: Vec<_> = shares
            .iter()
            .map(|(name, share)| json!({"feature": name, "share": share}))
            .collect();
        let costs: Vec<_> = known.costs.iter().map(job::mean_cost).collect();
        say(&json!({
            "score": score.gain, "threshold": threshold, "target": target.to_string(), "tier": tier,
            "expected_gain": score.expected_gain, "small_fails": score.small_fails,
            "familiarity": score.familiarity, "scorer": scorer.version(), "moved_by": moved,
            "costs": costs,
        })
        .to_string())?;
        return Ok(());
    }
    say(&format!(
        "score {:.3}, threshold {threshold:.3}: {tier}\nexpected gain {:+.3}, small fails {:.2}, familiarity {:.2} ({})",
        score.gain,
        score.expected_gain,
        score.small_fails,
        score.familiarity,
        scorer.version(),
    ))?;
    if fixed.is_none() {
        say(&format!(
            "the target is {target}: the traffic makes its threshold, this one holds until it is known"
        ))?;
    }
    for cost in &known.costs {
        say(&format!(
            "{} took {:.2} s and {:.0} tokens a job, of {} lately",
            cost.tier, cost.seconds_mean, cost.completion_tokens_mean, cost.jobs
        ))?;
    }
    say("")?;
    for (name, share) in shares {
        say(&format!("{share:>+8.4}  {name}"))?;
    }
    Ok(())
}
