//! `router calibrate`: fits confidence weights to labelled answers.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, anyhow};
use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    console::{
        jsonl::{Ids, each_text, parse_error},
        options::UsageError,
        output::replace_file,
        terminal::{eprint_line, print_line},
    },
    scoring::confidence::fit::{FitReport, LabelledAnswer, fit},
};

/// Fit the small model's confidence to answers known to be right or wrong
///
/// Prints how well the confidence detects wrong answers (AUC, on held-out answers), its calibration
/// error, and the threshold below which answers must be escalated so that the kept ones reach
/// --quality.
#[derive(Debug, Args)]
pub struct CalibrateArgs {
    /// JSON lines with "right" and "signals", as `run --labels` writes them; `-` is standard input
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Write the weights to a file, for worker.confidence
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Share of kept answers that must be right
    #[arg(long, default_value_t = 0.95, value_name = "0..1")]
    quality: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `router calibrate`.
pub fn calibrate(args: CalibrateArgs) -> anyhow::Result<ExitCode> {
    if !(0.0..=1.0).contains(&args.quality) {
        return Err(UsageError(format!("--quality {}: expected 0 to 1", args.quality)).into());
    }
    let rows = read(&args.from)?;
    let (confidence, report) = fit(&rows, args.quality)
        .with_context(|| format!("cannot calibrate from {}", args.from.display()))?;
    if let Some(path) = &args.out {
        replace_file(path, confidence.to_json().as_bytes())?;
    }
    if args.json {
        print_line(&serde_json::to_string(&report)?)?;
    } else {
        print_line(&to_text(&report))?;
        if args.out.is_none() {
            eprint_line("nothing written; use --out FILE to keep the weights");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> anyhow::Result<Vec<LabelledAnswer>> {
    #[derive(Deserialize)]
    struct LabelledLine {
        id: Option<Value>,
        #[serde(flatten)]
        answer: LabelledAnswer,
    }
    let (mut rows, mut ids) = (Vec::new(), Ids::default());
    each_text(path, |number, text| {
        let line: LabelledLine = serde_json::from_str(text).map_err(|error| {
            anyhow!(
                "line {number}: not a labelled answer: {}",
                parse_error(&error)
            )
        })?;
        if let Some(id) = &line.id {
            ids.add(number, id)?;
        }
        rows.push(line.answer);
        Ok(())
    })?;
    Ok(rows)
}

fn to_text(report: &FitReport) -> String {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let kept_right = report.kept_right.map_or("none".to_owned(), percent);
    [
        (
            "answers",
            format!("{}, {} right", report.rows, percent(report.right)),
        ),
        (
            "AUC",
            format!("{:.3} for \"the answer is wrong\"", report.auc),
        ),
        ("ECE", format!("{:.3}", report.ece)),
        (
            "threshold",
            format!(
                "{:.4}: below it answers are escalated",
                report.escalate_below
            ),
        ),
        (
            "kept",
            format!("{}, {kept_right} of them right", percent(report.kept)),
        ),
    ]
    .iter()
    .map(|(name, text)| format!("{name:>10}  {text}\n"))
    .collect::<String>()
    .trim_end()
    .to_owned()
}
