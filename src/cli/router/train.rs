//! `router train`: fits the scorer to labelled prompts.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;

use crate::{
    console::{
        output::replace_file,
        terminal::{eprint_line, print_line},
    },
    scoring::{
        codec,
        cross_validation::{self, Split},
        evaluate::ScoredPrompt,
        record::{self, HeldOut, LENGTH, TrainingRecord},
        sample::Sample,
        samples,
        scorer::Scorer,
        train::{self, Recipe},
    },
};

use super::{
    labelled::read_labelled,
    weights::{active_of, is_database, scorer_of},
};

/// Fit the scorer to labelled prompts
///
/// Lines have prompt, weak_score and strong_score (0 to 1), and optionally set, domain, tags and
/// propensity: a line labelled with that probability weighs its inverse, 100 at most, so that it stands
/// for those that were not labelled. The new weights are written only if, with whole domains held out,
/// they rank at least as well as the current ones: by the mean exact APGR over the sets, on prompts that
/// the current ones were not fitted to. With a single domain, five folds replace the domains. Routers
/// keep their weights until `router promote`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// File of labelled prompts, `-` for standard input, or a job database (sqlite:PATH or
    /// postgres://…), for the jobs that both tiers answered (repeatable)
    #[arg(long, value_name = "FILE|URL", required = true)]
    from: Vec<String>,
    /// File to write the weights to, replaced only on success
    #[arg(long, value_name = "WEIGHTS")]
    out: PathBuf,
    /// Weights to compare with: a file, a job database for its active ones, or `length` for ranking by
    /// length alone [default: those in --out, else the database's active ones, else the bundled ones]
    #[arg(long, value_name = "FILE|URL|length")]
    against: Option<String>,
    /// Write the weights even if they rank worse
    #[arg(long)]
    force: bool,
    /// Seed of the folds and trees
    #[arg(long, default_value_t = Recipe::default().seed)]
    seed: u64,
}

/// Folds if there is only one domain.
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
    let current = Current::find(args, labelled.active.as_ref().map(scorer_of)).await?;
    let record = compare(&all, &recipe, &current)?;
    let has_lost = record.is_worse();
    let outcome = if record.sets.is_empty() {
        "could not be compared with"
    } else {
        "do not rank better than"
    };
    weights.record = Some(record);
    if has_lost && !args.force {
        eprint_line(&format!(
            "error: the new weights {outcome} {}; nothing was written (use --force to write them anyway)",
            current.name()
        ));
        return Ok(ExitCode::FAILURE);
    }
    let bytes = codec::to_bytes(&weights);
    replace_file(&args.out, &bytes)?;
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
    print_line(&format!(
        "{version} fitted to {} prompts{worth}, {how}: {} ({} bytes)",
        all.len(),
        args.out.display(),
        bytes.len()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Evaluates the recipe's weights against the current ones and prints the result of each set.
fn compare(all: &[&Sample], recipe: &Recipe, current: &Current) -> anyhow::Result<TrainingRecord> {
    let domains = samples::by(all, |sample| format!("{}/{}", sample.set, sample.domain)).len();
    let (held_out, split, manner) = if domains > 1 {
        (HeldOut::Domains, Split::Domains, "domains left out")
    } else {
        (
            HeldOut::Folds,
            Split::Folds(FOLDS),
            "five folds, as there is only one domain",
        )
    };
    let fresh = cross_validation::cross_validate(all, split, recipe.seed, recipe)
        .context("with part of the prompts held out")?;
    let name = current.name();
    let seen = all.iter().filter(|sample| current.has_seen(sample)).count();
    if seen > 0 {
        print_line(&format!(
            "{name} was fitted to {seen} of the {} prompts; comparing on the others",
            all.len()
        ))?;
    }
    let is_fair = |sample: &Sample| !current.has_seen(sample);
    let mut record = TrainingRecord {
        prompts: all.len() as u64,
        seed: recipe.seed,
        held_out,
        against: current.version().to_owned(),
        sets: BTreeMap::new(),
        seen: record::fingerprints(all),
    };
    for (set, outcome) in record::compare(all, &fresh, &current.judge(all), is_fair) {
        match outcome {
            Ok(compared) => {
                let (new, old) = (compared.new, compared.present);
                print_line(&format!(
                    "{set}: exact APGR {new:.4} ({manner}), {name} {old:.4}"
                ))?;
                record.sets.insert(set, compared);
            }
            Err(error) => print_line(&format!("{set}: not evaluated: {error}"))?,
        }
    }
    Ok(record)
}

/// What new weights are compared with.
enum Current {
    Length,
    Weights(Scorer),
}

impl Current {
    /// The weights of --against, else those to be replaced: of --out, `active`, or the bundled ones.
    async fn find(args: &TrainArgs, active: Option<Scorer>) -> anyhow::Result<Self> {
        let path = match args.against.as_deref() {
            Some(LENGTH) => return Ok(Self::Length),
            Some(url) if is_database(url) => {
                let active = active_of(url).await?;
                return Ok(Self::Weights(active.unwrap_or_else(Scorer::bundled)));
            }
            Some(path) => Some(Path::new(path)),
            None => args.out.exists().then_some(args.out.as_path()),
        };
        let scorer = match (path, active) {
            (None, Some(active)) => active,
            _ => Scorer::open(path).context(
                "cannot compare with the current weights (choose others, or length, with --against)",
            )?,
        };
        Ok(Self::Weights(scorer))
    }

    /// The name in a record.
    fn version(&self) -> &str {
        match self {
            Self::Length => LENGTH,
            Self::Weights(scorer) => scorer.version(),
        }
    }

    /// The name in messages.
    fn name(&self) -> String {
        match self {
            Self::Length => "length alone".to_owned(),
            Self::Weights(scorer) => format!("the current {}", scorer.version()),
        }
    }

    /// Whether these weights were fitted to a prompt.
    fn has_seen(&self, sample: &Sample) -> bool {
        match self {
            Self::Length => false,
            Self::Weights(scorer) => {
                let record = scorer.weights().record.as_ref();
                record.is_some_and(|record| record.has_seen(sample))
            }
        }
    }

    fn judge(&self, samples: &[&Sample]) -> Vec<ScoredPrompt> {
        match self {
            Self::Weights(scorer) => cross_validation::score_samples(scorer.weights(), samples),
            Self::Length => {
                let judged = samples.iter().map(|sample| ScoredPrompt {
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
