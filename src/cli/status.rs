//! `status`: shows queues, workers and rates.

use std::{process::ExitCode, time::Duration};

use clap::Args;
use serde_json::json;

use crate::{
    broker::{Depth, Queue},
    config::Overrides,
    console::{
        options::{Common, init_logs, require_database},
        table::table,
        terminal::print_line,
    },
    fleet,
    store::{DeferredQueue, Overview, WorkerRecord},
};

/// Deferred jobs are counted up to this number.
const DEFERRED_MAX: u32 = 1_000_000;
/// Workers not seen for longer are not shown.
const WORKER_AGE_MAX: Duration = Duration::from_secs(3600);

/// Show queues, workers and rates
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: Common,
}

/// Runs `status`.
pub async fn status(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let config = args.common.load(Overrides::default())?;
    init_logs(&config)?;
    require_database(&config)?;
    let (broker, store) = fleet::connect(&config, false).await?;
    let depths = broker.depths().await?;
    let workers = store.workers(WORKER_AGE_MAX).await?;
    let overview = store.overview().await?;
    let deferred = store.deferred_counts(DEFERRED_MAX).await?;
    broker.close().await;
    store.close().await;
    let text = if args.json {
        to_json(&depths, &workers, &overview, deferred).to_string()
    } else {
        to_text(&depths, &workers, &overview, deferred)
    };
    print_line(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn to_json(
    depths: &[Depth],
    workers: &[WorkerRecord],
    overview: &Overview,
    deferred: [u32; 3],
) -> serde_json::Value {
    let deferred = DeferredQueue::ALL.into_iter().zip(deferred);
    json!({
        "deferred": deferred.map(|(queue, count)| (queue.as_str().to_owned(), json!(count)))
            .collect::<serde_json::Map<_, _>>(),
        "queues": depths.iter().map(|depth| json!({
            "name": depth.queue.name(),
            "ready": depth.ready,
            "consumers": depth.consumers,
        })).collect::<Vec<_>>(),
        "workers": workers.iter().map(|worker| json!({
            "worker": worker.worker,
            "tier": worker.tier,
            "model": worker.model,
            "revision": worker.revision,
            "batch_max": worker.batch_max,
            "running": worker.running,
            "draining": worker.draining,
            "seen_at": worker.seen_at,
        })).collect::<Vec<_>>(),
        "jobs": overview.states.iter().map(|(state, count)| (state.to_string(), json!(count)))
            .collect::<serde_json::Map<_, _>>(),
        "finished_last_minute": overview.finished_last_minute,
        "completion_tokens_last_minute": overview.completion_tokens_last_minute,
        "dead_letters": overview.dead_letters,
    })
}

fn to_text(
    depths: &[Depth],
    workers: &[WorkerRecord],
    overview: &Overview,
    [scheduled, small, large]: [u32; 3],
) -> String {
    let mut queues = table(&["QUEUE", "READY", "CONSUMERS"]);
    // Empty affinity queues are not shown.
    let is_shown = |depth: &&Depth| depth.ready > 0 || !matches!(depth.queue, Queue::Affinity(..));
    for depth in depths.iter().filter(is_shown) {
        queues.add_row([
            depth.queue.name().to_owned(),
            depth.ready.to_string(),
            depth.consumers.to_string(),
        ]);
    }
    let mut fleet = table(&["WORKER", "TIER", "MODEL", "RUNNING", "SEEN", ""]);
    let now = chrono::Utc::now();
    for worker in workers {
        let age = (now - worker.seen_at).num_seconds().max(0);
        fleet.add_row([
            worker.worker.clone(),
            worker.tier.to_string(),
            worker.model.clone(),
            format!("{} of {}", worker.running, worker.batch_max),
            format!("{age} s ago"),
            if worker.draining {
                "draining".to_owned()
            } else {
                String::new()
            },
        ]);
    }
    let states: Vec<_> = overview
        .states
        .iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let states = if states.is_empty() {
        "none".to_owned()
    } else {
        states.join(", ")
    };
    let workers = if workers.is_empty() {
        "no worker seen in the last hour".to_owned()
    } else {
        fleet.to_string()
    };
    format!(
        "{queues}\n\n{workers}\n\njobs of the last day: {states}\ndeferred: {scheduled} until their start time, {small} for small and {large} for large by fair scheduling\nlast minute: {} finished, {} tokens generated\ndead letters: {}",
        overview.finished_last_minute,
        overview.completion_tokens_last_minute,
        overview.dead_letters,
    )
}
