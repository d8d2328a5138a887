//! `bench route`: the router stage against a bare broker hop.

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Args;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::{
    broker::{Broker, Publication, Queue, Target, wire::WireMessage},
    config::{Config, Overrides, RouterConfig},
    console::{
        options::{Common, init_logs},
        terminal::eprint_line,
    },
    fleet,
    job::Tier,
    router::Router,
    shutdown::Shutdown,
    store::Store,
};

use super::{
    load::scratch_name,
    report::print,
    statistics::{median, median_ratio},
};

/// Messages published at once while a queue is filled.
const FILL_MAX: usize = 512;
/// Wait between two polls of the tiers' queues.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Arguments of `bench route`.
#[derive(Debug, Args)]
pub struct RouteBenchArgs {
    /// Jobs per round
    #[arg(long, default_value_t = 10_000)]
    jobs: usize,
    /// Rounds, each measuring both; medians are reported
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: Common,
}

/// Runs `bench route`.
pub(super) async fn bench_route(args: RouteBenchArgs) -> anyhow::Result<ExitCode> {
    let mut config = args.common.load(Overrides::default())?;
    init_logs(&config)?;
    let name = scratch_name();
    config.store.schema = name.clone();
    let (mut hops, mut routes) = (Vec::new(), Vec::new());
    for round in 0..args.rounds.max(1) {
        config.broker.prefix = format!("{name}.{round}h.");
        let hop = measure_hop(&config, args.jobs).await?;
        config.broker.prefix = format!("{name}.{round}r.");
        let route = measure_router(&config, args.jobs).await?;
        eprint_line(&format!(
            "round {}: hop {:.0} jobs/s, router {:.0} jobs/s, ratio {:.2}",
            round + 1,
            hop.jobs_per_second,
            route.jobs_per_second,
            route.jobs_per_second / hop.jobs_per_second
        ));
        hops.push(hop);
        routes.push(route);
    }
    report(&args, &hops, &routes)
}

/// One round's speed.
#[derive(Clone, Copy, Debug)]
struct Measured {
    jobs_per_second: f64,
    /// CPU time of this process, without the servers'.
    cpu_us_per_job: Option<f64>,
}

impl Measured {
    fn new(jobs: usize, begun: Instant, cpu_begun: Option<f64>) -> Self {
        let seconds = begun.elapsed().as_secs_f64();
        let cpu = cpu_begun
            .zip(cpu_seconds())
            .map(|(from, to)| (to - from) * 1e6 / jobs as f64);
        Self {
            jobs_per_second: jobs as f64 / seconds,
            cpu_us_per_job: cpu,
        }
    }
}

/// Measures the hop alone, with the router's prefetch, batch size and batches in flight.
async fn measure_hop(config: &Config, jobs: usize) -> anyhow::Result<Measured> {
    let broker = Broker::connect(&config.broker, &fleet::embedded_path(config)).await?;
    fill(&broker, jobs).await?;
    let (begun, cpu) = (Instant::now(), cpu_seconds());
    let mut consumer = broker.consume(&[Queue::In], config.router.prefetch).await?;
    let permits = Arc::new(Semaphore::new(config.router.batches_in_flight_max));
    let linger = Duration::from_millis(config.router.linger_ms);
    let tasks = TaskTracker::new();
    let mut taken = 0;
    while taken < jobs {
        let permit = permits.clone().acquire_owned().await?;
        let batch = consumer.next_batch(config.router.batch_max, linger).await;
        anyhow::ensure!(!batch.is_empty(), "the broker was closed");
        taken += batch.len();
        let broker = broker.clone();
        tasks.spawn(async move {
            let (ackers, messages): (Vec<_>, Vec<_>) = batch
                .into_iter()
                .map(|delivery| {
                    let target = Target::Queue(Queue::Tier(Tier::Small));
                    let (envelope, body) = (delivery.envelope, delivery.body);
                    (
                        delivery.acker,
                        Publication {
                            target,
                            envelope,
                            body,
                        },
                    )
                })
                .unzip();
            let all_out = broker.publish(&messages).await.iter().all(Result::is_ok);
            let acked = broker.ack(ackers).await;
            drop(permit);
            all_out && acked.is_ok_and(|dead| dead == 0)
        });
    }
    tasks.close();
    tasks.wait().await;
    let measured = Measured::new(jobs, begun, cpu);
    consumer.close().await;
    broker.delete_queues().await?;
    broker.close().await;
    Ok(measured)
}

