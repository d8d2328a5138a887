//! `router`: fits the scorer, judges it, and says what it thinks of prompts of one's own.

mod evaluate;
mod explain;
mod job;
mod score;
mod train;

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::{Args, Subcommand};

use super::{
    calibrate,
    pairs::{PairsArgs, pairs},
    promote::{PromoteArgs, promote},
    simulate::{SimulateArgs, simulate},
};
use crate::routing::{samples, scorer::Scorer, train::Sample};

/// Fit the router, judge it, or ask it about prompts of your own.
#[derive(Debug, Subcommand)]
pub enum RouterCommand {
    /// Score prompts: lines {"id", "prompt"} in, lines {"id", "score"} out, higher for large
    Score(score::ScoreArgs),
    Train(train::TrainArgs),
    Evaluate(evaluate::EvaluateArgs),
    Calibrate(calibrate::CalibrateArgs),
    /// Say what moved a prompt's score, or why a job went to its tier
    Explain(explain::ExplainArgs),
    /// Tell what a target would deliver on prompts of your own
    Simulate(SimulateArgs),
    /// Print what both tiers made of prompts, as the ledger knows it: lines to train on
    Pairs(PairsArgs),
    /// Put weights in the ledger, from which routers take them without a restart
    Promote(PromoteArgs),
}

/// Which weights to use.
#[derive(Debug, Args)]
struct WeightsArg {
    /// Weights that `router train` wrote; the bundled ones if not given
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
}

impl WeightsArg {
    fn open(&self) -> anyhow::Result<Scorer> {
        Ok(Scorer::open(self.weights.as_deref())?)
    }
}

/// Runs `router`.
pub async fn router(command: RouterCommand) -> anyhow::Result<ExitCode> {
    match command {
        RouterCommand::Score(args) => score::score(&args),
        RouterCommand::Train(args) => train::train(&args).await,
        RouterCommand::Evaluate(args) => evaluate::evaluate(&args),
        RouterCommand::Calibrate(args) => calibrate::calibrate(args),
        RouterCommand::Explain(args) => explain::explain(&args).await,
        RouterCommand::Simulate(args) => simulate(&args),
        RouterCommand::Pairs(args) => pairs(args).await,
        RouterCommand::Promote(args) => promote(args).await,
    }
}

/// Opens a file; `-` is standard input.
fn open(path: &Path) -> anyhow::Result<Box<dyn BufRead>> {
    if path == Path::new("-") {
        return Ok(Box::new(BufReader::new(std::io::stdin())));
    }
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(Box::new(BufReader::new(file)))
}

/// Reads the labelled prompts of files.
fn read_samples(paths: &[PathBuf]) -> anyhow::Result<Vec<Sample>> {
    let mut found = Vec::new();
    for path in paths {
        for (at, line) in open(path)?.lines().enumerate() {
            let line =
                line.with_context(|| format!("{}: cannot read line {}", path.display(), at + 1))?;
            if !line.trim().is_empty() {
                let sample = samples::read(at + 1, &line);
                found.push(sample.with_context(|| path.display().to_string())?);
            }
        }
    }
    Ok(found)
}

/// Reads the prompts of a file of lines {"id", "prompt"}.
pub fn read_prompts(path: &Path) -> anyhow::Result<Vec<String>> {
    let mut prompts = Vec::new();
    score::for_each(path, |row| {
        prompts.push(row.prompt);
        Ok(())
    })?;
    Ok(prompts)
}
