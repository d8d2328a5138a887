//! `bench batching`: one closed queue of requests of very different lengths, served by four batching
//! strategies on the same model and kernels.

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::anyhow;
use clap::Args;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};

use crate::{config::WeightKind, engine::local::CpuModel};

use super::{
    load::{open_model, positive},
    report::{print, table},
    statistics::{median, median_ratio},
    steps::{StepRequest, continuous, padded},
};

/// Arguments of `bench batching`.
#[derive(Debug, Args)]
pub struct BatchingBenchArgs {
    /// Hugging Face directory of the model; --random-weights needs only its config.json
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Weight format to compute in
    #[arg(long, default_value = "bf16")]
    weights: WeightKind,
    /// Use random weights, to measure a model's shape without its weights
    #[arg(long)]
    random_weights: bool,
    /// Requests in the queue at the start
    #[arg(long, default_value = "64", value_parser = positive)]
    requests: usize,
    /// Most sequences in a batch
    #[arg(long, default_value = "16", value_parser = positive)]
    width: usize,
    /// Spread of prompt lengths, uniform from 16 tokens to this many more
    #[arg(long, default_value = "48", value_parser = positive)]
    prompt_tokens: usize,
    /// Mean answer length in tokens; lengths are exponential, from 4 to five times the mean
    #[arg(long, default_value = "64", value_parser = positive)]
    output_tokens: usize,
    /// Seed of the random lengths
    #[arg(long, default_value = "0")]
    seed: u64,
    /// Rounds, each measuring all strategies; medians are reported
    #[arg(long, default_value = "5", value_parser = positive)]
    rounds: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How to batch the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strategy {
    /// One request after the other.
    Alone,
    /// Batches padded to their longest prompt, running until their longest answer ends.
    Padded,
    /// Batches without padding; finished sequences leave, none join.
    Packed,
    /// Sequences join and leave at every step.
    Continuous,
}

impl Strategy {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Alone, "one at a time"),
        (Self::Padded, "padded static"),
        (Self::Packed, "packed static"),
        (Self::Continuous, "continuous"),
    ];
}

/// Runs `bench batching`.
pub(super) fn bench_batching(args: &BatchingBenchArgs) -> anyhow::Result<ExitCode> {
    let longest = 16 + args.prompt_tokens + 5 * args.output_tokens;
    let model = open_model(&args.model, args.weights, args.random_weights, longest)?;
    let requests = requests(args, model.shape().vocabulary);
    let mut seconds = [const { Vec::new() }; Strategy::ALL.len()];
    for _ in 0..args.rounds {
        for ((strategy, _), seconds) in Strategy::ALL.into_iter().zip(&mut seconds) {
            let begun = Instant::now();
            serve(&model, &requests, strategy, args.width).map_err(|error| anyhow!(error))?;
            seconds.push(begun.elapsed().as_secs_f64());
        }
    }
    let output: usize = requests.iter().map(|request| request.output_tokens).sum();
    let results: Vec<StrategyResult> = Strategy::ALL
        .iter()
        .zip(&seconds)
        .map(|((_, name), times)| StrategyResult {
            name,
            tokens_per_second: output as f64 / median(times.iter().copied()),
            continuous_over_it: median_ratio(times, &seconds[3]),
        })
        .collect();
    print(
        args.json,
        || as_json(args, &requests, &results),
        || as_text(&requests, &results),
    )
}

struct StrategyResult {
    name: &'static str,
    /// Answer tokens per second.
    tokens_per_second: f64,
    continuous_over_it: f64,
}

fn requests(args: &BatchingBenchArgs, vocabulary: usize) -> Vec<StepRequest> {
    let mut dice = StdRng::seed_from_u64(args.seed);
    (0..args.requests)
        .map(|_| {
            let prompt_tokens = 16 + dice.random_range(0..args.prompt_tokens);
            let exponential = -dice.random_range(1e-9..1.0f64).ln();
            let output_tokens = (exponential * args.output_tokens as f64) as usize;
            StepRequest {
                prompt: (0..prompt_tokens)
                    .map(|_| dice.random_range(0..vocabulary as u32))
                    .collect(),
                output_tokens: output_tokens.clamp(4, 5 * args.output_tokens),
            }
        })
        .collect()
}

fn serve(
    model: &CpuModel,
    requests: &[StepRequest],
    strategy: Strategy,
    width: usize,
) -> Result<(), String> {
    match strategy {
        Strategy::Alone => continuous(model, requests, 1),
        Strategy::Continuous => continuous(model, requests, width),
        Strategy::Packed => requests
            .chunks(width)
            .try_for_each(|batch| continuous(model, batch, width)),
        Strategy::Padded => requests
            .chunks(width)
            .try_for_each(|batch| padded(model, batch)),
    }
}

fn as_json(
    args: &BatchingBenchArgs,
    requests: &[StepRequest],
    results: &[StrategyResult],
) -> Value {
    let strategies: Vec<Value> = results
        .iter()
        .map(|result| {
            json!({
                "way": result.name,
                "output_tokens_per_second": result.tokens_per_second,
                "continuous_over_it": result.continuous_over_it,
            })
        })
        .collect();
    json!({
        "model": args.model.display().to_string(),
        "weights": args.weights.to_string(),
        "threads": rayon::current_num_threads(),
        "requests": requests.len(),
        "width": args.width,
        "prompt_tokens": requests.iter().map(|request| request.prompt.len()).sum::<usize>(),
        "output_tokens": requests.iter().map(|request| request.output_tokens).sum::<usize>(),
        "rounds": args.rounds,
        "ways": strategies,
    })
}

fn as_text(requests: &[StepRequest], results: &[StrategyResult]) -> String {
    let prompt: usize = requests.iter().map(|request| request.prompt.len()).sum();
    let output: usize = requests.iter().map(|request| request.output_tokens).sum();
    let rows = results.iter().map(|result| {
        [
            result.name.to_owned(),
            format!("{:.0}", result.tokens_per_second),
            format!("{:.2}", result.continuous_over_it),
        ]
    });
    format!(
        "{} requests, {prompt} prompt tokens, {output} answer tokens\n{}",
        requests.len(),
        table(["strategy", "answer tokens/s", "continuous / it"], rows)
    )
}
