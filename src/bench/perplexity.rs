//! `bench perplexity`: the quality that reduced-precision weights cost, on given text.

use std::{fs, ops::Range, path::PathBuf, process::ExitCode};

use anyhow::{Context, anyhow, bail, ensure};
use chrono::Local;
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    config::WeightKind,
    console::jsonl::read_lines,
    engine::local::{CpuModel, ModelFiles},
    job::{Message, Role},
    prompt::{ChatTemplate, Specials, Vocabulary},
};

use super::report::{print, table};

/// Default window length in tokens, if the model's context allows it.
const WINDOW_TOKENS: usize = 512;

/// Arguments of `bench perplexity`.
#[derive(Debug, Args)]
pub struct PerplexityArgs {
    /// Hugging Face directory of the model
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Text to predict: a .txt file is one document; each line of a .jsonl file is {"text": …}, or
    /// {"messages": […]}, whose last message, the assistant's, is predicted
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Weight formats to compare with f32
    #[arg(long, value_delimiter = ',', default_value = "f32,bf16")]
    weights: Vec<WeightKind>,
    /// Tokens computed together [default: 512, or the model's context if that is shorter]
    #[arg(long)]
    window_tokens: Option<usize>,
    /// Distance between the starts of two windows in tokens; their overlap is context for the later
    /// one [default: half a window]
    #[arg(long)]
    stride_tokens: Option<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A line of the .jsonl file.
#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum TextLine {
    Text { text: String },
    Conversation { messages: Vec<Message> },
}

/// Tokens to predict.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TokenizedDocument {
    tokens: Vec<u32>,
    /// The first token that counts; those before are context.
    scored_from: usize,
}

/// A part of a document that is computed at once.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ScoredSpan {
    tokens: Range<usize>,
    /// The first position of the document that this span predicts.
    scored_from: usize,
}

/// The predictions of one weight format over all documents.
#[derive(Debug, Default)]
struct Predictions {
    /// Sum of the actual tokens' negative log-probabilities.
    surprise: f64,
    /// The most likely token at each position that counts.
    likeliest: Vec<u32>,
}

impl Predictions {
    /// Adds the logits of one position and the token that follows.
    fn add(&mut self, logits: &[f32], token: u32) {
        let mut best = 0;
        for (at, logit) in logits.iter().enumerate() {
            if *logit > logits[best] {
                best = at;
            }
        }
        let most = f64::from(logits[best]);
        let sum: f64 = logits
            .iter()
            .map(|logit| (f64::from(*logit) - most).exp())
            .sum();
        self.surprise += most + sum.ln() - f64::from(logits[token as usize]);
        self.likeliest.push(best as u32);
    }

    fn perplexity(&self) -> f64 {
        (self.surprise / self.likeliest.len() as f64).exp()
    }

    /// Positions at which the most likely token differs from the reference's.
    fn flips(&self, reference: &Self) -> usize {
        let pairs = self.likeliest.iter().zip(&reference.likeliest);
        pairs.filter(|(ours, theirs)| ours != theirs).count()
    }
}

/// Runs `bench perplexity`.
pub(super) fn bench_perplexity(args: &PerplexityArgs) -> anyhow::Result<ExitCode> {
    let files = ModelFiles::Directory(args.model.clone());
    let open = |kind| {
        CpuModel::read(&files, 0, kind)
            .map_err(|error| anyhow!("cannot open {}: {error}", args.model.display()))
    };
    let mut model = open(WeightKind::F32)?;
    let documents = read_documents(args, &files)?;
    let (window, stride) = window_and_stride(args, model.context_tokens())?;
    let reference = measure(&model, &documents, window, stride)?;
    ensure!(
        !reference.likeliest.is_empty(),
        "{} has no token to predict",
        args.text.display()
    );
    let mut results = Vec::new();
    for kind in &args.weights {
        if *kind != WeightKind::F32 {
            model = open(*kind)?;
            results.push((*kind, measure(&model, &documents, window, stride)?));
        }
    }
    let head = json!({
        "model": args.model.display().to_string(),
        "text": args.text.display().to_string(),
        "documents": documents.len(),
        "tokens": reference.likeliest.len(),
        "window_tokens": window,
        "stride_tokens": stride,
    });
    results.insert(0, (WeightKind::F32, reference));
    report(args.json, head, &results)
}