/// Measures the router: parse, cache look-up, score, insert, republish with confirm, acknowledge.
async fn measure_router(config: &Config, jobs: usize) -> anyhow::Result<Measured> {
    let store = Store::connect(&config.store).await?;
    store.migrate().await?;
    store.ensure_partitions().await?;
    let broker = Broker::connect(&config.broker, &fleet::embedded_path(config)).await?;
    fill(&broker, jobs).await?;
    let router = Router::new(
        broker.clone(),
        store.clone(),
        // No worker runs here, so every routed job must go to a queue.
        RouterConfig {
            window_jobs: 0,
            ..config.router.clone()
        },
        config.cache.clone(),
        config.request_limits(),
    );
    let shutdown = Shutdown::new();
    let (begun, cpu) = (Instant::now(), cpu_seconds());
    let running = tokio::spawn(router.run(shutdown.clone()));
    let wanted = u64::try_from(jobs).context("too many jobs")?;
    while routed(&broker).await? < wanted {
        anyhow::ensure!(
            !running.is_finished(),
            "the router ended before it was done"
        );
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    let measured = Measured::new(jobs, begun, cpu);
    shutdown.request();
    running.await??;
    broker.delete_queues().await?;
    broker.close().await;
    if !store.is_embedded() {
        store.drop_all().await?;
    }
    store.close().await;
    Ok(measured)
}

/// Counts the jobs in the tiers' queues.
async fn routed(broker: &Broker) -> anyhow::Result<u64> {
    let depths = broker.depths().await?;
    let tiers = depths.iter().filter(|depth| depth.queue.tier().is_some());
    Ok(tiers.map(|depth| depth.ready).sum())
}

/// Publishes distinct prompts of some 400 bytes, each with its own key.
async fn fill(broker: &Broker, jobs: usize) -> anyhow::Result<()> {
    let filler = "The order was placed on Monday and has not arrived; the customer asks for news. ";
    for from in (0..jobs).step_by(FILL_MAX) {
        let messages = (from..jobs.min(from + FILL_MAX)).map(|at| {
            let prompt = format!("{}What should we answer to ticket {at}?", filler.repeat(4));
            let body = json!({"messages": [{"role": "user", "content": prompt}], "temperature": 0});
            Publication::from(WireMessage {
                key: Some(format!("bench-{at}")),
                ..WireMessage::new(body.to_string().into_bytes())
            })
        });
        for outcome in broker.publish(&messages.collect::<Vec<_>>()).await {
            outcome.context("cannot fill the queue")?;
        }
    }
    Ok(())
}

/// CPU seconds of this process; `None` except on Linux.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // utime and stime are fields 12 and 13 after the command's name, which may contain spaces.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks: f64 = fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?;
    Some(ticks / TICKS_PER_SECOND)
}

/// `USER_HZ`: 100 on every Linux that Rust supports.
const TICKS_PER_SECOND: f64 = 100.0;

fn report(
    args: &RouteBenchArgs,
    hops: &[Measured],
    routes: &[Measured],
) -> anyhow::Result<ExitCode> {
    let speeds =
        |all: &[Measured]| -> Vec<f64> { all.iter().map(|one| one.jobs_per_second).collect() };
    let cpu = |all: &[Measured]| {
        let known: Vec<_> = all.iter().filter_map(|one| one.cpu_us_per_job).collect();
        (!known.is_empty()).then(|| median(known))
    };
    let (hop, route) = (speeds(hops), speeds(routes));
    let ratio = median_ratio(&route, &hop);
    let (hop, route) = (median(hop), median(route));
    let show_cpu = |us: Option<f64>| us.map_or("unknown".to_owned(), |us| format!("{us:.0} µs"));
    print(
        args.json,
        || {
            json!({
                "jobs": args.jobs,
                "rounds": hops.len(),
                "hop_jobs_per_second": hop,
                "router_jobs_per_second": route,
                "ratio": ratio,
                "hop_cpu_us_per_job": cpu(hops),
                "router_cpu_us_per_job": cpu(routes),
            })
        },
        || {
            format!(
                "bare hop  {hop:>7.0} jobs/s, {} of CPU in this process per job\nrouter    {route:>7.0} jobs/s, {} of CPU in this process per job\nratio     {ratio:>7.2}",
                show_cpu(cpu(hops)),
                show_cpu(cpu(routes)),
            )
        },
    )
}
