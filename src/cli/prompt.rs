//! `prompt`: tests clean-up and pruning on given prompts.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    console::jsonl::each_line,
    engine::Embedder,
    prompt::{
        Specials, Vocabulary,
        clean::clean,
        estimate_tokens,
        prune::{self, Similarity},
    },
};

/// Test prompt clean-up and context pruning
#[derive(Debug, Subcommand)]
pub enum PromptCommand {
    /// Clean up texts without loss: lines {"id", "text"} in, the same with token counts out
    #[command(long_about = CLEAN_ABOUT)]
    Clean(CleanArgs),
    /// Remove context that a question does not need: lines {"id", "question", "context"} in
    #[command(long_about = PRUNE_ABOUT)]
    Prune(PruneArgs),
}

const CLEAN_ABOUT: &str = "\
Clean up texts without loss, as for jobs with `context: lossless`

Reads lines {\"id\", \"text\"} and prints {\"id\", \"text\", \"tokens_before\", \"tokens_after\", \"kind\"}.
kind is the detected format: html, json, markdown or text. Texts of kind code (bare code) and
verbatim (asks to quote, count, keep or reformat text) are left unchanged.";

const PRUNE_ABOUT: &str = "\
Remove context that a question does not need, as for jobs with `context: prune`

Reads lines {\"id\", \"question\", \"context\": [paragraph, ...]}; a paragraph is a string or an
object with text and optionally title. Prints {\"id\", \"kept\": [paragraph, ...],
\"kept_indices\": [n, ...], \"tokens_before\", \"tokens_after\"}. kept has the remaining paragraphs,
unchanged and in order; kept_indices has their positions, from 0. The token counts are those of the
context.";

/// Arguments of `prompt prune`.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// File of JSON lines with id, question and context; `-` for standard input
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Directory or hub name of a BERT sentence encoder; without one only words are compared, and less is cut
    #[arg(long, value_name = "DIR|NAME")]
    embedder: Option<String>,
    #[command(flatten)]
    counter: CounterArgs,
}

/// Arguments of `prompt clean`.
#[derive(Debug, Args)]
pub struct CleanArgs {
    /// File of JSON lines with id and text; `-` for standard input
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    #[command(flatten)]
    counter: CounterArgs,
}

/// How tokens are counted.
#[derive(Debug, Args)]
struct CounterArgs {
    /// Count tokens with this tokenizer.json [default: estimate]
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
        PromptCommand::Prune(args) => prune_lines(&args)?,
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

#[derive(Deserialize)]
struct ContextRow {
    id: Value,
    question: String,
    context: Vec<Value>,
}

/// A paragraph's text, after its title if it has one.
fn paragraph(entry: &Value) -> anyhow::Result<String> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str);
    match (entry.as_str(), text("title"), text("text")) {
        (Some(whole), _, _) => Ok(whole.to_owned()),
        (None, Some(title), Some(text)) => Ok(format!("{title}\n{text}")),
        (None, None, Some(text)) => Ok(text.to_owned()),
        (None, _, None) => {
            anyhow::bail!("expected a paragraph to be a string or an object with text")
        }
    }
}

fn prune_lines(args: &PruneArgs) -> anyhow::Result<()> {
    let counter = Counter::open(&args.counter)?;
    let embedder = args.embedder.as_deref().map(Embedder::open).transpose()?;
    let similarity = embedder
        .as_ref()
        .map(|embedder| embedder as &dyn Similarity);
    each_line(
        &args.input,
        "an object with id, a string question and a list context",
        |row: ContextRow| {
            let texts: Vec<String> = row
                .context
                .iter()
                .map(paragraph)
                .collect::<Result<_, _>>()?;
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let kept = prune::keep(&row.question, &texts, similarity);
            let count = |indices: &mut dyn Iterator<Item = usize>| -> anyhow::Result<usize> {
                let mut tokens = 0;
                for at in indices {
                    tokens += counter.count(texts[at])?;
                }
                Ok(tokens)
            };
            Ok(json!({
                "id": row.id,
                "kept": kept.iter().map(|at| &row.context[*at]).collect::<Vec<_>>(),
                "kept_indices": kept,
                "tokens_before": count(&mut (0..texts.len()))?,
                "tokens_after": count(&mut kept.iter().copied())?,
            }))
        },
    )
}
