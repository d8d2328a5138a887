//! `bench`: measurements that anyone can repeat, each beside a limit in the same run.

mod affinity;
mod batching;
mod cascade;
mod clean;
mod device;
mod endurance;
mod engine;
mod latency;
mod perplexity;
mod prefix;
mod prune;
mod reuse;
mod score;
mod steps;
mod tokens;

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::json;
use tokio::{sync::Semaphore, task::spawn_blocking};
use tokio_util::task::TaskTracker;

use crate::{
    broker::{Broker, Publication, Queue, Target, wire::WireMessage},
    config::{Config, Overrides, RouterConfig},
    console::options::{Common, complain, init_logs, say},
    fleet,
    job::{JobId, Tier},
    router::Router,
    shutdown::Shutdown,
    store::Store,
};

use self::{
    batching::{BatchingBenchArgs, bench_batching},
    clean::{CleanBenchArgs, bench_clean},
    endurance::{EnduranceBenchArgs, bench_endurance},
    engine::{EngineBenchArgs, bench_engine},
    latency::{LatencyBenchArgs, bench_latency},
    perplexity::{PerplexityArgs, bench_perplexity},
    prefix::{PrefixBenchArgs, bench_prefix},
    reuse::{ReuseBenchArgs, bench_reuse},
    score::{ScoreBenchArgs, score_bench},
    tokens::{TokensBenchArgs, bench_tokens},
};

/// Messages published at once while a queue is filled.
const FILL_MAX: usize = 512;
/// Wait between two looks at the tiers' queues.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Measure promptyard on this machine.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// The router stage beside the bare hop consume → republish with confirm → acknowledge
    Route(RouteBenchArgs),
    /// How much context pruning cuts, and whether what a question needs stays
    Prune(prune::PruneBenchArgs),
    /// The in-process engine: prefill and decode speed beside the machine's limits
    Engine(EngineBenchArgs),
    /// Continuous batching beside one at a time and static batches, on one queue
    Batching(BatchingBenchArgs),
    /// A lone request beside plain generation, and a long prompt among running answers
    Latency(LatencyBenchArgs),
    /// What the prefix cache finds of a trace, and what that saves until the first token
    Prefix(PrefixBenchArgs),
    /// What clean-up that loses nothing takes off, and what it costs
    Clean(CleanBenchArgs),
    /// How long a reused answer takes, beside one that is computed
    Reuse(ReuseBenchArgs),
    /// What each saving takes off a file's prompt tokens, and what it does to the answers
    Tokens(TokensBenchArgs),
    /// Resident memory over many sequences
    Endurance(EnduranceBenchArgs),
    Cascade(cascade::CascadeArgs),
    /// What bf16 and the like cost in quality: perplexity on text, and changes of the likeliest token
    Perplexity(PerplexityArgs),
    /// Microseconds that scoring a prompt takes on one core
    Score(ScoreBenchArgs),
}

/// Arguments of `bench route`.
#[derive(Debug, Args)]
pub struct RouteBenchArgs {
    /// Jobs in each round
    #[arg(long, default_value_t = 10_000)]
    jobs: usize,
    /// Rounds; the two are measured in turn, and the medians reported
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: Common,
}

