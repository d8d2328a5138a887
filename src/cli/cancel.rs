//! `cancel`: cancels jobs.

use std::process::ExitCode;

use clap::Args;

use crate::{
    api::Cancellation,
    broker::{Broker, Publication},
    console::{
        options::{Common, UsageError, open_database},
        terminal::{eprint_line, print_line},
    },
    fleet,
    job::{JobId, Tenant},
    store::CancelFilter,
};

/// Cancel unfinished jobs: queued ones do not start, running ones stop
#[derive(Debug, Args)]
pub struct CancelArgs {
    /// Jobs to cancel
    #[arg(value_name = "ID", conflicts_with = "batch")]
    ids: Vec<JobId>,
    /// Cancel all unfinished jobs of this batch
    #[arg(long, value_name = "NAME")]
    batch: Option<String>,
    /// Only this tenant's jobs
    #[arg(long, value_name = "NAME")]
    tenant: Option<Tenant>,
    #[command(flatten)]
    common: Common,
}

/// Runs `cancel`. Prints the ids of the jobs it cancels.
pub async fn cancel(args: CancelArgs) -> anyhow::Result<ExitCode> {
    let filter = match (args.batch, args.ids) {
        (Some(batch), _) => CancelFilter::Batch(args.tenant, batch),
        (None, ids) if !ids.is_empty() => CancelFilter::Jobs(args.tenant, ids),
        (None, _) => return Err(UsageError("name jobs or a --batch".to_owned()).into()),
    };
    let (config, store) = open_database(&args.common).await?;
    let mut broker = None;
    let mut count = 0;
    let mut cancellation = Cancellation::new(&store, &filter);
    while let Some(cancelled) = cancellation.next().await? {
        for record in &cancelled {
            print_line(&record.id.to_string())?;
        }
        count += cancelled.len();
        let replies: Vec<_> = cancelled.iter().filter_map(Publication::reply).collect();
        if replies.is_empty() {
            continue;
        }
        if broker.is_none() {
            let path = fleet::embedded_path(&config);
            broker = Some(Broker::connect(&config.broker, &path).await?);
        }
        if let Some(broker) = &broker {
            // The database has the outcome, so a reply that cannot be published is not retried.
            broker.publish(&replies).await;
        }
    }
    if let Some(broker) = broker {
        broker.close().await;
    }
    store.close().await;
    eprint_line(&format!("{count} cancelled"));
    Ok(ExitCode::SUCCESS)
}
