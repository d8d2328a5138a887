//! `router explain`: of a prompt, what moved its score; of a job, why it went where it went.

use std::{path::Path, process::ExitCode};

use clap::Args;
use serde_json::json;

use crate::{
    config::{Config, Overrides, RouterConfig},
    console::options::{Common, complain, require_database, say},
    fleet,
    job::{JobId, Tenant, Tier},
    router::{
        PAST_DECISIONS_MAX, learning,
        target::{Calibrations, in_force, isotonic},
    },
    scoring::{features::Features, scorer::Scorer},
    store::{Store, StoreError, TierCost},
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

/// What a router that starts now knows of a prompt that is no job.
struct Known {
    scorer: Scorer,
    calibrations: Calibrations,
    costs: Vec<TierCost>,
}

impl Known {
    /// Asks the ledger, if there is one; a prompt can be explained without.
    async fn of(config: &Config) -> anyhow::Result<Self> {
        let path = config.router.weights.as_deref().map(Path::new);
        let mut known = Self {
            scorer: Scorer::open(path)?,
            calibrations: Calibrations::new(&config.router),
            costs: Vec::new(),
        };
        if require_database(config).is_ok()
            && let Err(error) = known.ask(config).await
        {
            complain(&format!("the ledger cannot be asked: {error}"));
        }
        Ok(known)
    }

    async fn ask(&mut self, config: &Config) -> Result<(), StoreError> {
        let store = fleet::open_store(config, false).await?;
        let learned = self.learn(&store, &config.router).await;
        store.close().await;
        learned
    }

    /// Takes in weights, targets and outcomes as a router does.
    async fn learn(&mut self, store: &Store, config: &RouterConfig) -> Result<(), StoreError> {
        if config.weights.is_none()
            && let Some(active) = store.active_weights().await?
        {
            self.scorer = in_use(&active);
        }
        self.costs = store.tier_costs(job::COST_JOBS).await?;
        let version = self.scorer.version();
        let targets = store.route_targets().await?;
        let past = store.past_decisions(version, PAST_DECISIONS_MAX).await?;
        self.calibrations.retarget(in_force(config, &targets));
        self.calibrations.remember(&past);
        if self.calibrations.want_pairs() {
            let rows = store.pairs(isotonic::PAIRS_MAX, false).await?;
            let pairs = learning::calibration_pairs(rows, version);
            self.calibrations.observe_pairs(&pairs);
        }
        Ok(())
    }
}

async fn explain_prompt(args: &ExplainArgs, config: &Config) -> anyhow::Result<()> {
    let known = Known::of(config).await?;
    let scorer = &known.scorer;
    let features = Features::of_text(&args.subject).with_tags(args.tag.iter().map(String::as_str));
    let score = scorer.score(&features);
    let mut shares = scorer.explain(&features);
    let scope = known
        .calibrations
        .scope(Tenant::default().as_str(), &args.tag);
    let (scope_name, target) = known.calibrations.names(scope);
    let threshold = known.calibrations.thresholds(scope, 0.0).base;
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
            "score": score.gain, "threshold": threshold, "target": target, "target_scope": scope_name, "tier": tier,
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
    if !target.starts_with("threshold") {
        say(&format!(
            "the target of {scope_name} is {target}: this threshold follows from the traffic in the ledger, if there is enough"
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
