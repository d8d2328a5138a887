//! `bench clean`: how much lossless clean-up removes, and how long it takes.

use std::{fs, hint::black_box, path::PathBuf, process::ExitCode, time::Instant};

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use crate::prompt::{
    clean::{Kind, clean},
    estimate_tokens,
};

use super::report::{percent, print, table};

/// Arguments of `bench clean`.
#[derive(Debug, Args)]
pub struct CleanBenchArgs {
    /// Files to clean, each as one message [default: a generated pretty-printed JSON document]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Repetitions per text; the fastest counts, to exclude other processes.
const ROUNDS: usize = 9;

/// The result for one text.
struct CleanResult {
    name: String,
    kind: Kind,
    before: usize,
    after: usize,
    /// Milliseconds per thousand tokens.
    millis: f64,
    /// Whether a JSON document still has the same values; `None` for other texts.
    same_values: Option<bool>,
}

/// Runs `bench clean`.
///
/// # Errors
/// When a file cannot be read as text.
pub(super) fn bench_clean(args: &CleanBenchArgs) -> anyhow::Result<ExitCode> {
    let mut texts = Vec::new();
    for path in &args.files {
        let text = fs::read_to_string(path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        texts.push((path.display().to_string(), text));
    }
    if texts.is_empty() {
        texts.push(("generated JSON".to_owned(), sample()));
    }
    let rows: Vec<CleanResult> = texts.into_iter().map(measure).collect();
    report(args, &rows)?;
    let is_whole = rows.iter().all(|row| row.same_values != Some(false));
    Ok(ExitCode::from(u8::from(!is_whole)))
}

fn measure((name, text): (String, String)) -> CleanResult {
    let cleaned = clean(&text, "");
    let times = (0..ROUNDS).map(|_| {
        let begun = Instant::now();
        black_box(clean(black_box(&text), ""));
        begun.elapsed().as_secs_f64()
    });
    let fastest = times.fold(f64::INFINITY, f64::min);
    let before = estimate_tokens(&text);
    let document = serde_json::from_str::<Value>(&text).ok();
    CleanResult {
        name,
        kind: cleaned.kind,
        before,
        after: estimate_tokens(&cleaned.text),
        millis: 1e3 * fastest / (before.max(1) as f64 / 1e3),
        same_values: document.map(|before| {
            serde_json::from_str::<Value>(&cleaned.text).is_ok_and(|after| after == before)
        }),
    }
}

/// Two hundred orders of a shop, pretty-printed.
fn sample() -> String {
    let order = |at: usize| {
        json!({
            "id": format!("A{at:04}"),
            "customer": {"name": format!("Customer {at}"), "email": format!("c{at}@mail.example"), "since": 2000 + at % 26},
            "items": [{"name": "lamp", "price": 12.5 + at as f64, "count": at % 5 + 1}, {"name": "rug \"round\"", "price": 1e3, "count": 1}],
            "paid": at.is_multiple_of(2),
            "note": if at.is_multiple_of(3) { Value::Null } else { json!("leave it  at the door\n") },
        })
    };
    let orders: Vec<Value> = (0..200).map(order).collect();
    serde_json::to_string_pretty(&orders).unwrap_or_default()
}

fn report(args: &CleanBenchArgs, rows: &[CleanResult]) -> anyhow::Result<()> {
    let cut = |row: &CleanResult| 1.0 - row.after as f64 / row.before.max(1) as f64;
    let json = || {
        rows.iter()
            .map(|row| {
                json!({
                    "text": row.name,
                    "kind": row.kind.as_str(),
                    "tokens_before": row.before,
                    "tokens_after": row.after,
                    "cut_percent": 100.0 * cut(row),
                    "ms_per_1000_tokens": row.millis,
                    "same_values": row.same_values,
                })
            })
            .collect()
    };
    let text = || {
        let rows = rows.iter().map(|row| {
            [
                row.name.clone(),
                row.kind.as_str().to_owned(),
                row.before.to_string(),
                percent(cut(row)),
                format!("{:.3}", row.millis),
                match row.same_values {
                    Some(true) => "unchanged".to_owned(),
                    Some(false) => "CHANGED".to_owned(),
                    None => String::new(),
                },
            ]
        });
        table(["TEXT", "KIND", "TOKENS", "CUT", "MS/1000", "VALUES"], rows)
    };
    print(args.json, json, text)?;
    Ok(())
}
