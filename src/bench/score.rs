//! `bench score`: what the router's look at a prompt costs.

use std::{
    hint::black_box,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::json;

use crate::{
    console::options::say,
    console::prompts::read_prompts,
    scoring::{features::Features, scorer::Scorer},
};

/// Arguments of `bench score`.
#[derive(Debug, Args)]
pub struct ScoreBenchArgs {
    /// Prompts as for `router score`; by default made-up ones of 20 bytes to 1 MB
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Weights that `router train` wrote; the bundled ones if not given
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Times each prompt is scored; the fastest counts, so that other processes do not.
const ROUNDS: usize = 5;

/// Runs `bench score`.
pub fn score_bench(args: &ScoreBenchArgs) -> anyhow::Result<ExitCode> {
    let scorer = Scorer::open(args.weights.as_deref())?;
    let prompts = match &args.input {
        Some(path) => read_prompts(path)?,
        None => made_up(),
    };
    let fastest = |prompt: &String| {
        let times = (0..ROUNDS).map(|_| {
            let begun = Instant::now();
            black_box(scorer.score(&Features::of_text(black_box(prompt))));
            begun.elapsed()
        });
        times.min().unwrap_or_default()
    };
    let mut times: Vec<Duration> = prompts.iter().map(fastest).collect();
    times.sort_unstable();
    let at = |share: f64| times[(share * (times.len() - 1) as f64) as usize].as_secs_f64() * 1e6;
    let (p50, p99, max) = (at(0.5), at(0.99), at(1.0));
    say(&if args.json {
        json!({"prompts": times.len(), "p50_us": p50, "p99_us": p99, "max_us": max}).to_string()
    } else {
        format!(
            "{} prompts on one core: p50 {p50:.1} µs, p99 {p99:.1} µs, most {max:.1} µs",
            times.len()
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A thousand prompts, mostly of some hundred bytes, one in a hundred of a megabyte.
fn made_up() -> Vec<String> {
    let sentence = "If a train of 180 m passes a signal in 9.5 seconds, how fast is it going? ";
    let of = |at: usize| {
        let bytes = match at % 100 {
            0 => 1 << 20,
            share => 20 + share * 20,
        };
        let mut text = format!("{at} {}", sentence.repeat(bytes / sentence.len() + 1));
        text.truncate(bytes);
        text
    };
    (0..1_000).map(of).collect()
}
