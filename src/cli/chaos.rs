//! `chaos`: traffic on a running fleet while something hurts it, and whether it kept its word.
//!
//! What hurts is for whoever runs the fleet to say: shell commands, such as one that kills a container and
//! starts it again. They are run one at a time, at random moments that a seed decides.

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
    console::options::{Common, UsageError, complain, init_logs, read_span, require_database, say},
    fleet,
    job::{JobId, JobRecord, Tenant},
    shutdown::Shutdown,
    store::Store,
};

use check::Verdicts;

/// Of so many messages one is sent twice.
const TWICE_EVERY: usize = 20;
/// Numbers that prompts are made of: few, so that prompts repeat.
const OPERANDS: u32 = 40;
/// How often the ledger is asked whether all have ended, and for how many jobs at once.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
const LOOKED_AT_MAX: usize = 1_000;
/// How often a command is looked at.
const COMMAND_LOOK: Duration = Duration::from_millis(20);
/// Longest that one command may take.
const HURT_MAX: Duration = Duration::from_secs(120);

/// Hurt a running fleet while jobs go through it, and check that it keeps its word
///
/// Needs a fleet that runs (`up`, or routers and workers) and commands that hurt it, such as
/// --hurt 'docker compose kill worker-small; docker compose up -d worker-small'.
/// At the end every confirmed job must have exactly one terminal row, equal greedy prompts equal
/// answers of equal models, and every attempt an outcome.
#[derive(Debug, Args)]
pub struct ChaosArgs {
    /// Shell command that hurts the fleet and leaves it able to recover (repeatable)
    #[arg(long = "hurt", value_name = "COMMAND")]
    commands: Vec<String>,
    /// Jobs to send
    #[arg(long, default_value_t = 500)]
    jobs: usize,
    /// Jobs a second
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
    /// Mean time between two commands
    #[arg(long, value_name = "SPAN", default_value = "5s")]
    every: String,
    /// Longest wait for the last jobs to end
    #[arg(long, value_name = "SPAN", default_value = "10m")]
    wait: String,
    /// Decides what hurts when; a fresh one by default
    #[arg(long)]
    seed: Option<u64>,
    /// The tenant that the jobs are of
    #[arg(long, value_name = "NAME", default_value = "chaos")]
    tenant: Tenant,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: Common,
}

/// A job that was sent.
#[derive(Debug)]
struct Sent {
    key: String,
    prompt: String,
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
    complain(&format!("seed {seed}"));
    let hurting = Hurting::begin(args.commands.clone(), every, seed);
    let begun = Instant::now();
    let sent = send(&broker, &args, seed).await?;
    let hurts = hurting.end().await?;
    let records = settle(&store, &args.tenant, &sent, wait).await?;
    let verdicts = check::check(&store, &sent, &records).await;
    broker.close().await;
    store.close().await;
    let verdicts = verdicts?;
    report(&args, seed, (hurts, begun.elapsed()), &verdicts)?;
    Ok(ExitCode::from(u8::from(!verdicts.broken.is_empty())))
}

fn span(flag: &str, text: &str) -> anyhow::Result<Duration> {
    read_span(flag, text)?
        .to_std()
        .with_context(|| format!("{flag} {text}"))
}

