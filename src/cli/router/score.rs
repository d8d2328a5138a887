//! `router score`: scores of prompts.

use std::{
    io::{BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;
use serde_json::json;

use crate::{console::prompts::for_each, scoring::features::Features};

use super::weights::WeightsArg;

/// Arguments of `router score`.
#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// File of JSON lines with id, prompt and optionally tags; `-` for standard input
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    #[command(flatten)]
    weights: WeightsArg,
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
