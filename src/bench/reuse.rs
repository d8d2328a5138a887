//! `bench reuse`: the latency of reused answers against computed ones, in the same run.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Args;
use serde_json::json;

use crate::{
    broker::{Publication, wire::WireMessage},
    config::{Config, Overrides, SecretUrl},
    console::options::{Common, ModelArgs, init_logs, note_bundled},
    fleet::{Fleet, Roles},
    job::{AnswerSource, JobRecord, Tenant, Tier},
    shutdown::Shutdown,
};

use super::{
    load::scratch_name,
    report::print,
    statistics::{quantile, sorted},
};

/// Longest wait for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Wait between two polls for an answer.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Arguments of `bench reuse`.
#[derive(Debug, Args)]
pub struct ReuseBenchArgs {
    /// Prompts per kind, one after the other
    #[arg(long, default_value_t = 300)]
    jobs: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    models: ModelArgs,
    #[command(flatten)]
    common: Common,
}

/// Latencies of one kind of answer, in ascending milliseconds.
struct Latencies {
    kind: &'static str,
    millis: Vec<f64>,
}

impl Latencies {
    fn at(&self, share: f64) -> f64 {
        quantile(&self.millis, share)
    }
}

/// Runs `bench reuse` on its own queues and tables, in a temporary file unless servers are named.
///
/// # Errors
/// When the roles cannot be started or an answer does not arrive.
pub(super) async fn bench_reuse(args: ReuseBenchArgs) -> anyhow::Result<ExitCode> {
    let mut overrides = Overrides::default();
    args.models.apply(&mut overrides);
    let mut config = args.common.load(overrides)?;
    init_logs(&config)?;
    note_bundled(&config, &Tier::ALL);
    let name = scratch_name();
    config.store.schema = name.clone();
    config.broker.prefix = format!("{name}.");
    let file = std::env::temp_dir().join(format!("{name}.db"));
    let is_embedded = config.sqlite_path().is_some();
    if is_embedded {
        config.store.url = SecretUrl::new(format!("sqlite:{}", file.display()));
    }
    let outcome = measure(&config, args.jobs.max(1)).await;
    if is_embedded {
        for end in ["", "-wal", "-shm", ".lock"] {
            // Some of these files may never have existed.
            let _ = std::fs::remove_file(format!("{}{end}", file.display()));
        }
    }
    report(&args, &outcome?)
}

async fn measure(config: &Config, jobs: usize) -> anyhow::Result<[Latencies; 2]> {
    let roles = Roles {
        router: true,
        tiers: Tier::ALL.to_vec(),
        api: false,
        migrate: true,
    };
    let fleet = Fleet::start(config, &roles, None, &Shutdown::new()).await?;
    let measured = async {
        let (mut misses, mut hits) = (Vec::new(), Vec::new());
        for at in 0..jobs {
            // Alternate, so that other load on the machine affects both.
            for (times, source) in [
                (&mut misses, AnswerSource::Computed),
                (&mut hits, AnswerSource::Cache),
            ] {
                let (millis, record) = ask(&fleet, at, source.as_str()).await?;
                anyhow::ensure!(
                    record.source == Some(source),
                    "prompt {at} ended as {} from {:?}",
                    record.state,
                    record.source
                );
                times.push(millis);
            }
        }
        let latencies = |kind, millis| Latencies {
            kind,
            millis: sorted(millis),
        };
        Ok([latencies("computed", misses), latencies("reused", hits)])
    }
    .await;
    if config.sqlite_path().is_none() {
        fleet.broker.delete_queues().await?;
        fleet.store.drop_all().await?;
    }
    // The roles may report errors, since their queues are deleted.
    let _ = fleet.stop().await;
    measured
}

/// Milliseconds from publishing a prompt until its terminal row exists.
async fn ask(fleet: &Fleet, at: usize, kind: &str) -> anyhow::Result<(f64, JobRecord)> {
    let body = json!({"prompt": format!("Where is order A{:04} now?", at), "max_tokens": 16});
    let key = format!("{kind}-{at}");
    let message = Publication::from(WireMessage {
        key: Some(key.clone()),
        ..WireMessage::new(body.to_string().into_bytes())
    });
    let begun = Instant::now();
    for outcome in fleet.broker.publish(&[message]).await {
        outcome.context("cannot publish")?;
    }
    let (tenant, keys) = (Tenant::default(), [key]);
    loop {
        let records = fleet.store.records_by_key(&tenant, &keys).await?;
        if let Some(record) = records.into_iter().find(|r| r.state.is_terminal()) {
            return Ok((begun.elapsed().as_secs_f64() * 1e3, record));
        }
        anyhow::ensure!(begun.elapsed() < ANSWER_MAX, "no answer to prompt {at}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn report(args: &ReuseBenchArgs, latencies: &[Latencies; 2]) -> anyhow::Result<ExitCode> {
    let [computed, reused] = latencies;
    let ratio = |share: f64| reused.at(share) / computed.at(share);
    let json = || {
        let of = |one: &Latencies| json!({"p50_ms": one.at(0.5), "p99_ms": one.at(0.99)});
        json!({
            "jobs": args.jobs,
            "computed": of(computed),
            "reused": of(reused),
            "ratio_p50": ratio(0.5),
            "ratio_p99": ratio(0.99),
        })
    };
    let text = || {
        let line = |one: &Latencies| {
            let (p50, p99) = (one.at(0.5), one.at(0.99));
            format!("{:<9} p50 {p50:>8.1} ms, p99 {p99:>8.1} ms", one.kind)
        };
        format!(
            "{}\n{}\nratio     p50 {:>8.2},    p99 {:>8.2}\n(one prompt at a time, from publishing to its terminal row)",
            line(computed),
            line(reused),
            ratio(0.5),
            ratio(0.99)
        )
    };
    print(args.json, json, text)
}