fn window_and_stride(
    args: &PerplexityArgs,
    context_tokens: usize,
) -> anyhow::Result<(usize, usize)> {
    let window = args
        .window_tokens
        .unwrap_or(WINDOW_TOKENS.min(context_tokens));
    let stride = args.stride_tokens.unwrap_or(window / 2);
    ensure!(
        (2..=context_tokens).contains(&window),
        "--window-tokens is {window}; expected 2 to {context_tokens}, the model's context"
    );
    ensure!(
        (1..window).contains(&stride),
        "--stride-tokens is {stride}; expected 1 to {}, less than a window",
        window - 1
    );
    Ok((window, stride))
}

fn read_documents(
    args: &PerplexityArgs,
    files: &ModelFiles,
) -> anyhow::Result<Vec<TokenizedDocument>> {
    let language = |error: String| anyhow!("cannot open {}: {error}", args.model.display());
    let vocabulary = files.require("tokenizer.json").map_err(language)?;
    let vocabulary = Vocabulary::from_json(&vocabulary)?;
    let template = ChatTemplate::from_files(
        files
            .read("tokenizer_config.json")
            .map_err(language)?
            .as_deref(),
        files
            .read("chat_template.jinja")
            .map_err(language)?
            .as_deref(),
    )?;
    let plain = |text: &str| -> anyhow::Result<TokenizedDocument> {
        Ok(TokenizedDocument {
            tokens: vocabulary.encode(text, Specials::Add)?,
            // Nothing predicts the first token.
            scored_from: 1,
        })
    };
    if args.text.extension().is_none_or(|kind| kind != "jsonl") {
        let text = fs::read_to_string(&args.text)
            .with_context(|| format!("cannot read {}", args.text.display()))?;
        return Ok(vec![plain(&text)?]);
    }
    let mut documents = Vec::new();
    let expected = "{\"text\": …} or {\"messages\": […]}";
    read_lines(&args.text, expected, |line: TextLine| {
        documents.push(match line {
            TextLine::Text { text } => plain(&text)?,
            TextLine::Conversation { messages } => conversation(&vocabulary, &template, &messages)?,
        });
        Ok(())
    })?;
    Ok(documents)
}

/// A conversation in the model's chat template; only the last answer counts.
fn conversation(
    vocabulary: &Vocabulary,
    template: &ChatTemplate,
    messages: &[Message],
) -> anyhow::Result<TokenizedDocument> {
    let Some((last, before)) = messages.split_last() else {
        bail!("there are no messages");
    };
    ensure!(
        last.role == Role::Assistant,
        "the last message is the {}'s; expected the assistant's",
        last.role.as_str()
    );
    let now = Local::now().naive_local();
    let prompt = template.render_at(before, true, now)?;
    let whole = template.render_at(messages, false, now)?;
    let answer = whole.strip_prefix(&prompt).context(
        "the chat template renders the conversation differently with the answer than without it",
    )?;
    let mut tokens = vocabulary.encode(&prompt, template.specials())?;
    let scored_from = tokens.len().max(1);
    tokens.extend(vocabulary.encode(answer, Specials::Written)?);
    Ok(TokenizedDocument {
        tokens,
        scored_from,
    })
}

/// Spans that together predict each token that counts once, all but the first with at least
/// `window - stride` tokens of context.
fn spans(document: &TokenizedDocument, window: usize, stride: usize) -> Vec<ScoredSpan> {
    let (length, mut scored_from) = (document.tokens.len(), document.scored_from);
    let mut spans = Vec::new();
    for begin in (0..length).step_by(stride) {
        let end = length.min(begin + window);
        if scored_from < end {
            spans.push(ScoredSpan {
                tokens: begin..end,
                scored_from,
            });
            scored_from = end;
        }
        if end == length {
            break;
        }
    }
    spans
}

fn measure(
    model: &CpuModel,
    documents: &[TokenizedDocument],
    window: usize,
    stride: usize,
) -> anyhow::Result<Predictions> {
    let mut predictions = Predictions::default();
    for document in documents {
        for span in spans(document, window, stride) {
            let tokens = &document.tokens[span.tokens.clone()];
            let logits = model.logits(tokens).map_err(|error| anyhow!(error))?;
            // The row of a token predicts the next one.
            let first = span.scored_from - span.tokens.start;
            for (row, token) in logits.rows().skip(first - 1).zip(&tokens[first..]) {
                predictions.add(row, *token);
            }
        }
    }
    Ok(predictions)
}

