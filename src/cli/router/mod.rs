//! `router`: fits the scorer, judges it, and says what it thinks of prompts of one's own.

mod calibrate;
mod evaluate;
mod explain;
mod job;
mod pairs;
mod promote;
mod score;
mod simulate;
mod target;
mod train;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    config::Overrides,
    console::{
        jsonl::{Ids, each_text},
        options::{Common, complain, open_database},
    },
    scoring::{samples, scorer::Scorer, train::Sample},
    store::StoredWeights,
};

use self::{
    pairs::{PairsArgs, pairs, read_pairs},
    promote::{PromoteArgs, promote},
    simulate::{SimulateArgs, simulate},
};

/// Fit the router, judge it, or ask it about prompts of your own.
#[derive(Debug, Subcommand)]
pub enum RouterCommand {
    /// Score prompts: lines {"id", "prompt"} in, lines {"id", "score"} out, higher for large
    Score(score::ScoreArgs),
    Train(train::TrainArgs),
    Evaluate(evaluate::EvaluateArgs),
    Calibrate(calibrate::CalibrateArgs),
    /// Say what moved a prompt's score, or why a job went to its tier
    Explain(explain::ExplainArgs),
    /// Tell what a target would deliver on prompts of your own
    Simulate(SimulateArgs),
    /// Print what both tiers made of prompts, as the ledger knows it: lines to train on
    Pairs(PairsArgs),
    Promote(PromoteArgs),
    /// Say what routers are to deliver while they run: they follow within seconds
    ///
    /// A target set here goes before router.target and router.targets until it is unset.
    #[command(subcommand)]
    Target(target::TargetCommand),
}

/// Which weights to use.
#[derive(Debug, Args)]
struct WeightsArg {
    /// Weights that `router train` wrote; the bundled ones if not given
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
}

impl WeightsArg {
    fn open(&self) -> anyhow::Result<Scorer> {
        Ok(Scorer::open(self.weights.as_deref())?)
    }
}

/// Runs `router`.
pub async fn router(command: RouterCommand) -> anyhow::Result<ExitCode> {
    match command {
        RouterCommand::Score(args) => score::score(&args),
        RouterCommand::Train(args) => train::train(&args).await,
        RouterCommand::Evaluate(args) => evaluate::evaluate(&args).await,
        RouterCommand::Calibrate(args) => calibrate::calibrate(args),
        RouterCommand::Explain(args) => explain::explain(&args).await,
        RouterCommand::Simulate(args) => simulate(&args),
        RouterCommand::Pairs(args) => pairs(args).await,
        RouterCommand::Promote(args) => promote(args).await,
        RouterCommand::Target(command) => target::target(command).await,
    }
}

/// Labelled prompts of one or more sources.
#[derive(Default)]
struct Labelled {
    samples: Vec<Sample>,
    /// The weights in use where a ledger is among the sources.
    active: Option<StoredWeights>,
}

/// How the URL of a ledger begins.
const LEDGERS: [&str; 3] = ["sqlite:", "postgres://", "postgresql://"];

/// True for what names a ledger and no file.
fn is_ledger(source: &str) -> bool {
    LEDGERS.iter().any(|scheme| source.starts_with(scheme))
}

/// A ledger named by its URL.
fn common_of(url: &str) -> Common {
    Common {
        store: Some(url.to_owned()),
        ..Common::default()
    }
}

/// The weights that routers of a ledger use, where it has some.
async fn active_of(url: &str) -> anyhow::Result<Option<Scorer>> {
    let (_, store) = open_database(&common_of(url)).await?;
    let active = store.active_weights().await;
    store.close().await;
    Ok(active?.as_ref().map(in_use))
}

/// Reads labelled prompts of files and of ledgers, each source weighing as much as it has prompts.
async fn read_labelled(sources: &[String]) -> anyhow::Result<Labelled> {
    let mut labelled = Labelled::default();
    for source in sources {
        let mut samples = if is_ledger(source) {
            let (samples, active) = read_ledger(source).await?;
            labelled.active = active.or(labelled.active);
            samples
        } else {
            read_samples(Path::new(source))?
        };
        samples::level(&mut samples);
        labelled.samples.append(&mut samples);
    }
    Ok(labelled)
}

/// What the jobs of a ledger teach, those of them that both tiers answered, and the weights in use.
async fn read_ledger(url: &str) -> anyhow::Result<(Vec<Sample>, Option<StoredWeights>)> {
    let (rows, active) = read_pairs(&common_of(url).load(Overrides::default())?).await?;
    let lines = rows.iter().map(|row| row.to_line().to_string());
    let samples = lines
        .enumerate()
        .map(|(at, line)| samples::read(at + 1, &line));
    Ok((samples.collect::<Result<_, _>>()?, active))
}

/// The weights that routers use where a ledger has some: damaged ones they refuse.
pub(super) fn in_use(active: &StoredWeights) -> Scorer {
    Scorer::from_bytes(&active.weights).unwrap_or_else(|error| {
        let version = &active.version;
        complain(&format!(
            "the ledger's weights {version} are refused: {error}; the bundled ones are taken"
        ));
        Scorer::bundled()
    })
}

/// Reads the labelled prompts of a file; one id stands for one prompt.
fn read_samples(path: &Path) -> anyhow::Result<Vec<Sample>> {
    #[derive(Deserialize)]
    struct Name {
        id: Option<Value>,
    }
    let (mut found, mut ids) = (Vec::new(), Ids::default());
    each_text(path, |number, line| {
        found.push(samples::read(number, line)?);
        if let Ok(Name { id: Some(id) }) = serde_json::from_str(line) {
            ids.add(number, &id)?;
        }
        Ok(())
    })?;
    Ok(found)
}
