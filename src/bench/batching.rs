//! `bench batching`: one closed queue of requests of very different length, served in four ways on
//! the same model and kernels.

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::anyhow;
use clap::Args;
use comfy_table::CellAlignment;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};

use crate::{
    config::WeightKind, console::options::say, console::table::table, engine::local::CpuModel,
};

use super::{
    engine::{open_model, positive},
    median,
    steps::{Line, continuous, padded},
};

/// Arguments of `bench batching`.
#[derive(Debug, Args)]
pub struct BatchingBenchArgs {
    /// Hugging Face directory of the model; with --random-weights its config.json is enough
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// What products are computed in
    #[arg(long, default_value = "bf16")]
    weights: WeightKind,
    /// Weights by chance, for the speed of a shape without its weights
    #[arg(long)]
    random_weights: bool,
    /// Requests, all there at the beginning
    #[arg(long, default_value = "64", value_parser = positive)]
    requests: usize,
    /// Sequences side by side, at most
    #[arg(long, default_value = "16", value_parser = positive)]
    width: usize,
    /// Prompts have from 16 tokens to this many more, evenly
    #[arg(long, default_value = "48", value_parser = positive)]
    prompt_tokens: usize,
    /// Mean length of an answer; lengths fall off exponentially, from 4 to five times the mean
    #[arg(long, default_value = "64", value_parser = positive)]
    output_tokens: usize,
    /// Seed of the lengths
    #[arg(long, default_value = "0")]
    seed: u64,
    /// Rounds; the ways are measured in turn, and the medians reported
    #[arg(long, default_value = "5", value_parser = positive)]
    rounds: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A way to serve the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// One request after the other.
    Alone,
    /// Batches padded to their longest prompt, which last until their longest answer ends.
    Padded,
    /// The same without padding, and whoever ends leaves; nobody joins.
    Packed,
    /// Requests join and leave at every step.
    Continuous,
}

impl Way {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Alone, "one at a time"),
        (Self::Padded, "padded static"),
        (Self::Packed, "packed static"),
        (Self::Continuous, "continuous"),
    ];
}

/// Runs `bench batching`.
pub fn bench_batching(args: &BatchingBenchArgs) -> anyhow::Result<ExitCode> {
    let longest = 16 + args.prompt_tokens + 5 * args.output_tokens;
    let model = open_model(&args.model, args.weights, args.random_weights, longest)?;
    let lines = lines(args, model.shape().vocabulary);
    let mut seconds = [const { Vec::new() }; Way::ALL.len()];
    for _ in 0..args.rounds {
        for ((way, _), seconds) in Way::ALL.into_iter().zip(&mut seconds) {
            let begun = Instant::now();
            serve(&model, &lines, way, args.width).map_err(|error| anyhow!(error))?;
            seconds.push(begun.elapsed().as_secs_f64());
        }
    }
    let output: usize = lines.iter().map(|line| line.output_tokens).sum();
    let rows: Vec<Row> = Way::ALL
        .iter()
        .zip(&seconds)
        .map(|((_, name), times)| Row {
            name,
            tokens_per_second: output as f64 / median(times.clone()),
            // Of one round each, so that what slows a round down slows both sides down.
            continuous_over_it: median(
                times
                    .iter()
                    .zip(&seconds[3])
                    .map(|(it, continuous)| it / continuous)
                    .collect(),
            ),
        })
        .collect();
    say(&if args.json {
        as_json(args, &lines, &rows).to_string()
    } else {
        as_text(&lines, &rows)
    })?;
    Ok(ExitCode::SUCCESS)
}

struct Row {
    name: &'static str,
    /// Tokens of answers in a second.
    tokens_per_second: f64,
    continuous_over_it: f64,
}

fn lines(args: &BatchingBenchArgs, vocabulary: usize) -> Vec<Line> {
    let mut dice = StdRng::seed_from_u64(args.seed);
    (0..args.requests)
        .map(|_| {
            let prompt_tokens = 16 + dice.random_range(0..args.prompt_tokens);
            let exponential = -dice.random_range(1e-9..1.0f64).ln();
            let output_tokens = (exponential * args.output_tokens as f64) as usize;
            Line {
                prompt: (0..prompt_tokens)
                    .map(|_| dice.random_range(0..vocabulary as u32))
                    .collect(),
                output_tokens: output_tokens.clamp(4, 5 * args.output_tokens),
            }
        })
        .collect()
}

fn serve(model: &CpuModel, lines: &[Line], way: Way, width: usize) -> Result<(), String> {
    match way {
        Way::Alone => continuous(model, lines, 1),
        Way::Continuous => continuous(model, lines, width),
        Way::Packed => lines
            .chunks(width)
            .try_for_each(|batch| continuous(model, batch, width)),
        Way::Padded => lines
            .chunks(width)
            .try_for_each(|batch| padded(model, batch)),
    }
}

fn as_json(args: &BatchingBenchArgs, lines: &[Line], rows: &[Row]) -> Value {
    let ways: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "way": row.name,
                "output_tokens_per_second": row.tokens_per_second,
                "continuous_over_it": row.continuous_over_it,
            })
        })
        .collect();
    json!({
        "model": args.model.display().to_string(),
        "weights": args.weights.to_string(),
        "threads": rayon::current_num_threads(),
        "requests": lines.len(),
        "width": args.width,
        "prompt_tokens": lines.iter().map(|line| line.prompt.len()).sum::<usize>(),
        "output_tokens": lines.iter().map(|line| line.output_tokens).sum::<usize>(),
        "rounds": args.rounds,
        "ways": ways,
    })
}

fn as_text(lines: &[Line], rows: &[Row]) -> String {
    let prompt: usize = lines.iter().map(|line| line.prompt.len()).sum();
    let output: usize = lines.iter().map(|line| line.output_tokens).sum();
    let mut table = table(&["way", "answer tokens/s", "continuous / it"]);
    for row in rows {
        table.add_row([
            row.name.to_owned(),
            format!("{:.0}", row.tokens_per_second),
            format!("{:.2}", row.continuous_over_it),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!(
        "{} requests, {prompt} prompt tokens, {output} answer tokens\n{}",
        lines.len(),
        table.trim_fmt()
    )
}
