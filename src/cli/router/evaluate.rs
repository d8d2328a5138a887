//! `router evaluate`: the scorer's quality on labelled prompts.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::{
    console::terminal::print_line,
    scoring::{
        cross_validation::{self, Split},
        evaluate::{self, DISTRIBUTION, EvaluateError, RankingReport, ScoredPrompt},
        sample::Sample,
        samples,
        train::Recipe,
    },
};

use super::{labelled::read_labelled, weights::WeightsArg};

/// Evaluate scores on labelled prompts: APGR, CPT, AUC, calibration, distribution
///
/// Lines have prompt, weak_score and strong_score (0 to 1), and optionally set, domain, tags and
/// propensity: a line labelled with that probability weighs its inverse, 100 at most, so that the
/// figures stand for all jobs. APGR and CPT are RouteLLM's; the exact ones use every score as a
/// threshold. `length` is the exact APGR of ranking by length alone, `AUC` is for prompts on which the
/// large model is better, `fails` for those that the small one fails, `ECE` the calibration error of
/// the expected gain. --cv and --leave-out evaluate weights fitted to the other prompts instead of
/// existing weights.
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// File of labelled prompts, `-` for standard input, or a job database (sqlite:PATH or
    /// postgres://…), for the jobs that both tiers answered (repeatable)
    #[arg(long, value_name = "FILE|URL", required = true)]
    input: Vec<String>,
    #[command(flatten)]
    weights: WeightsArg,
    /// Print one row for each of these
    #[arg(long, value_enum, default_value_t = By::Set)]
    by: By,
    /// Evaluate by cross-validation with this many folds
    #[arg(long, value_name = "FOLDS", conflicts_with_all = ["weights", "leave_out"], value_parser = clap::value_parser!(u64).range(2..=100))]
    cv: Option<u64>,
    /// Evaluate with whole domains or sets held out
    #[arg(long, value_enum, conflicts_with = "weights")]
    leave_out: Option<LeaveOut>,
    /// Seed of the folds
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print JSON, one line per row
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    All,
    Set,
    Domain,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LeaveOut {
    Domains,
    Sets,
}

/// Runs `router evaluate`.
pub async fn evaluate(args: &EvaluateArgs) -> anyhow::Result<ExitCode> {
    let samples = read_labelled(&args.input).await?.samples;
    if samples.is_empty() {
        return Err(EvaluateError::Empty.into());
    }
    let all: Vec<&Sample> = samples.iter().collect();
    let split = match (args.cv, args.leave_out) {
        (Some(folds), _) => Some(Split::Folds(folds)),
        (None, Some(LeaveOut::Domains)) => Some(Split::Domains),
        (None, Some(LeaveOut::Sets)) => Some(Split::Sets),
        (None, None) => None,
    };
    let judged = match split {
        Some(split) => cross_validation::cross_validate(&all, split, args.seed, &Recipe::default())
            .context("with part of the prompts held out")?,
        None => cross_validation::score_samples(args.weights.open()?.weights(), &all),
    };
    let groups = samples::by(&all, |sample| match args.by {
        By::All => "all".to_owned(),
        By::Set => sample.set.clone(),
        By::Domain => format!("{}/{}", sample.set, sample.domain),
    });
    if !args.json {
        print_line(&format!(
            "{:<32} {:>6} {:>6} {:>6}  {:>6} {:>6} {:>6}  {:>6} {:>6} {:>6}  {:>6}  {:>6} {:>6} {:>6}",
            "",
            "n",
            "weak",
            "strong",
            "APGR",
            "CPT50",
            "CPT80",
            "exact",
            "CPT50",
            "CPT80",
            "length",
            "AUC",
            "fails",
            "ECE",
        ))?;
    }
    let mut last_error = None;
    let mut evaluated = 0;
    for (name, places) in groups {
        let rows: Vec<ScoredPrompt> = places.iter().map(|at| judged[*at]).collect();
        let by_length: Vec<ScoredPrompt> = places
            .iter()
            .map(|at| ScoredPrompt {
                score: f64::from(all[*at].features.counts.length),
                ..judged[*at]
            })
            .collect();
        match (evaluate::evaluate(&rows), evaluate::evaluate(&by_length)) {
            (Ok(report), Ok(length)) => {
                evaluated += 1;
                if args.json {
                    print_line(&as_json(&name, &report, &length).to_string())?;
                } else {
                    show(&name, &report, &length)?;
                }
            }
            // An error of one group does not affect the others.
            (Err(error), _) | (_, Err(error)) => {
                last_error = Some(error);
                print_line(&if args.json {
                    json!({"name": name, "n": rows.len(), "error": error.to_string()}).to_string()
                } else {
                    format!("{name:<32} {:>6} {error}", rows.len())
                })?;
            }
        }
    }
    match last_error {
        Some(error) if evaluated == 0 => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn show(name: &str, report: &RankingReport, length: &RankingReport) -> anyhow::Result<()> {
    let RankingReport { deciles, exact, .. } = report;
    print_line(&format!(
        "{name:<32} {:>6} {:>6.2} {:>6.2}  {:>6.4} {:>6.2} {:>6.2}  {:>6.4} {:>6.2} {:>6.2}  {:>6.4}  {:>6} {:>6} {:>6}",
        report.prompts,
        report.weak,
        report.strong,
        deciles.apgr,
        deciles.cpt50,
        deciles.cpt80,
        exact.apgr,
        exact.cpt50,
        exact.cpt80,
        length.exact.apgr,
        figure(report.auc_helps),
        figure(report.auc_small_fails),
        report.calibration_error.map_or("-".to_owned(), figure),
    ))?;
    let levels: Vec<String> = DISTRIBUTION
        .iter()
        .zip(report.distribution)
        .map(|(share, score)| format!("p{:.0} {score:.3}", share * 100.0))
        .collect();
    let (levels, distinct) = (levels.join(", "), report.distinct);
    Ok(print_line(&format!(
        "    scores: {levels}; {distinct} distinct"
    ))?)
}

/// A figure, or `-` if it is undefined: an AUC needs both kinds of prompts.
fn figure(value: f64) -> String {
    if value.is_nan() {
        "-".to_owned()
    } else {
        format!("{value:.3}")
    }
}

fn as_json(name: &str, report: &RankingReport, length: &RankingReport) -> Value {
    let RankingReport { deciles, exact, .. } = report;
    json!({
        "name": name, "n": report.prompts, "weak": report.weak, "strong": report.strong,
        "apgr": deciles.apgr, "cpt50": deciles.cpt50, "cpt80": deciles.cpt80,
        "exact_apgr": exact.apgr, "exact_cpt50": exact.cpt50, "exact_cpt80": exact.cpt80,
        "length_exact_apgr": length.exact.apgr,
        "auc_helps": report.auc_helps, "auc_small_fails": report.auc_small_fails,
        "calibration_error": report.calibration_error,
        "distribution": report.distribution, "distinct": report.distinct,
    })
}
