//! `prompt`: what clean-up and pruning make of prompts of one's own.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Value, json};

use super::jsonl::each_line;
use crate::prompt::{Specials, Vocabulary, clean::clean, estimate_tokens};

/// Clean up and prune prompts of your own.
#[derive(Debug, Subcommand)]
pub enum PromptCommand {
    /// Clean texts up without loss: lines {"id", "text"} in, the same and token counts out
    #[command(long_about = CLEAN_ABOUT)]
    Clean(CleanArgs),
}

const CLEAN_ABOUT: &str = "\
Clean texts up without loss, as jobs with `context: lossless` are.

Reads lines {\"id\", \"text\"} and prints {\"id\", \"text\", \"tokens_before\", \"tokens_after\", \"kind\"}.
kind is what the text was taken for: html, json, markdown or text; code (it holds bare code) and
verbatim (it asks to quote, count, keep or reformat text) are left as they are.";

/// Arguments of `prompt clean`.
#[derive(Debug, Args)]
pub struct CleanArgs {
    /// File of JSON lines with id and text; `-` is standard input
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    #[command(flatten)]
    counter: CounterArgs,
}

/// How tokens are counted.
#[derive(Debug, Args)]
struct CounterArgs {
    /// Count with this tokenizer.json; otherwise tokens are estimated
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
}

/// Counts tokens with a tokenizer, or estimates them.
struct Counter(Option<Vocabulary>);

impl Counter {
    fn open(args: &CounterArgs) -> anyhow::Result<Self> {
        let Some(path) = &args.tokenizer else {
            return Ok(Self(None));
        };
        let json =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self(Some(Vocabulary::from_json(&json)?)))
    }

    fn count(&self, text: &str) -> anyhow::Result<usize> {
        Ok(match &self.0 {
            Some(vocabulary) => vocabulary.count(text, Specials::Written)?,
            None => estimate_tokens(text),
        })
    }
}

/// Runs `prompt`.
pub fn prompt(command: PromptCommand) -> anyhow::Result<ExitCode> {
    match command {
        PromptCommand::Clean(args) => clean_lines(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Deserialize)]
struct TextRow {
    id: Value,
    text: String,
}

fn clean_lines(args: &CleanArgs) -> anyhow::Result<()> {
    let counter = Counter::open(&args.counter)?;
    each_line(
        &args.input,
        "an object with id and a string text",
        |row: TextRow| {
            let cleaned = clean(&row.text, "");
            Ok(json!({
                "id": row.id,
                "text": cleaned.text,
                "tokens_before": counter.count(&row.text)?,
                "tokens_after": counter.count(&cleaned.text)?,
                "kind": cleaned.kind.as_str(),
            }))
        },
    )
}
