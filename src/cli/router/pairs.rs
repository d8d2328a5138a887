//! `router pairs`: jobs that both tiers answered, as training data.

use std::{
    io::{BufWriter, Write},
    process::ExitCode,
};

use clap::Args;

use crate::{
    console::options::{Common, open_database},
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
    let (rows, _) = read_pairs(&args.common).await?;
    let mut out = BufWriter::new(std::io::stdout());
    for row in rows {
        writeln!(out, "{}", row.to_line())?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Reads the labelled rows of a job database, at least one, and its active weights.
pub(super) async fn read_pairs(
    common: &Common,
) -> anyhow::Result<(Vec<LabelledRow>, Option<StoredWeights>)> {
    let (_, store) = open_database(common).await?;
    let rows = learning::labelled_rows(&store).await;
    let active = store.active_weights().await;
    store.close().await;
    let rows = rows?;
    anyhow::ensure!(
        !rows.is_empty(),
        "no job in the database was answered by both tiers; set router.shadow_share to collect some"
    );
    Ok((rows, active?))
}
