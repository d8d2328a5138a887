//! `router score`: the router's judgement of prompts of one's own.

use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::routing::{features::Features, scorer::Scorer};

use super::{
    explain::{ExplainArgs, explain},
    pairs::{PairsArgs, pairs},
    promote::{PromoteArgs, promote},
    simulate::{SimulateArgs, simulate},
};

/// Judge the router on prompts of your own.
#[derive(Debug, Subcommand)]
pub enum RouterCommand {
    /// Score prompts: lines {"id", "prompt"} in, lines {"id", "score"} out, higher for large
    Score(ScoreArgs),
    /// Tell why a job went to its tier, and what the other one would have cost
    Explain(ExplainArgs),
    /// Tell what a target would deliver on prompts of your own
    Simulate(SimulateArgs),
    /// Print what both tiers made of prompts, as the ledger knows it: lines to train on
    Pairs(PairsArgs),
    /// Put weights in the ledger, from which routers take them without a restart
    Promote(PromoteArgs),
}

/// Arguments of `router score`.
#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// File of JSON lines with id and prompt; `-` is standard input
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
}

#[derive(Deserialize)]
struct Row {
    id: Value,
    prompt: String,
}

/// Runs `router`.
pub async fn router(command: RouterCommand) -> anyhow::Result<ExitCode> {
    match command {
        RouterCommand::Score(args) => score(&args),
        RouterCommand::Explain(args) => explain(args).await,
        RouterCommand::Simulate(args) => simulate(&args),
        RouterCommand::Pairs(args) => pairs(args).await,
        RouterCommand::Promote(args) => promote(args).await,
    }
}

fn score(args: &ScoreArgs) -> anyhow::Result<ExitCode> {
    let reader: Box<dyn BufRead> = if args.input == Path::new("-") {
        Box::new(BufReader::new(std::io::stdin()))
    } else {
        let file = File::open(&args.input)
            .with_context(|| format!("cannot open {}", args.input.display()))?;
        Box::new(BufReader::new(file))
    };
    let scorer = Scorer::bundled();
    let mut out = BufWriter::new(std::io::stdout());
    for (at, line) in reader.lines().enumerate() {
        let line = line.with_context(|| format!("cannot read line {}", at + 1))?;
        if line.trim().is_empty() {
            continue;
        }
        let row: Row = serde_json::from_str(&line).with_context(|| {
            format!(
                "line {}: expected an object with id and a string prompt",
                at + 1
            )
        })?;
        let score = scorer.score(&Features::of_text(&row.prompt)).gain;
        writeln!(out, "{}", json!({"id": row.id, "score": score}))?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