/// Sends the jobs at their rate. Returns when the broker has confirmed each.
async fn send(broker: &Broker, args: &ChaosArgs, seed: u64) -> anyhow::Result<Vec<Sent>> {
    let mut rng = StdRng::seed_from_u64(seed ^ 1);
    let name = JobId::now();
    let stop = Shutdown::new();
    let mut pace = tokio::time::interval(Duration::from_secs_f64(1.0 / args.rate));
    let mut sent = Vec::with_capacity(args.jobs);
    for at in 0..args.jobs {
        pace.tick().await;
        let (a, b) = (rng.random_range(0..OPERANDS), rng.random_range(0..OPERANDS));
        let one = Sent {
            key: format!("chaos:{name}:{at}"),
            prompt: format!("What is {a} plus {b}?"),
        };
        let cache = if rng.random_bool(0.5) { "off" } else { "exact" };
        let body = json!({
            "prompt": one.prompt,
            "temperature": 0,
            "promptyard": {"tenant": args.tenant, "cache": cache},
        });
        let letter = || {
            Publication::from(WireMessage {
                key: Some(one.key.clone()),
                batch: Some(format!("chaos-{name}")),
                ..WireMessage::new(body.to_string().into_bytes())
            })
        };
        let count = if at % TWICE_EVERY == 0 { 2 } else { 1 };
        let messages = std::iter::repeat_with(letter).take(count).collect();
        let done = publish_all(broker, messages, &stop).await;
        ensure!(
            done.iter().all(|is_out| *is_out),
            "a message was not confirmed"
        );
        sent.push(one);
    }
    Ok(sent)
}

/// Waits until every job has ended, or the patience has.
async fn settle(
    store: &Store,
    tenant: &Tenant,
    sent: &[Sent],
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
        for part in open.chunks(LOOKED_AT_MAX) {
            match store.records_by_key(tenant, part).await {
                Ok(records) => known.extend(records),
                // It may be one of those that are hurt.
                Err(fault) if fault.is_transient() => {}
                Err(fault) => return Err(fault.into()),
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
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Commands that hurt, run beside the traffic.
struct Hurting {
    stop: Shutdown,
    task: JoinHandle<usize>,
}

impl Hurting {
    fn begin(commands: Vec<String>, every: Duration, seed: u64) -> Self {
        let stop = Shutdown::new();
        let told = stop.clone();
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
                    () = told.requested() => return count,
                    () = tokio::time::sleep(pause) => {}
                }
                let command = commands[rng.random_range(0..commands.len())].clone();
                let hurt = command.clone();
                let how = match spawn_blocking(move || run(&hurt)).await {
                    Ok(Ok(how)) => how,
                    Ok(Err(fault)) => fault.to_string(),
                    Err(fault) => fault.to_string(),
                };
                count += 1;
                let at = begun.elapsed().as_secs_f64();
                complain(&format!("{at:8.1} s  {how}  {command}"));
            }
        });
        Self { stop, task }
    }

    /// Lets the command that runs end; returns how many there were.
    async fn end(self) -> anyhow::Result<usize> {
        self.stop.request();
        self.task.await.context("what hurts has panicked")
    }
}

/// Runs a command to its end, or ends it when it takes too long; tells how it went.
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
        if begun.elapsed() > HURT_MAX {
            child.kill()?;
            child.wait()?;
            return Ok("took too long and was ended".to_owned());
        }
        std::thread::sleep(COMMAND_LOOK);
    }
}

fn report(
    args: &ChaosArgs,
    seed: u64,
    (hurts, took): (usize, Duration),
    verdicts: &Verdicts,
) -> anyhow::Result<()> {
    if args.json {
        let report = json!({
            "seed": seed,
            "jobs": args.jobs,
            "hurts": hurts,
            "seconds": took.as_secs_f64(),
            "states": verdicts.states,
            "attempts": verdicts.attempts,
            "broken": verdicts.broken,
        });
        return Ok(say(&report.to_string())?);
    }
    let states: Vec<_> = verdicts
        .states
        .iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    say(&format!(
        "{} jobs, {hurts} commands, {:.0} s: {}; {} attempts",
        args.jobs,
        took.as_secs_f64(),
        states.join(", "),
        verdicts.attempts
    ))?;
    for broken in &verdicts.broken {
        say(&format!("BROKEN: {broken}"))?;
    }
    if verdicts.broken.is_empty() {
        say(
            "every job has ended once, equal prompts have equal answers, every attempt has an outcome",
        )?;
    }
    Ok(())
}
