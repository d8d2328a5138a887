//! `router explain`: of a prompt, what moved its score; of a job, why it went where it went.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::{
    cli::options::{Common, say},
    config::{Config, Overrides},
    job::JobId,
    routing::{features::Features, scorer::Scorer},
};

use super::job;

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
        Err(_) => explain_prompt(args, &config)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn explain_prompt(args: &ExplainArgs, config: &Config) -> anyhow::Result<()> {
    let config = &config.router;
    let scorer = Scorer::open(config.weights.as_deref().map(std::path::Path::new))?;
    let features = Features::of_text(&args.subject).with_tags(args.tag.iter().map(String::as_str));
    let score = scorer.score(&features);
    let mut shares = scorer.explain(&features);
    let tier = if score.gain >= config.threshold {
        "large"
    } else {
        "small"
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
        say(&json!({
            "score": score.gain, "threshold": config.threshold, "tier": tier,
            "expected_gain": score.expected_gain, "small_fails": score.small_fails,
            "familiarity": score.familiarity, "scorer": scorer.version(), "moved_by": moved,
        })
        .to_string())?;
        return Ok(());
    }
    say(&format!(
        "score {:.3}, threshold {:.3}: {tier}\nexpected gain {:+.3}, small fails {:.2}, familiarity {:.2} ({})\n",
        score.gain,
        config.threshold,
        score.expected_gain,
        score.small_fails,
        score.familiarity,
        scorer.version(),
    ))?;
    for (name, share) in shares {
        say(&format!("{share:>+8.4}  {name}"))?;
    }
    Ok(())
}
