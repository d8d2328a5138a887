//! `results`: prints answers from the job database.

use std::{collections::HashMap, process::ExitCode, time::Duration};

use anyhow::anyhow;
use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;

use crate::{
    console::{
        options::{Common, open_database, read_instant},
        terminal::{eprint_line, print_line},
    },
    job::{JobId, JobRecord, Tenant},
    shutdown::Shutdown,
    store::{RecordFilter, Store},
};

/// Records per page.
const PAGE_MAX: usize = 1000;
/// Wait between two polls while following.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// A row may be committed this long after the finishing time that it records; following re-reads this
/// much to catch such rows.
const COMMIT_DELAY_MAX: TimeDelta = TimeDelta::seconds(30);

/// Print answers as OpenAI batch output lines
#[derive(Debug, Args)]
pub struct ResultsArgs {
    /// Only these jobs (repeatable); with --follow, wait until they end
    #[arg(long = "id", value_name = "JOB")]
    ids: Vec<JobId>,
    /// Only jobs of this batch
    #[arg(long, value_name = "NAME")]
    batch: Option<String>,
    /// Only this tenant's jobs
    #[arg(long, value_name = "NAME")]
    tenant: Option<Tenant>,
    /// Only jobs that ended since a time (2026-01-31T12:00:00Z) or within an age (90s, 15m, 24h, 7d)
    #[arg(long, value_name = "TIME|AGE")]
    since: Option<String>,
    /// Keep printing jobs as they end, until interrupted (with --id: until all have ended)
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    common: Common,
}

/// Runs `results`.
pub async fn results(args: ResultsArgs) -> anyhow::Result<ExitCode> {
    let since = args.since.as_deref();
    let since = since
        .map(|text| read_instant("--since", text))
        .transpose()?;
    let (_, store) = open_database(&args.common).await?;
    let shutdown = Shutdown::new();
    shutdown.on_signals()?;
    let outcome = if args.ids.is_empty() {
        let filter = RecordFilter {
            tenant: args.tenant,
            batch: args.batch,
            finished_since: since,
            after: None,
        };
        by_filter(&store, filter, args.follow, &shutdown).await
    } else {
        by_id(&store, args.ids, args.follow, &shutdown).await
    };
    store.close().await;
    outcome
}

async fn by_filter(
    store: &Store,
    mut filter: RecordFilter,
    follow: bool,
    shutdown: &Shutdown,
) -> anyhow::Result<ExitCode> {
    // Printed jobs that re-reading late rows may return again.
    let mut printed: HashMap<JobId, DateTime<Utc>> = HashMap::new();
    loop {
        let records = store.finished(&filter, PAGE_MAX).await?;
        let is_last_page = records.len() < PAGE_MAX;
        for record in &records {
            let at = record.finished_at.unwrap_or_default();
            if !follow || printed.insert(record.id, at).is_none() {
                print(record)?;
            }
        }
        if let Some(last) = records.last().and_then(position) {
            filter.after = Some(last);
        }
        if !is_last_page {
            continue;
        }
        if !follow {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::select! {
            () = shutdown.requested() => return Ok(ExitCode::SUCCESS),
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        let from = Utc::now() - COMMIT_DELAY_MAX;
        if filter.after.is_some_and(|(at, _)| at > from) {
            filter.after = Some((from, JobId(uuid::Uuid::nil())));
        }
        printed.retain(|_, at| *at >= from);
    }
}

async fn by_id(
    store: &Store,
    mut ids: Vec<JobId>,
    follow: bool,
    shutdown: &Shutdown,
) -> anyhow::Result<ExitCode> {
    let mut any_failed = false;
    loop {
        for record in store.records(&ids).await? {
            if record.state.is_terminal() {
                ids.retain(|id| *id != record.id);
                any_failed |= record.answer.is_none();
                print(&record)?;
            } else if !follow {
                eprint_line(&format!("job {} is {}", record.id, record.state));
                ids.retain(|id| *id != record.id);
                any_failed = true;
            }
        }
        if ids.is_empty() {
            return Ok(ExitCode::from(u8::from(any_failed)));
        }
        if !follow {
            let missing: Vec<_> = ids.iter().map(ToString::to_string).collect();
            return Err(anyhow!(
                "the job database does not have {}",
                missing.join(", ")
            ));
        }
        tokio::select! {
            () = shutdown.requested() => return Ok(ExitCode::FAILURE),
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
    }
}

fn position(record: &JobRecord) -> Option<(DateTime<Utc>, JobId)> {
    record.finished_at.map(|at| (at, record.id))
}

fn print(record: &JobRecord) -> std::io::Result<()> {
    print_line(&record.to_batch_line().to_string())
}
