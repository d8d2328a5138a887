//! `run`: answers a file of prompts in one process.

use std::{
    collections::{HashMap, VecDeque},
    io::{BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::Args;
use tokio::{sync::mpsc, time::MissedTickBehavior};

use crate::{
    broker::{Publication, publisher::publish_all, wire::WireMessage},
    config::{Config, Overrides, TelemetryConfig},
    console::{
        input::{self, Line},
        marks::Expectation,
        options::{Common, MetricsArgs, ModelArgs, init_logs, note_bundled},
        output::Output,
        progress::RunProgress,
        terminal::{eprint_line, print_line},
    },
    fleet::{Fleet, Roles},
    job::{JobHead, JobRecord, JobState, Reason, Tenant, Tier},
    shutdown::Shutdown,
    store::{Admission, AdmissionDecision, Admitted, Feedback},
    telemetry,
};

use super::{labels::Labels, summary::Summary};

/// Lines read ahead of submission.
const LINES_AHEAD: usize = 1024;
/// Most lines submitted, and most keys looked up, at once.
const CHUNK_MAX: usize = 256;
/// Most jobs awaited at once; reading pauses beyond.
const AWAITED_MAX: usize = 50_000;
/// Wait between two polls for ended jobs.
const POLL_INTERVAL: Duration = Duration::from_millis(25);
/// Longest wait for workers to drop jobs that were published a second time.
const REPEATS_WAIT_MAX: Duration = Duration::from_secs(3);
/// Longest drain time of an interrupted run in seconds; jobs still running then are requeued.
const DRAIN_S: u64 = 5;
/// Exit code of an interrupted run.
const INTERRUPTED: u8 = 130;

/// Answer a file of prompts
///
/// Each line is a prompt: an OpenAI batch line, a chat-completions body, {"prompt": …} or plain text.
/// Answers are written as OpenAI batch output lines in order of completion; `custom_id` is the line's
/// own or its number. Prompts answered earlier are not computed again, so an interrupted run is resumed
/// by running it again. Lines may give the right answer in "expect", and a "family": the summary then
/// shows the accuracy by family and tier. An answer is right if it, or the text after its last "#",
/// equals "expect".
///
/// Exit codes: 0 all answered, 1 some failed, 2 invalid usage, 130 interrupted.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// File of prompts, one per line; `-` for standard input
    file: PathBuf,
    /// Write answers to a file instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write the signals of the small model's answers to marked lines, for `router calibrate`
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Print the summary as JSON (to standard output with --out, else to standard error)
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    models: ModelArgs,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    metrics: MetricsArgs,
}

/// Runs `run`.
pub async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let config = load(&args)?;
    init_logs(&config)?;
    let lines = input::open(&args.file, config.request_limits())
        .with_context(|| format!("cannot open {}", args.file.display()))?;
    let total = input::count(&args.file)?;
    let mut taken = vec![(args.file.clone(), "the file of prompts")];
    taken.extend(config.sqlite_path().map(|path| (path, "the job database")));
    let out = Output::open(args.out.as_deref(), &taken)?;
    let labels = args.labels.as_deref().map(Labels::create).transpose()?;
    let metrics = match args.metrics.metrics_listen {
        Some(_) => Some(telemetry::init_metrics()?),
        None => None,
    };
    let shutdown = Shutdown::new();
    shutdown.on_signals()?;
    note_bundled(&config, &Tier::ALL);
    let roles = Roles {
        router: true,
        tiers: Tier::ALL.to_vec(),
        api: false,
        migrate: true,
    };
    let fleet = Fleet::start(&config, &roles, metrics, &shutdown).await?;

    let out = out.begin().context("cannot write the answers")?;
    let mut run = Run {
        fleet,
        shutdown: shutdown.clone(),
        awaited: HashMap::new(),
        order: VecDeque::new(),
        repeated: false,
        out: BufWriter::new(out),
        progress: RunProgress::new(total),
        summary: Summary::new(),
        feedback: HashMap::new(),
        labels,
    };
    let outcome = run.answer(lines).await;
    run.progress.finish();
    let Run {
        fleet,
        summary,
        mut out,
        awaited,
        labels,
        ..
    } = run;
    let flushed = out.flush();
    let labelled = match labels {
        Some(labels) => labels.write(&fleet.store).await,
        None => Ok(()),
    };
    let stopped = fleet.stop().await;
    outcome?;
    flushed.context("cannot write the answers")?;
    labelled?;
    stopped?;
    report(&args, &config, &summary)?;
    if shutdown.is_requested() {
        eprint_line(&format!(
            "interrupted with {} jobs open; run the same command again to resume",
            awaited.len()
        ));
        return Ok(ExitCode::from(INTERRUPTED));
    }
    Ok(ExitCode::from(u8::from(summary.failed() > 0)))
}

