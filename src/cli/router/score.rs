//! `router score`.

use std::{
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::routing::features::Features;

use super::{
    super::jsonl::{Ids, each_text},
    WeightsArg,
};

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
pub struct Row {
    id: Value,
    /// The prompt.
    pub prompt: String,
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

/// Does something with every line of a file; a file without lines is a fault.
pub fn for_each(path: &Path, mut act: impl FnMut(Row) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut ids = Ids::default();
    let mut is_empty = true;
    each_text(path, |number, line| {
        let row = read(line).with_context(|| format!("line {number}"))?;
        ids.add(number, &row.id)?;
        is_empty = false;
        act(row)
    })?;
    ensure!(!is_empty, "{}: there are no prompts in it", path.display());
    Ok(())
}

/// Reads a line. What is wrong is told by field and kind: a value may be a prompt.
fn read(line: &str) -> anyhow::Result<Row> {
    const EXPECTED: &str = "expected an object with id and a string prompt";
    let row: Value = serde_json::from_str(line)
        .ok()
        .with_context(|| format!("{EXPECTED}: it is not valid JSON"))?;
    let id = row
        .get("id")
        .with_context(|| format!("{EXPECTED}: there is no id"))?;
    let prompt = row.get("prompt").and_then(Value::as_str);
    let tags = row.get("tags").map_or(Some(Vec::new()), |tags| {
        let tags = tags.as_array()?.iter();
        tags.map(|tag| tag.as_str().map(str::to_owned)).collect()
    });
    Ok(Row {
        id: id.clone(),
        prompt: prompt
            .with_context(|| format!("{EXPECTED}: there is no such prompt"))?
            .to_owned(),
        tags: tags.context("expected tags to be a list of strings")?,
    })
}
