//! `cache stats` and `cache drop`: shows and removes cached answers.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::{
    console::{
        options::{Common, UsageError, open_database, read_instant},
        table::Listing,
        terminal::eprint_line,
    },
    job::{JobId, Tenant},
    store::{CacheFilter, CacheStats},
};

/// Arguments of `cache stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Print one JSON object per line
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
    /// Only answers given before a time (2026-01-31T12:00:00Z) or longer ago than an age (90s, 15m, 24h, 7d)
    #[arg(long, value_name = "TIME|AGE")]
    before: Option<String>,
    /// Only the answer computed by this job (`answered_by` of the jobs that reused it)
    #[arg(long, value_name = "ID")]
    job: Option<JobId>,
    /// Remove all answers
    #[arg(long)]
    all: bool,
    /// Only count the answers
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    common: Common,
}

pub(super) async fn stats(args: StatsArgs) -> anyhow::Result<ExitCode> {
    let (_, store) = open_database(&args.common).await?;
    let stats = store.cache_stats().await?;
    store.close().await;
    let listing = Listing {
        header: [
            "TENANT", "MODEL", "REVISION", "ANSWERS", "KIB", "HITS", "LAST HIT",
        ],
        empty: "no answers are cached",
    };
    listing.print(&stats, args.json, to_json, |one| {
        let last_hit = one.last_hit_at.map(|at| at.format("%F %T").to_string());
        [
            one.tenant.clone(),
            one.model.clone(),
            one.revision.clone(),
            one.entries.to_string(),
            one.bytes.div_ceil(1024).to_string(),
            one.hits.to_string(),
            last_hit.unwrap_or_default(),
        ]
    })
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
        let message =
            "select answers by --tenant, --model, --revision, --before or --job, or use --all";
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
    eprint_line(&if args.dry_run {
        format!("{count} answers would be removed")
    } else {
        format!("{count} answers removed")
    });
    Ok(ExitCode::SUCCESS)
}