/// Runs `bench`.
pub async fn bench(command: BenchCommand) -> anyhow::Result<ExitCode> {
    let args = match command {
        BenchCommand::Route(args) => args,
        BenchCommand::Prune(args) => return prune::bench_prune(&args),
        BenchCommand::Engine(args) => {
            return spawn_blocking(move || bench_engine(&args)).await?;
        }
        BenchCommand::Batching(args) => {
            return spawn_blocking(move || bench_batching(&args)).await?;
        }
        BenchCommand::Latency(args) => return bench_latency(&args).await,
        BenchCommand::Prefix(args) => {
            return spawn_blocking(move || bench_prefix(&args)).await?;
        }
        BenchCommand::Clean(args) => return bench_clean(&args),
        BenchCommand::Reuse(args) => return bench_reuse(args).await,
        BenchCommand::Tokens(args) => {
            return spawn_blocking(move || bench_tokens(&args)).await?;
        }
        BenchCommand::Endurance(args) => return bench_endurance(&args).await,
        BenchCommand::Perplexity(args) => {
            return spawn_blocking(move || bench_perplexity(&args)).await?;
        }
        BenchCommand::Cascade(args) => return cascade::cascade(args).await,
        BenchCommand::Score(args) => return score_bench(&args),
    };
    let mut config = args.common.load(Overrides::default())?;
    init_logs(&config)?;
    // Queues and tables of its own, whatever else the servers hold.
    let name = JobId::now().to_string().replace('-', "");
    let name = format!("bench_{}", &name[name.len() - 12..]);
    config.store.schema = name.clone();
    let (mut hops, mut routes) = (Vec::new(), Vec::new());
    for round in 0..args.rounds.max(1) {
        config.broker.prefix = format!("{name}.{round}h.");
        let hop = measure_hop(&config, args.jobs).await?;
        config.broker.prefix = format!("{name}.{round}r.");
        let route = measure_router(&config, args.jobs).await?;
        complain(&format!(
            "round {}: hop {:.0} jobs/s, router {:.0} jobs/s, ratio {:.2}",
            round + 1,
            hop.jobs_per_second,
            route.jobs_per_second,
            route.jobs_per_second / hop.jobs_per_second
        ));
        hops.push(hop);
        routes.push(route);
    }
    report(&args, &hops, &routes)?;
    Ok(ExitCode::SUCCESS)
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
struct Measured {
    jobs_per_second: f64,
    /// Of this process; the servers' own is not in it.
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

/// The hop alone, with the router's own prefetch, batches and batches in flight.
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
            let all_out = broker.publish(messages).await.iter().all(Result::is_ok);
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

/// The router itself: parse, cache look-up, score, insert, republish with confirm, acknowledge.
async fn measure_router(config: &Config, jobs: usize) -> anyhow::Result<Measured> {
    let store = Store::connect(&config.store).await?;
    store.migrate().await?;
    store.ensure_partitions().await?;
    let broker = Broker::connect(&config.broker, &fleet::embedded_path(config)).await?;
    fill(&broker, jobs).await?;
    let router = Router::new(
        broker.clone(),
        store.clone(),
        // Nobody works here, so all that is routed must go to the queues.
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

/// Jobs that wait in the tiers' queues.
async fn routed(broker: &Broker) -> anyhow::Result<u64> {
    let depths = broker.depths().await?;
    let tiers = depths.iter().filter(|depth| depth.queue.tier().is_some());
    Ok(tiers.map(|depth| depth.ready).sum())
}

/// Publishes prompts of some 400 bytes, no two alike, each with a key of its own.
async fn fill(broker: &Broker, jobs: usize) -> anyhow::Result<()> {
    let filler = "The order was placed on Monday and has not arrived; the customer asks for news. ";
    for from in (0..jobs).step_by(FILL_MAX) {
        let letters = (from..jobs.min(from + FILL_MAX)).map(|at| {
            let prompt = format!("{}What should we answer to acker {at}?", filler.repeat(4));
            let body = json!({"messages": [{"role": "user", "content": prompt}], "temperature": 0});
            Publication::from(WireMessage {
                key: Some(format!("bench-{at}")),
                ..WireMessage::new(body.to_string().into_bytes())
            })
        });
        for outcome in broker.publish(letters.collect()).await {
            outcome.context("cannot fill the queue")?;
        }
    }
    Ok(())
}

/// Processor seconds of this process, where the system tells (Linux).
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // After the command's name, which may hold spaces, utime and stime are fields 12 and 13.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks: f64 = fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?;
    Some(ticks / TICKS_PER_SECOND)
}

/// `USER_HZ`: 100 on every Linux that Rust supports.
const TICKS_PER_SECOND: f64 = 100.0;

fn report(args: &RouteBenchArgs, hops: &[Measured], routes: &[Measured]) -> anyhow::Result<()> {
    let speed = |all: &[Measured]| median(all.iter().map(|one| one.jobs_per_second).collect());
    let cpu = |all: &[Measured]| {
        let known: Vec<_> = all.iter().filter_map(|one| one.cpu_us_per_job).collect();
        (!known.is_empty()).then(|| median(known))
    };
    let pairs = hops
        .iter()
        .zip(routes)
        .map(|(hop, route)| route.jobs_per_second / hop.jobs_per_second);
    let ratio = median(pairs.collect());
    let (hop, route) = (speed(hops), speed(routes));
    if args.json {
        let summary = json!({
            "jobs": args.jobs,
            "rounds": hops.len(),
            "hop_jobs_per_second": hop,
            "router_jobs_per_second": route,
            "ratio": ratio,
            "hop_cpu_us_per_job": cpu(hops),
            "router_cpu_us_per_job": cpu(routes),
        });
        say(&summary.to_string())?;
        return Ok(());
    }
    let show_cpu = |us: Option<f64>| us.map_or("unknown".to_owned(), |us| format!("{us:.0} µs"));
    say(&format!(
        "bare hop  {hop:>7.0} jobs/s, {} CPU of this process a job\nrouter    {route:>7.0} jobs/s, {} CPU of this process a job\nratio     {ratio:>7.2}",
        show_cpu(cpu(hops)),
        show_cpu(cpu(routes)),
    ))?;
    Ok(())
}

/// The middle of some values; not a number when there is none.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}
