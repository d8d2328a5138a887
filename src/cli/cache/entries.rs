//! `cache stats` and `cache drop`: kept answers as people see and remove them.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::{
    console::options::{Common, UsageError, complain, open_database, read_instant, say},
    console::table::table,
    job::{JobId, Tenant},
    store::{CacheFilter, CacheStats},
};

/// Arguments of `cache stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Print a JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `cache drop`.
#[derive(Debug, Args)]
pub struct DropArgs {
    /// Only this tenant's answers
    #[arg(long, value_name = "NAME")]
    tenant: Option<Tenant>,
    /// Only answers of this model
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Only answers of this revision of a model
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// Only answers given before: a time (2026-01-31T12:00:00Z) or an age (90s, 15m, 24h, 7d)
    #[arg(long, value_name = "TIME|AGE")]
    before: Option<String>,
    /// Only the answer that this job computed (`answered_by` of those that were given it)
    #[arg(long, value_name = "ID")]
    job: Option<JobId>,
    /// All answers
    #[arg(long)]
    all: bool,
    /// Only tell how many there are
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    common: Common,
}

pub(super) async fn stats(args: StatsArgs) -> anyhow::Result<ExitCode> {
    let (_, store) = open_database(&args.common).await?;
    let stats = store.cache_stats().await?;
    store.close().await;
    if args.json {
        for one in &stats {
            say(&to_json(one).to_string())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if stats.is_empty() {
        complain("no answers are kept");
        return Ok(ExitCode::SUCCESS);
    }
    let header = [
        "TENANT", "MODEL", "REVISION", "ANSWERS", "KIB", "HITS", "LAST HIT",
    ];
    let mut rows = table(&header);
    for one in &stats {
        let last_hit = one.last_hit_at.map(|at| at.format("%F %T").to_string());
        rows.add_row([
            one.tenant.clone(),
            one.model.clone(),
            one.revision.clone(),
            one.entries.to_string(),
            one.bytes.div_ceil(1024).to_string(),
            one.hits.to_string(),
            last_hit.unwrap_or_default(),
        ]);
    }
    say(&rows.to_string())?;
    Ok(ExitCode::SUCCESS)
}

fn to_json(stats: &CacheStats) -> serde_json::Value {
    json!({
        "tenant": stats.tenant,
        "model": stats.model,
        "revision": stats.revision,
        "answers": stats.entries,
        "bytes": stats.bytes,
        "hits": stats.hits,
        "last_hit_at": stats.last_hit_at,
    })
}

pub(super) async fn drop(args: DropArgs) -> anyhow::Result<ExitCode> {
    let before = args.before.as_deref();
    let before = before.map(|text| read_instant("--before", text));
    let filter = CacheFilter {
        tenant: args.tenant,
        model: args.model,
        revision: args.revision,
        answered_before: before.transpose()?,
        job: args.job,
    };
    if filter == CacheFilter::default() && !args.all {
        let message = "name a --tenant, --model, --revision, --before, --job, or --all";
        return Err(UsageError(message.to_owned()).into());
    }
    let (_, store) = open_database(&args.common).await?;
    let outcome = if args.dry_run {
        store.count_cached(&filter).await
    } else {
        store.drop_cached(&filter).await
    };
    store.close().await;
    let count = outcome?;
    complain(&if args.dry_run {
        format!("{count} answers would be removed")
    } else {
        format!("{count} answers removed")
    });
    Ok(ExitCode::SUCCESS)
}
