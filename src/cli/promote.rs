//! `router promote`: weights into the ledger, from which routers take them without a restart.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use chrono::Utc;
use clap::Args;
use serde_json::json;

use crate::{routing::scorer::Scorer, store::StoredWeights};

use super::options::{Common, open_ledger, say};

/// Arguments of `router promote`.
#[derive(Debug, Args)]
pub struct PromoteArgs {
    /// File of weights, as `router train` writes it
    #[arg(value_name = "FILE")]
    weights: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// Runs `router promote`. Weights that cannot be used are refused, and the present ones stay.
pub async fn promote(args: PromoteArgs) -> anyhow::Result<ExitCode> {
    let weights = std::fs::read(&args.weights)
        .with_context(|| format!("cannot read {}", args.weights.display()))?;
    let scorer = Scorer::from_bytes(&weights)
        .with_context(|| format!("{} is refused", args.weights.display()))?;
    let (_, store) = open_ledger(&args.common).await?;
    let stored = StoredWeights {
        version: scorer.version().to_owned(),
        created_at: Utc::now(),
        metrics: json!({}),
        weights,
    };
    let kept = store.put_weights(&stored, true).await;
    store.close().await;
    kept?;
    say(&format!(
        "{} promoted; routers take it within a minute",
        stored.version
    ))?;
    Ok(ExitCode::SUCCESS)
}
