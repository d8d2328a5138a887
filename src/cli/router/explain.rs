//! `router explain`: what moved a prompt's score, or why a job was routed to its tier.

use std::{path::Path, process::ExitCode};

use clap::Args;
use serde_json::json;

use crate::{
    config::{Config, Overrides, RouterConfig},
    console::{
        options::{Common, require_database},
        terminal::{eprint_line, print_line},
    },
    fleet,
    job::{JobId, Tenant, Tier},
    router::{
        PAST_DECISIONS_MAX, learning,
        target::{Calibrations, in_force, isotonic},
    },
    scoring::{features::Features, scorer::Scorer},
    store::{Store, StoreError, TierCost},
};

use super::{explain_job, weights::scorer_of};

/// Arguments of `router explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Job id or prompt
    #[arg(value_name = "JOB|TEXT")]
    subject: String,
    /// Tag of the prompt (repeatable)
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// Number of features to show, strongest first
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
        Ok(id) => explain_job::explain(id, &config, args.top, args.json).await?,
        Err(_) => explain_prompt(args, &config).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What a router that starts now would use to route a prompt.
struct RouterState {
    scorer: Scorer,
    calibrations: Calibrations,
    costs: Vec<TierCost>,
}

impl RouterState {
    /// Loads from the job database, if there is one; it is not required.
    async fn load(config: &Config) -> anyhow::Result<Self> {
        let path = config.router.weights.as_deref().map(Path::new);
        let mut known = Self {
            scorer: Scorer::open(path)?,
            calibrations: Calibrations::new(&config.router),
            costs: Vec::new(),
        };
        if require_database(config).is_ok()
            && let Err(error) = known.load_from_store(config).await
        {
            eprint_line(&format!(
                "cannot read the job database: {error}; explaining with the configuration alone"
            ));
        }
        Ok(known)
    }

    async fn load_from_store(&mut self, config: &Config) -> Result<(), StoreError> {
        let store = fleet::open_store(config, false).await?;
        let learned = self.learn(&store, &config.router).await;
        store.close().await;
        learned
    }

    /// Loads weights, targets and outcomes as a router does.
    async fn learn(&mut self, store: &Store, config: &RouterConfig) -> Result<(), StoreError> {
        if config.weights.is_none()
            && let Some(active) = store.active_weights().await?
        {
            self.scorer = scorer_of(&active);
        }
        self.costs = store.tier_costs(explain_job::COST_JOBS).await?;
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
    let known = RouterState::load(config).await?;
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
        let costs: Vec<_> = known.costs.iter().map(explain_job::mean_cost).collect();
        print_line(&json!({
            "score": score.gain, "threshold": threshold, "target": target, "target_scope": scope_name, "tier": tier,
            "expected_gain": score.expected_gain, "small_fails": score.small_fails,
            "familiarity": score.familiarity, "scorer": scorer.version(), "moved_by": moved,
            "costs": costs,
        })
        .to_string())?;
        return Ok(());
    }
    print_line(&format!(
        "score {:.3}, threshold {threshold:.3}: {tier}\nexpected gain {:+.3}, small fails {:.2}, familiarity {:.2} ({})",
        score.gain,
        score.expected_gain,
        score.small_fails,
        score.familiarity,
        scorer.version(),
    ))?;
    if !target.starts_with("threshold") {
        print_line(&format!(
            "the target of {scope_name} is {target}; the threshold follows from the jobs in the database, if there are enough"
        ))?;
    }
    for cost in &known.costs {
        print_line(&format!(
            "{}: {:.2} s and {:.0} tokens per job, over {} recent jobs",
            cost.tier, cost.seconds_mean, cost.completion_tokens_mean, cost.jobs
        ))?;
    }
    print_line("")?;
    for (name, share) in shares {
        print_line(&format!("{share:>+8.4}  {name}"))?;
    }
    Ok(())
}
