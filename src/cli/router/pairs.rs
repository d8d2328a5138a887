//! `router pairs`: what the ledger knows of both tiers' answers, as rows to learn from.

use std::{
    io::{BufWriter, Write},
    process::ExitCode,
};

use clap::Args;

use crate::{
    config::{Config, Overrides},
    console::options::{Common, init_logs, require_database},
    fleet,
    router::learning::{self, LabelledRow},
    store::StoredWeights,
};

/// Arguments of `router pairs`.
#[derive(Debug, Args)]
pub struct PairsArgs {
    #[command(flatten)]
    common: Common,
}

/// Runs `router pairs`.
pub async fn pairs(args: PairsArgs) -> anyhow::Result<ExitCode> {
    let config = args.common.load(Overrides::default())?;
    init_logs(&config)?;
    let (rows, _) = read_pairs(&config).await?;
    let mut out = BufWriter::new(std::io::stdout());
    for row in rows {
        writeln!(out, "{}", row.to_line())?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Reads the labelled rows of a ledger, of which there must be some, and the weights in use.
pub async fn read_pairs(
    config: &Config,
) -> anyhow::Result<(Vec<LabelledRow>, Option<StoredWeights>)> {
    require_database(config)?;
    let store = fleet::open_store(config, false).await?;
    let rows = learning::labelled_rows(&store).await;
    let active = store.active_weights().await;
    store.close().await;
    let rows = rows?;
    anyhow::ensure!(
        !rows.is_empty(),
        "the ledger holds no job that both tiers answered; set router.shadow_share"
    );
    Ok((rows, active?))
}
