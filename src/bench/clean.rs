//! `bench clean`: what clean-up that loses nothing takes off, and what it costs.

use std::{fs, hint::black_box, path::PathBuf, process::ExitCode, time::Instant};

use anyhow::Context;
use clap::Args;
use comfy_table::CellAlignment;
use serde_json::{Value, json};

use crate::{
    console::options::say,
    console::table::table,
    prompt::{
        clean::{Kind, clean},
        estimate_tokens,
    },
};

/// Arguments of `bench clean`.
#[derive(Debug, Args)]
pub struct CleanBenchArgs {
    /// Files to clean, each as a whole turn; by default a made-up pretty-printed JSON document
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Times each text is cleaned; the fastest counts, so that other processes do not.
const ROUNDS: usize = 9;

/// What one text came to.
struct Row {
    name: String,
    kind: Kind,
    before: usize,
    after: usize,
    /// Of a thousand tokens.
    millis: f64,
    /// Whether a JSON document says the same as before; `None` for other texts.
    same_values: Option<bool>,
}

/// Runs `bench clean`.
///
/// # Errors
/// When a file cannot be read as text.
pub fn bench_clean(args: &CleanBenchArgs) -> anyhow::Result<ExitCode> {
    let mut texts = Vec::new();
    for path in &args.files {
        let text = fs::read_to_string(path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        texts.push((path.display().to_string(), text));
    }
    if texts.is_empty() {
        texts.push(("made-up JSON".to_owned(), made_up()));
    }
    let rows: Vec<Row> = texts.into_iter().map(measure).collect();
    report(args, &rows)?;
    let is_whole = rows.iter().all(|row| row.same_values != Some(false));
    Ok(ExitCode::from(u8::from(!is_whole)))
}

fn measure((name, text): (String, String)) -> Row {
    let cleaned = clean(&text, "");
    let times = (0..ROUNDS).map(|_| {
        let begun = Instant::now();
        black_box(clean(black_box(&text), ""));
        begun.elapsed().as_secs_f64()
    });
    let fastest = times.fold(f64::INFINITY, f64::min);
    let before = estimate_tokens(&text);
    let document = serde_json::from_str::<Value>(&text).ok();
    Row {
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

/// Two hundred orders, as a shop's interface prints them for people.
fn made_up() -> String {
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

fn report(args: &CleanBenchArgs, rows: &[Row]) -> anyhow::Result<()> {
    let cut = |row: &Row| 100.0 * (1.0 - row.after as f64 / row.before.max(1) as f64);
    if args.json {
        let rows: Vec<Value> = rows
            .iter()
            .map(|row| {
                json!({
                    "text": row.name,
                    "kind": row.kind.as_str(),
                    "tokens_before": row.before,
                    "tokens_after": row.after,
                    "cut_percent": cut(row),
                    "ms_per_1000_tokens": row.millis,
                    "same_values": row.same_values,
                })
            })
            .collect();
        say(&Value::from(rows).to_string())?;
        return Ok(());
    }
    let mut shown = table(&["TEXT", "KIND", "TOKENS", "CUT", "MS/1000", "VALUES"]);
    for row in rows {
        shown.add_row([
            row.name.clone(),
            row.kind.as_str().to_owned(),
            row.before.to_string(),
            format!("{:.1} %", cut(row)),
            format!("{:.3}", row.millis),
            match row.same_values {
                Some(true) => "the same".to_owned(),
                Some(false) => "CHANGED".to_owned(),
                None => String::new(),
            },
        ]);
    }
    for column in shown.column_iter_mut().skip(2).take(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    say(&shown.to_string())?;
    Ok(())
}