/// Prints each format's perplexity beside that of the first, the reference.
fn report(
    as_json: bool,
    mut head: Value,
    results: &[(WeightKind, Predictions)],
) -> anyhow::Result<ExitCode> {
    let (_, reference) = &results[0];
    let positions = reference.likeliest.len() as f64;
    let over = |predictions: &Predictions| predictions.perplexity() / reference.perplexity() - 1.0;
    if as_json {
        let lines = results.iter().map(|(kind, predictions)| {
            json!({
                "weights": kind.to_string(),
                "perplexity": predictions.perplexity(),
                "perplexity_over_f32": over(predictions),
                "flips": predictions.flips(reference),
                "flip_share": predictions.flips(reference) as f64 / positions,
            })
        });
        head["weights"] = lines.collect();
    }
    let rows = results.iter().map(|(kind, predictions)| {
        [
            kind.to_string(),
            format!("{:.5}", predictions.perplexity()),
            format!("{:+.3} %", 100.0 * over(predictions)),
            predictions.flips(reference).to_string(),
            format!(
                "{:.3} %",
                100.0 * predictions.flips(reference) as f64 / positions
            ),
        ]
    });
    let header = ["weights", "perplexity", "over f32", "argmax flips", "share"];
    let text = || {
        format!(
            "{} tokens predicted in {} documents, windows of {} tokens every {}\n{}",
            head["tokens"],
            head["documents"],
            head["window_tokens"],
            head["stride_tokens"],
            table(header, rows)
        )
    };
    print(as_json, || head.clone(), text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::bench::perplexity::*;

    /// Three tokens with probabilities 1/2, 1/4 and 1/4.
    const LOGITS: [f32; 3] = [0.0, -std::f32::consts::LN_2, -std::f32::consts::LN_2];

    #[test]
    fn perplexity_is_the_inverse_of_the_mean_probability() {
        let mut predictions = Predictions::default();
        predictions.add(&LOGITS, 0);
        assert!((predictions.perplexity() - 2.0).abs() < 1e-6);
        predictions.add(&LOGITS, 2);
        // The geometric mean of 2 and 4.
        assert!((predictions.perplexity() - 8.0f64.sqrt()).abs() < 1e-6);
        // A constant added to all logits changes nothing.
        let mut shifted = Predictions::default();
        shifted.add(&LOGITS.map(|logit| logit + 300.0), 0);
        assert!((shifted.perplexity() - 2.0).abs() < 1e-4);
    }

    #[test]
    fn a_flip_is_a_different_most_likely_token() {
        let (mut ours, mut theirs) = (Predictions::default(), Predictions::default());
        for (left, right) in [
            ([3.0, 2.0], [3.1, 1.9]),
            ([3.0, 2.0], [2.0, 3.0]),
            ([1.0, 1.0], [1.0, 1.0]),
        ] {
            ours.add(&left, 0);
            theirs.add(&right, 0);
        }
        assert_eq!(ours.flips(&theirs), 1);
        assert_eq!(ours.flips(&ours), 0);
    }

    proptest! {
        /// For all sizes, each token that counts is predicted once, in order, with context.
        #[test]
        fn spans_predict_each_token_once(
            length in 0usize..200,
            first in 1usize..200,
            window in 2usize..50,
            stride in 1usize..50,
        ) {
            let stride = stride.min(window - 1);
            let document = TokenizedDocument {
                tokens: vec![0; length],
                scored_from: first,
            };
            let mut next = first;
            for span in spans(&document, window, stride) {
                prop_assert!(span.tokens.len() <= window && span.tokens.end <= length);
                prop_assert_eq!(span.scored_from, next);
                prop_assert!(span.tokens.contains(&span.scored_from));
                let context = span.scored_from - span.tokens.start;
                prop_assert!(context >= 1);
                prop_assert!(span.tokens.start == 0 || context >= window - stride);
                next = span.tokens.end;
            }
            prop_assert_eq!(next.max(first), length.max(first));
        }
    }
}
