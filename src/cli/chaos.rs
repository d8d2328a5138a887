//! `chaos`: sends jobs to a running fleet while injecting faults, and checks its guarantees.
//!
//! The operator supplies the faults as shell commands, such as one that kills a container and starts it
//! again. They run one at a time, at random times drawn from a seed.

mod check;

use std::{
    collections::HashMap,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::Args;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::Instant,
};

use crate::{
    broker::{Broker, Publication, publisher::publish_all, wire::WireMessage},
    config::Overrides,
    console::{
        options::{Common, UsageError, init_logs, read_span, require_database},
        terminal::{eprint_line, print_line},
    },
    fleet,
    job::{JobId, JobRecord, Tenant},
    shutdown::Shutdown,
    store::Store,
};

use check::{Findings, SentJob};

/// Every this many messages, one is sent twice.
const TWICE_EVERY: usize = 20;
/// Range of the numbers in prompts; small, so that prompts repeat.
const OPERANDS: u32 = 40;
/// Wait between two polls for ended jobs, and most jobs per query.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
const POLLED_MAX: usize = 1_000;
/// Wait between two checks whether a command has ended.
const COMMAND_POLL: Duration = Duration::from_millis(20);
/// Time limit of a command.
const COMMAND_MAX: Duration = Duration::from_secs(120);

/// Inject faults into a running fleet while it processes jobs, and check its guarantees
///
/// Needs a running fleet (`up`, or routers and workers) and commands that inject faults, such as
/// --hurt 'docker compose kill worker-small; docker compose up -d worker-small'.
/// At the end, every confirmed job must have exactly one terminal row, equal greedy prompts must have
/// equal answers from the same model, and every attempt must have an outcome.
#[derive(Debug, Args)]
pub struct ChaosArgs {
    /// Shell command that injects a fault from which the fleet can recover (repeatable)
    #[arg(long = "hurt", value_name = "COMMAND")]
    commands: Vec<String>,
    /// Number of jobs to send
    #[arg(long, default_value_t = 500)]
    jobs: usize,
    /// Jobs per second
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
    /// Mean time between two commands
    #[arg(long, value_name = "SPAN", default_value = "5s")]
    every: String,
    /// Longest wait for all jobs to end after the last is sent
    #[arg(long, value_name = "SPAN", default_value = "10m")]
    wait: String,
    /// Seed of prompts, commands and their times [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// Tenant of the jobs
    #[arg(long, value_name = "NAME", default_value = "chaos")]
    tenant: Tenant,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: Common,
}

/// Runs `chaos`.
pub async fn chaos(args: ChaosArgs) -> anyhow::Result<ExitCode> {
    let every = span("--every", &args.every)?;
    let wait = span("--wait", &args.wait)?;
    if !(args.rate > 0.0 && args.rate.is_finite()) || args.jobs == 0 {
        return Err(UsageError("--jobs and --rate: expected numbers above 0".to_owned()).into());
    }
    let config = args.common.load(Overrides::default())?;
    init_logs(&config)?;
    require_database(&config)?;
    let (broker, store) = fleet::connect(&config, false).await?;
    let seed = args.seed.unwrap_or_else(|| rand::rng().random());
    eprint_line(&format!("seed {seed}"));
    let faults = FaultInjector::start(args.commands.clone(), every, seed);
    let begun = Instant::now();
    let sent = send(&broker, &args, seed).await?;
    let injected = faults.stop().await?;
    let records = settle(&store, &args.tenant, &sent, wait).await?;
    let findings = check::check(&store, &sent, &records).await;
    broker.close().await;
    store.close().await;
    let findings = findings?;
    report(&args, seed, (injected, begun.elapsed()), &findings)?;
    Ok(ExitCode::from(u8::from(!findings.violations.is_empty())))
}

fn span(flag: &str, text: &str) -> anyhow::Result<Duration> {
    read_span(flag, text)?
        .to_std()
        .with_context(|| format!("{flag} {text}"))
}

/// Sends the jobs at their rate. Returns when the broker has confirmed each.
async fn send(broker: &Broker, args: &ChaosArgs, seed: u64) -> anyhow::Result<Vec<SentJob>> {
    let mut rng = StdRng::seed_from_u64(seed ^ 1);
    let name = JobId::now();
    let stop = Shutdown::new();
    let mut pace = tokio::time::interval(Duration::from_secs_f64(1.0 / args.rate));
    let mut sent = Vec::with_capacity(args.jobs);
    for at in 0..args.jobs {
        pace.tick().await;
        let (a, b) = (rng.random_range(0..OPERANDS), rng.random_range(0..OPERANDS));
        let one = SentJob {
            key: format!("chaos:{name}:{at}"),
            prompt: format!("What is {a} plus {b}?"),
        };
        let cache = if rng.random_bool(0.5) { "off" } else { "exact" };
        let body = json!({
            "prompt": one.prompt,
            "temperature": 0,
            "promptyard": {"tenant": args.tenant, "cache": cache},
        });
        let message = || {
            Publication::from(WireMessage {
                key: Some(one.key.clone()),
                batch: Some(format!("chaos-{name}")),
                ..WireMessage::new(body.to_string().into_bytes())
            })
        };
        let count = if at % TWICE_EVERY == 0 { 2 } else { 1 };
        let messages = std::iter::repeat_with(message).take(count).collect();
        let done = publish_all(broker, messages, &stop).await;
        ensure!(
            done.iter().all(|is_out| *is_out),
            "the broker did not confirm a message"
        );
        sent.push(one);
    }
    Ok(sent)
}

