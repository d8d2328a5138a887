//! `router train`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;

use crate::{
    cli::options::{complain, say},
    routing::{
        codec,
        evaluate::{self, Judged},
        judge::{self, Split},
        samples,
        scorer::Scorer,
        train::{self, Recipe, Sample},
    },
    store::StoredWeights,
};

use super::{in_use, read_labelled};

/// Fit the scorer to labelled prompts
///
/// A line holds prompt, weak_score and strong_score (0 to 1), and may hold set, domain, tags and
/// propensity: a row whose labels were collected by chance counts one over its probability (100 at
/// most), so that it stands for those that were not collected. The new weights are written only if,
/// with whole domains held out, they rank at least as well as the present ones: the mean over the
/// sets of the exact APGR. Where there is only one domain, five folds take the domains' place.
/// Routers go on with theirs until `router promote`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// File of labelled prompts, `-` for standard input, or a ledger's URL (sqlite:PATH or
    /// postgres://…) for the jobs that both tiers answered; may be given again
    #[arg(long, value_name = "FILE|URL", required = true)]
    from: Vec<String>,
    /// File for the weights; it is replaced only when all went well
    #[arg(long, value_name = "WEIGHTS")]
    out: PathBuf,
    /// Weights to compare with: a file, or `length` for ranking by length alone; by default what
    /// --out holds already, else those that the ledger has in use, else the bundled ones
    #[arg(long, value_name = "FILE|length")]
    against: Option<PathBuf>,
    /// Write the weights even if they lose
    #[arg(long)]
    force: bool,
    /// Seed of folds and trees
    #[arg(long, default_value_t = Recipe::default().seed)]
    seed: u64,
}

/// Folds where there is only one domain.
const FOLDS: u64 = 5;

/// Runs `router train`.
pub async fn train(args: &TrainArgs) -> anyhow::Result<ExitCode> {
    let labelled = read_labelled(&args.from).await?;
    let samples = &labelled.samples;
    let all: Vec<&Sample> = samples.iter().collect();
    let recipe = Recipe {
        seed: args.seed,
        ..Recipe::default()
    };
    let weights = train::train(&all, &recipe)?;
    let domains = samples::by(&all, |sample| format!("{}/{}", sample.set, sample.domain)).len();
    let (split, manner) = if domains > 1 {
        (Split::Domains, "domains left out")
    } else {
        (
            Split::Folds(FOLDS),
            "five folds, since there is one domain only",
        )
    };
    let (present, name) = present(args, labelled.active.as_ref(), &all)?;
    let fresh = judge::cross_validate(&all, split, args.seed, &recipe)
        .context("with a part of the prompts held out")?;
    let (mut new_sum, mut present_sum, mut sets) = (0.0, 0.0, 0);
    for (set, places) in samples::by(&all, |sample| sample.set.clone()) {
        let apgr = |judged: &[Judged]| {
            let own: Vec<_> = places.iter().map(|at| judged[*at]).collect();
            evaluate::evaluate(&own).map(|report| report.exact.apgr)
        };
        match (apgr(&fresh), apgr(&present)) {
            (Ok(new), Ok(old)) => {
                say(&format!(
                    "{set}: exact APGR {new:.4} ({manner}), {name} {old:.4}"
                ))?;
                (new_sum, present_sum, sets) = (new_sum + new, present_sum + old, sets + 1);
            }
            (Err(fault), _) | (_, Err(fault)) => say(&format!("{set}: not judged: {fault}"))?,
        }
    }
    let has_lost = sets == 0 || new_sum < present_sum;
    if has_lost && !args.force {
        complain(&format!(
            "error: the new weights do not rank better than {name}; nothing was written (--force writes them all the same)"
        ));
        return Ok(ExitCode::FAILURE);
    }
    let bytes = codec::to_bytes(&weights);
    write(&args.out, &bytes)?;
    let version = Scorer::from_bytes(&bytes)?.version().to_owned();
    let how = if has_lost {
        "written by --force"
    } else {
        "written"
    };
    let effective = samples::effective(samples);
    let worth = if effective < 0.99 * all.len() as f64 {
        format!(" (weighing as {effective:.0} of equal weight)")
    } else {
        String::new()
    };
    say(&format!(
        "{version} fitted to {} prompts{worth}, {how}: {} ({} bytes)",
        all.len(),
        args.out.display(),
        bytes.len()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// The present weights' judgement of the samples, and what to call them.
fn present(
    args: &TrainArgs,
    active: Option<&StoredWeights>,
    samples: &[&Sample],
) -> anyhow::Result<(Vec<Judged>, String)> {
    let path = match &args.against {
        Some(path) if path == Path::new("length") => {
            let judged = samples.iter().map(|sample| Judged {
                score: f64::from(sample.features.counts.length),
                expected: None,
                weak: sample.weak,
                strong: sample.strong,
                weight: sample.weight,
            });
            return Ok((judged.collect(), "length alone".to_owned()));
        }
        Some(path) => Some(path.as_path()),
        None => args.out.exists().then_some(args.out.as_path()),
    };
    let scorer = match (path, active) {
        (None, Some(active)) => in_use(active),
        _ => Scorer::open(path).context(
            "cannot compare with the present weights (--against names others, or length)",
        )?,
    };
    let name = format!("the present {}", scorer.version());
    Ok((judge::judge(scorer.weights(), samples), name))
}

/// Writes a file whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    fs::write(&partial, bytes)
        .and_then(|()| fs::rename(&partial, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