fn load(args: &RunArgs) -> anyhow::Result<Config> {
    let mut overrides = Overrides::default();
    args.models.apply(&mut overrides);
    args.metrics.apply(&mut overrides);
    let mut config = args.common.load(overrides)?;
    // A file is all backlog at once; without load shifting it is routed the same way every time.
    config.router.load_shift_max.get_or_insert(0.0);
    config.worker.drain_s = config.worker.drain_s.min(DRAIN_S);
    if config.telemetry.log == TelemetryConfig::default().log {
        // Lines would disturb the progress bar, so log only warnings and errors.
        config.telemetry.log = "warn".to_owned();
    }
    Ok(config)
}

fn report(args: &RunArgs, config: &Config, summary: &Summary) -> anyhow::Result<()> {
    let database = config.store.url.masked();
    let text = if args.json {
        summary.to_json(&database).to_string()
    } else {
        summary.to_text(&database).trim_end().to_owned()
    };
    if args.out.is_some() {
        print_line(&text)?;
    } else {
        eprint_line(&text);
    }
    Ok(())
}

/// A line whose job has not ended.
struct AwaitedLine {
    custom_id: String,
    expectation: Option<Expectation>,
}

/// A run in progress.
struct Run {
    fleet: Fleet,
    shutdown: Shutdown,
    /// Lines whose jobs have not ended, by tenant and key.
    awaited: HashMap<(Tenant, String), AwaitedLine>,
    /// Tenants and keys of the awaited lines, in the order of their next look-up.
    order: VecDeque<(Tenant, String)>,
    /// True if jobs were published that an earlier run had already published.
    repeated: bool,
    out: BufWriter<Box<dyn Write + Send>>,
    progress: RunProgress,
    summary: Summary,
    /// Feedback from marked lines, to be stored.
    feedback: HashMap<Tenant, Vec<Feedback>>,
    labels: Option<Labels>,
}

