//! `dead`: what was given up, and what a person does about it.

use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use serde_json::json;
use uuid::Uuid;

use crate::{
    broker::{Broker, wire::redriven},
    console::options::{Common, UsageError, complain, open_database, read_instant, say},
    fleet,
    job::Tenant,
    store::{AttemptRecord, DeadFilter, DeadLetter, DeadResolution, Store},
};

use crate::console::table::table;

/// Most letters redriven or discarded by one command.
const LETTERS_MAX: usize = 10_000;

/// List, show, redrive or discard dead letters.
#[derive(Debug, Subcommand)]
pub enum DeadCommand {
    /// List dead letters, the oldest first
    List(ListArgs),
    /// Show one dead letter with its job's attempts
    Show(ShowArgs),
    /// Submit dead letters again, as new jobs
    Redrive(SelectArgs),
    /// Throw dead letters away
    Discard(SelectArgs),
}

/// Which letters.
#[derive(Debug, Default, Args)]
pub struct Selection {
    /// Only these letters
    #[arg(value_name = "ID")]
    ids: Vec<Uuid>,
    /// Only with this reason, such as engine_crashed or attempts_spent
    #[arg(long, value_name = "CODE")]
    reason: Option<String>,
    /// Only this tenant's
    #[arg(long, value_name = "NAME")]
    tenant: Option<Tenant>,
    /// Only letters that died before: a time (2026-01-31T12:00:00Z) or an age (90s, 15m, 24h, 7d)
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
    /// Most letters to list
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// Print a JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `dead show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The letter
    id: Uuid,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `dead redrive` and `dead discard`.
#[derive(Debug, Args)]
pub struct SelectArgs {
    #[command(flatten)]
    selection: Selection,
    /// All dead letters
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
    if args.json {
        for letter in &letters {
            say(&letter.to_json().to_string())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if letters.is_empty() {
        complain("no dead letters");
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["ID", "DIED", "REASON", "QUEUE", "TENANT", "JOB"]);
    for letter in &letters {
        rows.add_row([
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
        ]);
    }
    say(&rows.to_string())?;
    Ok(ExitCode::SUCCESS)
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
        .ok_or_else(|| anyhow!("there is no open dead letter {}", args.id))?;
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
    say(&serde_json::to_string_pretty(&shown).context("a JSON value can be written")?)?;
    Ok(ExitCode::SUCCESS)
}

async fn select(store: &Store, args: &SelectArgs) -> anyhow::Result<Vec<DeadLetter>> {
    let filter = args.selection.filter()?;
    if filter == DeadFilter::default() && !args.all {
        let message = "name letters, a --reason, a --tenant, an age with --before, or --all";
        return Err(UsageError(message.to_owned()).into());
    }
    Ok(store.dead_letters(&filter, LETTERS_MAX).await?)
}

async fn redrive(args: SelectArgs) -> anyhow::Result<ExitCode> {
    let (config, store) = open_database(&args.common).await?;
    let letters = select(&store, &args).await?;
    let broker = Broker::connect(&config.broker, &fleet::embedded_path(&config)).await?;
    // Publishing comes first: should the marking fail, the key of the new job keeps a second
    // redrive from running it twice.
    let messages = letters
        .iter()
        .map(|letter| redriven(letter.id, &letter.body))
        .collect();
    let outcomes = broker.publish(messages).await;
    let mut published = Vec::new();
    let mut failed = 0;
    for (letter, outcome) in letters.iter().zip(outcomes) {
        match outcome {
            Ok(()) => published.push(letter.id),
            Err(error) => {
                failed += 1;
                complain(&format!("letter {} not redriven: {error}", letter.id));
            }
        }
    }
    let count = store
        .resolve_dead(&published, DeadResolution::Redriven)
        .await?;
    broker.close().await;
    store.close().await;
    complain(&format!("{count} redriven, {failed} not"));
    Ok(ExitCode::from(u8::from(failed > 0)))
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
    complain(&format!("{count} discarded"));
    Ok(ExitCode::SUCCESS)
}
