//! `router calibrate`: labelled answers become confidence weights.

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
        jsonl::{Ids, each_text, said},
        options::{UsageError, complain, say},
    },
    scoring::confidence::fit::{LabelledAnswer, Report, fit},
};

/// Fit the small model's confidence to answers that are known to be right or wrong.
///
/// Prints how well the confidence tells wrong answers (AUC, on answers left out of the fit), how far
/// it is off (calibration error), and the threshold below which answers are to be escalated so
/// that those that are kept are right as often as wished.
#[derive(Debug, Args)]
pub struct CalibrateArgs {
    /// JSON lines with "right" and "signals", as `run --labels` writes them; `-` is standard input
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Write the weights here, for worker.confidence
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Share of the kept answers that is to be right
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
        write_whole(path, &confidence.to_json())?;
    }
    if args.json {
        say(&serde_json::to_string(&report)?)?;
    } else {
        say(&to_text(&report))?;
        if args.out.is_none() {
            complain("nothing was written: --out FILE keeps the weights");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> anyhow::Result<Vec<LabelledAnswer>> {
    #[derive(Deserialize)]
    struct Line {
        id: Option<Value>,
        #[serde(flatten)]
        answer: LabelledAnswer,
    }
    let (mut rows, mut ids) = (Vec::new(), Ids::default());
    each_text(path, |number, text| {
        let line: Line = serde_json::from_str(text)
            .map_err(|error| anyhow!("line {number}: no labelled answer: {}", said(&error)))?;
        if let Some(id) = &line.id {
            ids.add(number, id)?;
        }
        rows.push(line.answer);
        Ok(())
    })?;
    Ok(rows)
}

/// Puts a file in its place in one step, so that a worker never reads half of it.
fn write_whole(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    std::fs::write(&part, text)
        .and_then(|()| std::fs::rename(&part, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn to_text(report: &Report) -> String {
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
