//! `bench reuse`: how long a reused answer takes, beside one that is computed, in the same run.

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
    console::options::note_bundled,
    console::options::{Common, ModelArgs, complain, init_logs, say},
    fleet::{Fleet, Roles},
    job::{AnswerSource, JobId, JobRecord, Tenant, Tier},
    shutdown::Shutdown,
};

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Wait between two looks for an answer.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// Arguments of `bench reuse`.
#[derive(Debug, Args)]
pub struct ReuseBenchArgs {
    /// Prompts of each kind, one after the other
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

/// Latencies of one kind, in milliseconds, sorted.
struct Times {
    kind: &'static str,
    millis: Vec<f64>,
}

impl Times {
    fn at(&self, share: f64) -> f64 {
        let last = self.millis.len().saturating_sub(1);
        self.millis
            .get((share * last as f64).round() as usize)
            .copied()
            .unwrap_or(f64::NAN)
    }
}

/// Runs `bench reuse`: queues and tables of its own, in a temporary file unless servers are named.
///
/// # Errors
/// When the roles cannot be started or an answer does not come.
pub async fn bench_reuse(args: ReuseBenchArgs) -> anyhow::Result<ExitCode> {
    let mut overrides = Overrides::default();
    args.models.apply(&mut overrides);
    let mut config = args.common.load(overrides)?;
    init_logs(&config)?;
    note_bundled(&config, &Tier::ALL);
    let name = JobId::now().to_string().replace('-', "");
    let name = format!("bench_{}", &name[name.len() - 12..]);
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
            // What was never made need not go.
            let _ = std::fs::remove_file(format!("{}{end}", file.display()));
        }
    }
    report(&args, &outcome?)?;
    Ok(ExitCode::SUCCESS)
}

async fn measure(config: &Config, jobs: usize) -> anyhow::Result<[Times; 2]> {
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
            // In turn, so that whatever else the machine does meets both.
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
        misses.sort_by(f64::total_cmp);
        hits.sort_by(f64::total_cmp);
        let times = |kind, millis| Times { kind, millis };
        Ok([times("computed", misses), times("reused", hits)])
    }
    .await;
    if config.sqlite_path().is_none() {
        fleet.broker.delete_queues().await?;
        fleet.store.drop_all().await?;
    }
    // The queues are gone, so the roles may complain of it.
    let _ = fleet.stop().await;
    measured
}

/// Milliseconds from publishing a prompt until its terminal row is there.
async fn ask(fleet: &Fleet, at: usize, kind: &str) -> anyhow::Result<(f64, JobRecord)> {
    let body = json!({"prompt": format!("Where is order A{:04} now?", at), "max_tokens": 16});
    let key = format!("{kind}-{at}");
    let letter = Publication::from(WireMessage {
        key: Some(key.clone()),
        ..WireMessage::new(body.to_string().into_bytes())
    });
    let begun = Instant::now();
    for outcome in fleet.broker.publish(vec![letter]).await {
        outcome.context("cannot publish")?;
    }
    let (tenant, keys) = (Tenant::default(), [key]);
    loop {
        let records = fleet.store.records_by_key(&tenant, &keys).await?;
        if let Some(record) = records.into_iter().find(|r| r.state.is_terminal()) {
            return Ok((begun.elapsed().as_secs_f64() * 1e3, record));
        }
        anyhow::ensure!(begun.elapsed() < PATIENCE, "no answer to prompt {at}");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn report(args: &ReuseBenchArgs, times: &[Times; 2]) -> anyhow::Result<()> {
    let [computed, reused] = times;
    let ratio = |share: f64| reused.at(share) / computed.at(share);
    if args.json {
        let of = |times: &Times| json!({"p50_ms": times.at(0.5), "p99_ms": times.at(0.99)});
        let summary = json!({
            "jobs": args.jobs,
            "computed": of(computed),
            "reused": of(reused),
            "ratio_p50": ratio(0.5),
            "ratio_p99": ratio(0.99),
        });
        say(&summary.to_string())?;
        return Ok(());
    }
    for one in times {
        say(&format!(
            "{:<9} p50 {:>8.1} ms, p99 {:>8.1} ms",
            one.kind,
            one.at(0.5),
            one.at(0.99)
        ))?;
    }
    say(&format!(
        "ratio     p50 {:>8.2},    p99 {:>8.2}",
        ratio(0.5),
        ratio(0.99)
    ))?;
    complain("one prompt at a time, from publishing to its terminal row");
    Ok(())
}
