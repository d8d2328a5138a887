//! `dead`: lists, redrives and discards dead letters.

use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use serde_json::json;
use uuid::Uuid;

use crate::{
    api::redrive as redrive_letters,
    broker::Broker,
    console::{
        options::{Common, UsageError, open_database, read_instant},
        table::Listing,
        terminal::{eprint_line, print_line},
    },
    fleet,
    job::Tenant,
    store::{AttemptRecord, DeadFilter, DeadLetter, DeadResolution, Store},
};

/// Most dead letters redriven or discarded by one command.
const LETTERS_MAX: usize = 10_000;

/// List, show, redrive or discard dead letters
#[derive(Debug, Subcommand)]
pub enum DeadCommand {
    /// List dead letters, oldest first
    List(ListArgs),
    /// Show a dead letter with its job's attempts
    Show(ShowArgs),
    /// Resubmit dead letters as new jobs
    Redrive(SelectArgs),
    /// Discard dead letters
    Discard(SelectArgs),
}

/// Dead letters to select.
#[derive(Debug, Default, Args)]
pub struct Selection {
    /// Only these dead letters
    #[arg(value_name = "ID")]
    ids: Vec<Uuid>,
    /// Only those with this reason code, such as engine_crashed or attempts_spent
    #[arg(long, value_name = "CODE")]
    reason: Option<String>,
    /// Only this tenant's
    #[arg(long, value_name = "NAME")]
    tenant: Option<Tenant>,
    /// Only those that died before a time (2026-01-31T12:00:00Z) or longer ago than an age (90s, 15m, 24h, 7d)
    #[arg(long, value_name = "TIME|AGE")]
    before: Option<String>,
}

impl Selection {
    fn filter(&self) -> Result<DeadFilter, UsageError> {
        let before = self.before.as_deref();
        Ok(DeadFilter {
            ids: self.ids.clone(),
            reason: self.reason.clone(),
            tenant: self.tenant.clone(),
            died_before: before
                .map(|text| read_instant("--before", text))
                .transpose()?,
        })
    }
}

/// Arguments of `dead list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    selection: Selection,
    /// Most dead letters to list
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `dead show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Dead letter to show
    id: Uuid,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `dead redrive` and `dead discard`.
#[derive(Debug, Args)]
pub struct SelectArgs {
    #[command(flatten)]
    selection: Selection,
    /// Select all dead letters
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    common: Common,
}

/// Runs `dead`.
pub async fn dead(command: DeadCommand) -> anyhow::Result<ExitCode> {
    match command {
        DeadCommand::List(args) => list(args).await,
        DeadCommand::Show(args) => show(args).await,
        DeadCommand::Redrive(args) => redrive(args).await,
        DeadCommand::Discard(args) => discard(args).await,
    }
}

async fn list(args: ListArgs) -> anyhow::Result<ExitCode> {
    let (_, store) = open_database(&args.common).await?;
    let letters = store
        .dead_letters(&args.selection.filter()?, args.limit)
        .await?;
    store.close().await;
    let listing = Listing {
        header: ["ID", "DIED", "REASON", "QUEUE", "TENANT", "JOB"],
        empty: "no dead letters",
    };
    listing.print(&letters, args.json, DeadLetter::to_json, |letter| {
        [
            letter.id.to_string(),
            letter.died_at.format("%F %T").to_string(),
            letter.reason.code.clone(),
            letter.queue.clone(),
            letter
                .tenant
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            letter.job.map(|job| job.to_string()).unwrap_or_default(),
        ]
    })
}

async fn show(args: ShowArgs) -> anyhow::Result<ExitCode> {
    let (_, store) = open_database(&args.common).await?;
    let filter = DeadFilter {
        ids: vec![args.id],
        ..DeadFilter::default()
    };
    let letter = store
        .dead_letters(&filter, 1)
        .await?
        .pop()
        .ok_or_else(|| anyhow!("there is no unresolved dead letter {}", args.id))?;
    let mut shown = letter.to_json();
    shown["body"] = json!(String::from_utf8_lossy(&letter.body));
    if let Some(job) = letter.job {
        shown["attempts"] = store
            .attempts(job)
            .await?
            .iter()
            .map(AttemptRecord::to_json)
            .collect();
    }
    store.close().await;
    print_line(&serde_json::to_string_pretty(&shown).context("a JSON value can be written")?)?;
    Ok(ExitCode::SUCCESS)
}

async fn select(store: &Store, args: &SelectArgs) -> anyhow::Result<Vec<DeadLetter>> {
    let filter = args.selection.filter()?;
    if filter == DeadFilter::default() && !args.all {
        let message = "select dead letters by id, --reason, --tenant or --before, or use --all";
        return Err(UsageError(message.to_owned()).into());
    }
    Ok(store.dead_letters(&filter, LETTERS_MAX).await?)
}

async fn redrive(args: SelectArgs) -> anyhow::Result<ExitCode> {
    let (config, store) = open_database(&args.common).await?;
    let letters = select(&store, &args).await?;
    let broker = Broker::connect(&config.broker, &fleet::embedded_path(&config)).await?;
    let (count, failed) = redrive_letters(&broker, &store, &letters).await?;
    broker.close().await;
    store.close().await;
    for (id, error) in &failed {
        eprint_line(&format!("dead letter {id} not redriven: {error}"));
    }
    eprint_line(&format!("{count} redriven, {} failed", failed.len()));
    Ok(ExitCode::from(u8::from(!failed.is_empty())))
}

async fn discard(args: SelectArgs) -> anyhow::Result<ExitCode> {
    let (_, store) = open_database(&args.common).await?;
    let ids: Vec<_> = select(&store, &args)
        .await?
        .iter()
        .map(|letter| letter.id)
        .collect();
    let count = store.resolve_dead(&ids, DeadResolution::Discarded).await?;
    store.close().await;
    eprint_line(&format!("{count} discarded"));
    Ok(ExitCode::SUCCESS)
}
