//! The weights that router commands use.

use std::path::PathBuf;

use clap::Args;

use crate::{
    console::{
        options::{Common, open_database},
        terminal::eprint_line,
    },
    scoring::scorer::Scorer,
    store::StoredWeights,
};

/// The weights to use.
#[derive(Debug, Args)]
pub(super) struct WeightsArg {
    /// Weights written by `router train` [default: the bundled ones]
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
}

impl WeightsArg {
    pub(super) fn open(&self) -> anyhow::Result<Scorer> {
        Ok(Scorer::open(self.weights.as_deref())?)
    }
}

/// URL schemes of job databases.
const SCHEMES: [&str; 3] = ["sqlite:", "postgres://", "postgresql://"];

/// Whether a source is the URL of a job database rather than a file.
pub(super) fn is_database(source: &str) -> bool {
    SCHEMES.iter().any(|scheme| source.starts_with(scheme))
}

/// Options that name a job database by its URL.
pub(super) fn options_of(url: &str) -> Common {
    Common {
        store: Some(url.to_owned()),
        ..Common::default()
    }
}

/// The active weights of a job database, if it has any.
pub(super) async fn active_of(url: &str) -> anyhow::Result<Option<Scorer>> {
    let (_, store) = open_database(&options_of(url)).await?;
    let active = store.active_weights().await;
    store.close().await;
    Ok(active?.as_ref().map(scorer_of))
}

/// The scorer that routers make of a job database's active weights: the bundled one if they are
/// damaged.
pub(super) fn scorer_of(active: &StoredWeights) -> Scorer {
    Scorer::from_bytes(&active.weights).unwrap_or_else(|error| {
        let version = &active.version;
        eprint_line(&format!(
            "the job database's weights {version} are refused: {error}; using the bundled weights"
        ));
        Scorer::bundled()
    })
}
