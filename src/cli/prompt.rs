//! `prompt`: what clean-up and pruning make of prompts of one's own.

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

/// Clean up and prune prompts of your own.
#[derive(Debug, Subcommand)]
pub enum PromptCommand {
    /// Clean texts up without loss: lines {"id", "text"} in, the same and token counts out
    #[command(long_about = CLEAN_ABOUT)]
    Clean(CleanArgs),
    /// Leave out context that a question does not need: lines {"id", "question", "context"} in
    #[command(long_about = PRUNE_ABOUT)]
    Prune(PruneArgs),
}

const CLEAN_ABOUT: &str = "\
Clean texts up without loss, as jobs with `context: lossless` are.

Reads lines {\"id\", \"text\"} and prints {\"id\", \"text\", \"tokens_before\", \"tokens_after\", \"kind\"}.
kind is what the text was taken for: html, json, markdown or text; code (it holds bare code) and
verbatim (it asks to quote, count, keep or reformat text) are left as they are.";

const PRUNE_ABOUT: &str = "\
Leave out context that a question does not need, as jobs with `context: prune` do.

Reads lines {\"id\", \"question\", \"context\": [paragraph, ...]}, where a paragraph is a text or an
object with text and, if it has one, title. Prints {\"id\", \"kept\": [paragraph, ...],
\"kept_indices\": [n, ...], \"tokens_before\", \"tokens_after\"}: kept holds the paragraphs that stay,
whole, as they were given and in their order; kept_indices says which they are, counted from 0.
Tokens are those of the context.";

/// Arguments of `prompt prune`.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// File of JSON lines with id, question and context; `-` is standard input
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// ModelRegistry or hub name of a BERT sentence encoder; without one words alone decide, and less is cut
    #[arg(long, value_name = "DIR|NAME")]
    embedder: Option<String>,
    #[command(flatten)]
    counter: CounterArgs,
}

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

/// A paragraph's text with its title, however it is given.
fn paragraph(entry: &Value) -> anyhow::Result<String> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str);
    match (entry.as_str(), text("title"), text("text")) {
        (Some(whole), _, _) => Ok(whole.to_owned()),
        (None, Some(title), Some(text)) => Ok(format!("{title}\n{text}")),
        (None, None, Some(text)) => Ok(text.to_owned()),
        (None, _, None) => anyhow::bail!("a paragraph is a text or an object with a text"),
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
