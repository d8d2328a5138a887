//! `router train`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;

use crate::{
    console::options::{complain, say},
    scoring::{
        codec,
        cross_validation::{self, Split},
        evaluate::Judged,
        record::{self, HeldOut, LENGTH, Record},
        samples,
        scorer::Scorer,
        train::{self, Recipe, Sample},
    },
};

use super::{active_of, in_use, is_ledger, read_labelled};

/// Fit the scorer to labelled prompts
///
/// A line holds prompt, weak_score and strong_score (0 to 1), and may hold set, domain, tags and
/// propensity: a row whose labels were collected by chance counts one over its probability (100 at
/// most), so that it stands for those that were not collected. The new weights are written only if,
/// with whole domains held out, they rank at least as well as the present ones: the mean over the
/// sets of the exact APGR, on the prompts that the present ones were not fitted to. Where there is
/// only one domain, five folds take the domains' place. Routers go on with theirs until
/// `router promote`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// File of labelled prompts, `-` for standard input, or a ledger's URL (sqlite:PATH or
    /// postgres://…) for the jobs that both tiers answered; may be given again
    #[arg(long, value_name = "FILE|URL", required = true)]
    from: Vec<String>,
    /// File for the weights; it is replaced only when all went well
    #[arg(long, value_name = "WEIGHTS")]
    out: PathBuf,
    /// Weights to compare with: a file, a ledger's URL for those in use there, or `length` for ranking
    /// by length alone; by default what --out holds already, else those that the ledger has in use,
    /// else the bundled ones
    #[arg(long, value_name = "FILE|URL|length")]
    against: Option<String>,
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
    let mut weights = train::train(&all, &recipe)?;
    let present = Present::find(args, labelled.active.as_ref().map(in_use)).await?;
    let record = try_out(&all, &recipe, &present)?;
    let has_lost = record.has_lost();
    let verdict = if record.sets.is_empty() {
        "could not be compared with"
    } else {
        "do not rank better than"
    };
    weights.record = Some(record);
    if has_lost && !args.force {
        complain(&format!(
            "error: the new weights {verdict} {}; nothing was written (--force writes them all the same)",
            present.name()
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

/// Judges the recipe's weights beside the present ones, and says how each does.
fn try_out(all: &[&Sample], recipe: &Recipe, present: &Present) -> anyhow::Result<Record> {
    let domains = samples::by(all, |sample| format!("{}/{}", sample.set, sample.domain)).len();
    let (held_out, split, manner) = if domains > 1 {
        (HeldOut::Domains, Split::Domains, "domains left out")
    } else {
        (
            HeldOut::Folds,
            Split::Folds(FOLDS),
            "five folds, since there is one domain only",
        )
    };
    let fresh = cross_validation::cross_validate(all, split, recipe.seed, recipe)
        .context("with a part of the prompts held out")?;
    let name = present.name();
    let seen = all.iter().filter(|sample| present.has_seen(sample)).count();
    if seen > 0 {
        say(&format!(
            "{name} was fitted to {seen} of the {} prompts: compared on the others",
            all.len()
        ))?;
    }
    let is_fair = |sample: &Sample| !present.has_seen(sample);
    let mut record = Record {
        prompts: all.len() as u64,
        seed: recipe.seed,
        held_out,
        against: present.version().to_owned(),
        sets: BTreeMap::new(),
        seen: record::prints(all),
    };
    for (set, outcome) in record::compare(all, &fresh, &present.judge(all), is_fair) {
        match outcome {
            Ok(compared) => {
                let (new, old) = (compared.new, compared.present);
                say(&format!(
                    "{set}: exact APGR {new:.4} ({manner}), {name} {old:.4}"
                ))?;
                record.sets.insert(set, compared);
            }
            Err(error) => say(&format!("{set}: not judged: {error}"))?,
        }
    }
    Ok(record)
}

/// What new weights are compared with.
enum Present {
    Length,
    Weights(Scorer),
}

impl Present {
    /// What was asked for, else what would be replaced: the file, `active`, or the bundled weights.
    async fn find(args: &TrainArgs, active: Option<Scorer>) -> anyhow::Result<Self> {
        let path = match args.against.as_deref() {
            Some(LENGTH) => return Ok(Self::Length),
            Some(url) if is_ledger(url) => {
                let active = active_of(url).await?;
                return Ok(Self::Weights(active.unwrap_or_else(Scorer::bundled)));
            }
            Some(path) => Some(Path::new(path)),
            None => args.out.exists().then_some(args.out.as_path()),
        };
        let scorer = match (path, active) {
            (None, Some(active)) => active,
            _ => Scorer::open(path).context(
                "cannot compare with the present weights (--against names others, or length)",
            )?,
        };
        Ok(Self::Weights(scorer))
    }

    /// As a record names it.
    fn version(&self) -> &str {
        match self {
            Self::Length => LENGTH,
            Self::Weights(scorer) => scorer.version(),
        }
    }

    /// As people are told.
    fn name(&self) -> String {
        match self {
            Self::Length => "length alone".to_owned(),
            Self::Weights(scorer) => format!("the present {}", scorer.version()),
        }
    }

    /// True for a prompt whose labels it was fitted to.
    fn has_seen(&self, sample: &Sample) -> bool {
        match self {
            Self::Length => false,
            Self::Weights(scorer) => {
                let record = scorer.weights().record.as_ref();
                record.is_some_and(|record| record.has_seen(sample))
            }
        }
    }

    fn judge(&self, samples: &[&Sample]) -> Vec<Judged> {
        match self {
            Self::Weights(scorer) => cross_validation::judge(scorer.weights(), samples),
            Self::Length => {
                let judged = samples.iter().map(|sample| Judged {
                    score: f64::from(sample.features.counts.length),
                    expected: None,
                    weak: sample.weak,
                    strong: sample.strong,
                    weight: sample.weight,
                });
                judged.collect()
            }
        }
    }
}

/// Writes a file whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    fs::write(&partial, bytes)
        .and_then(|()| fs::rename(&partial, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
