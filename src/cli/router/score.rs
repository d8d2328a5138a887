//! `router score`.

use std::{
    io::{BufRead, BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::routing::features::Features;

use super::{WeightsArg, open};

/// Arguments of `router score`.
#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// File of JSON lines with id and prompt, and tags if there are any; `-` is standard input
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    #[command(flatten)]
    weights: WeightsArg,
}

#[derive(Deserialize)]
struct Row {
    id: Value,
    prompt: String,
    #[serde(default)]
    tags: Vec<String>,
}

/// Runs `router score`.
pub fn score(args: &ScoreArgs) -> anyhow::Result<ExitCode> {
    let scorer = args.weights.open()?;
    let mut out = BufWriter::new(std::io::stdout());
    for (at, line) in open(&args.input)?.lines().enumerate() {
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
        let features =
            Features::of_text(&row.prompt).with_tags(row.tags.iter().map(String::as_str));
        let score = scorer.score(&features).gain;
        writeln!(out, "{}", json!({"id": row.id, "score": score}))?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