/// Waits until every job has ended, for at most `wait`; returns the rows.
async fn settle(
    store: &Store,
    tenant: &Tenant,
    sent: &[SentJob],
    wait: Duration,
) -> anyhow::Result<Vec<JobRecord>> {
    let keys: Vec<String> = sent.iter().map(|one| one.key.clone()).collect();
    let until = Instant::now() + wait;
    let mut ended: HashMap<String, JobRecord> = HashMap::new();
    loop {
        let open: Vec<String> = keys
            .iter()
            .filter(|key| !ended.contains_key(*key))
            .cloned()
            .collect();
        let mut known = Vec::new();
        for part in open.chunks(POLLED_MAX) {
            match store.records_by_key(tenant, part).await {
                Ok(records) => known.extend(records),
                // The database may be the target of a fault.
                Err(error) if error.is_transient() => {}
                Err(error) => return Err(error.into()),
            }
        }
        let (done, rest): (Vec<_>, Vec<_>) = known
            .into_iter()
            .partition(|record| record.state.is_terminal());
        for record in done {
            ended.insert(record.key.clone().unwrap_or_default(), record);
        }
        if ended.len() == keys.len() || Instant::now() >= until {
            return Ok(ended.into_values().chain(rest).collect());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Runs fault commands concurrently with the traffic.
struct FaultInjector {
    stop: Shutdown,
    task: JoinHandle<usize>,
}

impl FaultInjector {
    fn start(commands: Vec<String>, every: Duration, seed: u64) -> Self {
        let stop = Shutdown::new();
        let stopped = stop.clone();
        let mut rng = StdRng::seed_from_u64(seed);
        let task = tokio::spawn(async move {
            let mut count = 0;
            if commands.is_empty() {
                return count;
            }
            let begun = Instant::now();
            loop {
                let pause = every.mul_f64(rng.random_range(0.5..1.5));
                tokio::select! {
                    () = stopped.requested() => return count,
                    () = tokio::time::sleep(pause) => {}
                }
                let command = commands[rng.random_range(0..commands.len())].clone();
                let to_run = command.clone();
                let how = match spawn_blocking(move || run(&to_run)).await {
                    Ok(Ok(how)) => how,
                    Ok(Err(error)) => error.to_string(),
                    Err(error) => error.to_string(),
                };
                count += 1;
                let at = begun.elapsed().as_secs_f64();
                eprint_line(&format!("{at:8.1} s  {how}  {command}"));
            }
        });
        Self { stop, task }
    }

    /// Waits for the running command to end; returns how many have run.
    async fn stop(self) -> anyhow::Result<usize> {
        self.stop.request();
        self.task.await.context("the fault injector panicked")
    }
}

/// Runs a command, killing it at the time limit; returns its exit status as text.
fn run(command: &str) -> std::io::Result<String> {
    let begun = std::time::Instant::now();
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.to_string());
        }
        if begun.elapsed() > COMMAND_MAX {
            child.kill()?;
            child.wait()?;
            return Ok("killed: took too long".to_owned());
        }
        std::thread::sleep(COMMAND_POLL);
    }
}

fn report(
    args: &ChaosArgs,
    seed: u64,
    (injected, took): (usize, Duration),
    findings: &Findings,
) -> anyhow::Result<()> {
    if args.json {
        let report = json!({
            "seed": seed,
            "jobs": args.jobs,
            "commands": injected,
            "seconds": took.as_secs_f64(),
            "states": findings.states,
            "attempts": findings.attempts,
            "violations": findings.violations,
        });
        return Ok(print_line(&report.to_string())?);
    }
    let states: Vec<_> = findings
        .states
        .iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    print_line(&format!(
        "{} jobs, {injected} commands, {:.0} s: {}; {} attempts",
        args.jobs,
        took.as_secs_f64(),
        states.join(", "),
        findings.attempts
    ))?;
    for violation in &findings.violations {
        print_line(&format!("VIOLATION: {violation}"))?;
    }
    if findings.violations.is_empty() {
        print_line(
            "every job ended once, equal prompts have equal answers, every attempt has an outcome",
        )?;
    }
    Ok(())
}