impl Run {
    /// Submits every line and writes every answer, until all have ended or a stop is requested.
    async fn answer(
        &mut self,
        lines: impl Iterator<Item = std::io::Result<Line>> + Send + 'static,
    ) -> anyhow::Result<()> {
        // Reading standard input may block, so a separate thread does it.
        let (sender, mut receiver) = mpsc::channel(LINES_AHEAD);
        std::thread::spawn(move || {
            for line in lines {
                if sender.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        let mut at_end = false;
        let mut poll = tokio::time::interval(POLL_INTERVAL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut chunk = Vec::with_capacity(CHUNK_MAX);
        let shutdown = self.shutdown.clone();
        while !(at_end && self.awaited.is_empty()) {
            let may_read = !at_end && self.awaited.len() < AWAITED_MAX;
            tokio::select! {
                () = shutdown.requested() => return Ok(()),
                ended = self.fleet.ended() => {
                    ended?;
                    anyhow::ensure!(shutdown.is_requested(), "a role ended before the run was complete");
                }
                count = receiver.recv_many(&mut chunk, CHUNK_MAX), if may_read => {
                    at_end = count == 0;
                    let lines = chunk.drain(..).collect::<Result<Vec<_>, _>>();
                    self.submit(lines.context("cannot read the prompts")?).await?;
                }
                _ = poll.tick(), if !self.awaited.is_empty() => self.collect().await?,
            }
        }
        // Jobs published by an earlier run may not have been in the database when their lines were
        // published again; with an embedded queue that shows as a queue that is not empty.
        if self.repeated || !self.fleet.broker.is_shared() {
            // Leftover messages do no harm, but `status` should show an empty queue.
            let _ = tokio::time::timeout(REPEATS_WAIT_MAX, self.drop_repeats()).await;
        }
        Ok(())
    }

    /// Waits until the queues are empty: a worker drops the message of a job that has ended.
    async fn drop_repeats(&self) {
        let mut empty_polls = 0;
        while empty_polls < 2 && !self.shutdown.is_requested() {
            let depths = self.fleet.broker.depths().await.unwrap_or_default();
            let ready: u64 = depths.iter().map(|depth| depth.ready).sum();
            empty_polls = if ready == 0 { empty_polls + 1 } else { 0 };
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn submit(&mut self, lines: Vec<Line>) -> anyhow::Result<()> {
        let mut known = HashMap::new();
        let mut by_tenant: HashMap<Tenant, Vec<String>> = HashMap::new();
        for line in &lines {
            by_tenant
                .entry(line.tenant.clone())
                .or_default()
                .push(line.key.clone());
        }
        for (tenant, keys) in by_tenant {
            for record in self.fleet.store.records_by_key(&tenant, &keys).await? {
                if let Some(key) = record.key.clone() {
                    known.insert((tenant.clone(), key), record);
                }
            }
        }
        let (mut messages, mut refusals) = (Vec::new(), Vec::new());
        for line in lines {
            let slot = (line.tenant.clone(), line.key.clone());
            let awaited_line = AwaitedLine {
                custom_id: line.custom_id.clone(),
                expectation: line.expectation.clone(),
            };
            if let Some(record) = known.get(&slot)
                && record.state.is_terminal()
            {
                self.write(record, &awaited_line, false)?;
                continue;
            }
            match line.body {
                Err(ref reason) => refusals.push((refusal(&line, reason.clone()), awaited_line)),
                Ok(body) => {
                    // An open job is published again in case its message was lost; if not, the
                    // second message is dropped.
                    self.repeated |= known.contains_key(&slot);
                    messages.push(Publication::from(WireMessage {
                        key: Some(line.key),
                        custom_id: Some(line.custom_id),
                        ..WireMessage::new(body)
                    }));
                    self.awaited.insert(slot.clone(), awaited_line);
                    self.order.push_back(slot);
                }
            }
        }
        self.refuse(refusals).await?;
        self.store_feedback().await?;
        publish_all(&self.fleet.broker, messages, &self.shutdown).await;
        Ok(())
    }

    /// Writes refused lines to the database as rejected jobs, with their reasons.
    async fn refuse(&mut self, refusals: Vec<(Admission, AwaitedLine)>) -> anyhow::Result<()> {
        if refusals.is_empty() {
            return Ok(());
        }
        let (admissions, awaited_line): (Vec<_>, Vec<_>) = refusals.into_iter().unzip();
        let outcomes = self.fleet.store.admit(&admissions, Duration::ZERO).await?;
        for (outcome, awaited_line) in outcomes.into_iter().zip(awaited_line) {
            if let Admitted::Ended(record) | Admitted::Known(record) = outcome {
                self.write(&record, &awaited_line, true)?;
            }
        }
        Ok(())
    }

    /// Looks up the next awaited jobs and writes the answers of those that have ended.
    async fn collect(&mut self) -> anyhow::Result<()> {
        let mut by_tenant: HashMap<Tenant, Vec<String>> = HashMap::new();
        for _ in 0..CHUNK_MAX.min(self.order.len()) {
            let Some((tenant, key)) = self.order.pop_front() else {
                break;
            };
            by_tenant.entry(tenant).or_default().push(key);
        }
        for (tenant, keys) in by_tenant {
            let records = self.fleet.store.records_by_key(&tenant, &keys).await;
            let records = match records {
                Ok(records) => records,
                Err(error) if error.is_transient() => {
                    tracing::warn!(%error, "cannot poll for answers; trying again");
                    Vec::new()
                }
                Err(error) => return Err(error.into()),
            };
            for record in records
                .into_iter()
                .filter(|record| record.state.is_terminal())
            {
                let slot = (tenant.clone(), record.key.clone().unwrap_or_default());
                if let Some(awaited_line) = self.awaited.remove(&slot) {
                    self.write(&record, &awaited_line, true)?;
                }
            }
            let open = keys.into_iter().map(|key| (tenant.clone(), key));
            self.order
                .extend(open.filter(|slot| self.awaited.contains_key(slot)));
        }
        self.store_feedback().await?;
        self.out.flush().context("cannot write the answers")
    }

    /// Stores the feedback of marked lines, from which the router learns.
    async fn store_feedback(&mut self) -> anyhow::Result<()> {
        for (tenant, feedback) in self.feedback.drain() {
            for some in feedback.chunks(CHUNK_MAX) {
                let kept = self.fleet.store.record_feedback(&tenant, some).await;
                kept.context("cannot store the feedback")?;
            }
        }
        Ok(())
    }

    fn write(
        &mut self,
        record: &JobRecord,
        awaited_line: &AwaitedLine,
        is_new: bool,
    ) -> anyhow::Result<()> {
        let mut line = record.to_batch_line();
        line["custom_id"] = awaited_line.custom_id.as_str().into();
        writeln!(self.out, "{line}").context("cannot write the answers")?;
        self.summary.add(record, is_new);
        if let Some(expectation) = &awaited_line.expectation {
            self.summary.marks.add(record, expectation);
            if let Some(answer) = &record.answer {
                let feedback = self.feedback.entry(record.tenant.clone()).or_default();
                feedback.push(Feedback {
                    job: record.id,
                    source: Feedback::EXPECT.to_owned(),
                    score: f64::from(u8::from(expectation.is_met(&answer.text))),
                    comment: None,
                });
            }
            if let Some(labels) = &mut self.labels {
                labels.add(record, expectation);
            }
        }
        self.progress.step();
        Ok(())
    }
}

/// The admission of a refused line.
fn refusal(line: &Line, reason: Reason) -> Admission {
    Admission {
        head: JobHead {
            key: Some(line.key.clone()),
            custom_id: Some(line.custom_id.clone()),
            ..JobHead::new(line.tenant.clone())
        },
        request: None,
        digest: line.digest,
        decision: AdmissionDecision::End {
            state: JobState::Rejected,
            reason,
        },
    }
}
