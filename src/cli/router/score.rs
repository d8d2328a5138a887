//! `router score`.

use std::{
    io::{BufRead, BufWriter, Write},
    path::{Path, PathBuf},
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

/// A line of the input.
#[derive(Deserialize)]
pub struct Row {
    id: Value,
    /// The prompt.
    pub prompt: String,
    #[serde(default)]
    tags: Vec<String>,
}

/// Runs `router score`.
pub fn score(args: &ScoreArgs) -> anyhow::Result<ExitCode> {
    let scorer = args.weights.open()?;
    let mut out = BufWriter::new(std::io::stdout());
    for_each(&args.input, |row| {
        let tags = row.tags.iter().map(String::as_str);
        let score = scorer.score(&Features::of_text(&row.prompt).with_tags(tags));
        writeln!(out, "{}", json!({"id": row.id, "score": score.gain}))?;
        Ok(())
    })?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Does something with every line of a file.
pub fn for_each(path: &Path, mut act: impl FnMut(Row) -> anyhow::Result<()>) -> anyhow::Result<()> {
    for (at, line) in open(path)?.lines().enumerate() {
        let line = line.with_context(|| format!("cannot read line {}", at + 1))?;
        if line.trim().is_empty() {
            continue;
        }
        let row = serde_json::from_str(&line).with_context(|| {
            format!(
                "line {}: expected an object with id and a string prompt",
                at + 1
            )
        })?;
        act(row)?;
    }
    Ok(())
}
