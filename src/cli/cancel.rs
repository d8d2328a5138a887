//! `cancel`: jobs are taken back.

use std::process::ExitCode;

use clap::Args;

use crate::{
    broker::{Broker, Publication},
    console::options::{Common, UsageError, complain, open_database, say},
    fleet,
    job::{JobId, Tenant},
    store::{CANCEL_SETTLES, CancelFilter},
};

/// Jobs taken back in one transaction.
const STEP: usize = 512;

/// Take unfinished jobs back: queued ones do not begin, running ones stop
#[derive(Debug, Args)]
pub struct CancelArgs {
    /// These jobs
    #[arg(value_name = "ID", conflicts_with = "batch")]
    ids: Vec<JobId>,
    /// The unfinished jobs of this submission
    #[arg(long, value_name = "NAME")]
    batch: Option<String>,
    /// Only this tenant's
    #[arg(long, value_name = "NAME")]
    tenant: Option<Tenant>,
    #[command(flatten)]
    common: Common,
}

/// Runs `cancel`. Prints the ids of the jobs that are cancelled by it.
pub async fn cancel(args: CancelArgs) -> anyhow::Result<ExitCode> {
    let filter = match (args.batch, args.ids) {
        (Some(batch), _) => CancelFilter::Batch(args.tenant, batch),
        (None, ids) if !ids.is_empty() => CancelFilter::Jobs(args.tenant, ids),
        (None, _) => return Err(UsageError("name jobs, or a --batch".to_owned()).into()),
    };
    let (config, store) = open_database(&args.common).await?;
    let step = match &filter {
        CancelFilter::Jobs(_, ids) => ids.len() + 1,
        CancelFilter::Batch(..) => STEP,
    };
    let mut broker = None;
    let mut count = 0;
    // What a router has in hand is written by the second time; what comes in later ends there.
    let mut rounds = if matches!(filter, CancelFilter::Batch(..)) {
        2
    } else {
        1
    };
    loop {
        let cancelled = store.cancel(&filter, step).await?;
        for record in &cancelled {
            say(&record.id.to_string())?;
        }
        count += cancelled.len();
        let replies: Vec<_> = cancelled.iter().filter_map(Publication::reply).collect();
        if !replies.is_empty() {
            if broker.is_none() {
                let path = fleet::embedded_path(&config);
                broker = Some(Broker::connect(&config.broker, &path).await?);
            }
            if let Some(broker) = &broker {
                // The ledger has the end; a reply is a courtesy that is not waited for again.
                broker.publish(replies).await;
            }
        }
        if cancelled.len() < step {
            rounds -= 1;
            if rounds == 0 {
                break;
            }
            tokio::time::sleep(CANCEL_SETTLES).await;
        }
    }
    if let Some(broker) = broker {
        broker.close().await;
    }
    store.close().await;
    complain(&format!("{count} cancelled"));
    Ok(ExitCode::SUCCESS)
}
