//! `bench score`: how long scoring a prompt takes.

use std::{hint::black_box, path::PathBuf, process::ExitCode, time::Instant};

use clap::Args;
use serde_json::json;

use crate::{
    console::prompts::read_prompts,
    scoring::{features::Features, scorer::Scorer},
};

use super::{
    report::print,
    statistics::{quantile, sorted},
};

/// Arguments of `bench score`.
#[derive(Debug, Args)]
pub struct ScoreBenchArgs {
    /// Prompts as for `router score` [default: generated ones of 20 bytes to 1 MB]
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Weights written by `router train` [default: the bundled ones]
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Repetitions per prompt; the fastest counts, to exclude other processes.
const ROUNDS: usize = 5;

/// Runs `bench score`.
pub(super) fn bench_score(args: &ScoreBenchArgs) -> anyhow::Result<ExitCode> {
    let scorer = Scorer::open(args.weights.as_deref())?;
    let prompts = match &args.input {
        Some(path) => read_prompts(path)?,
        None => generated(),
    };
    let fastest = |prompt: &String| {
        let times = (0..ROUNDS).map(|_| {
            let begun = Instant::now();
            black_box(scorer.score(&Features::of_text(black_box(prompt))));
            1e6 * begun.elapsed().as_secs_f64()
        });
        times.fold(f64::INFINITY, f64::min)
    };
    let micros = sorted(prompts.iter().map(fastest));
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| quantile(&micros, share));
    let json = || json!({"prompts": micros.len(), "p50_us": p50, "p99_us": p99, "max_us": max});
    let text = || {
        format!(
            "{} prompts on one core: p50 {p50:.1} µs, p99 {p99:.1} µs, max {max:.1} µs",
            micros.len()
        )
    };
    print(args.json, json, text)
}

/// A thousand prompts of 40 to 2,000 bytes, one in a hundred of a megabyte.
fn generated() -> Vec<String> {
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
