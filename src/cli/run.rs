//! `run`: a file of prompts in, a file of answers out, in one process.

use std::{
    collections::{HashMap, VecDeque},
    io::{BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use chrono::Utc;
use clap::Args;
use tokio::{sync::mpsc, time::MissedTickBehavior};

use crate::{
    broker::{Publication, publisher::publish_all, wire::WireMessage},
    config::{Config, Overrides, TelemetryConfig},
    console::{
        input::{self, Line},
        marks::Expectation,
        options::{Common, ModelArgs, complain, init_logs, note_bundled, say},
        output::Output,
        progress::Progress,
    },
    fleet::{Fleet, Roles},
    job::{JobHead, JobId, JobRecord, JobState, Priority, Reason, Tenant, Tier},
    shutdown::Shutdown,
    store::{Admission, AdmissionDecision, Admitted, Feedback},
    telemetry,
};

use super::{INTERRUPTED, labels::Labels, summary::Summary};

/// Lines read ahead of their submission.
const LINES_AHEAD: usize = 1024;
/// Most lines submitted, and most keys looked up, at once.
const CHUNK_MAX: usize = 256;
/// Most jobs awaited at once; reading pauses beyond.
const AWAITED_MAX: usize = 50_000;
/// Wait between two looks into the ledger.
const POLL_INTERVAL: Duration = Duration::from_millis(25);
/// Longest wait for workers to drop what was published again though it was still there.
const REPEATS_WAIT_MAX: Duration = Duration::from_secs(3);
/// Seconds that running jobs get when the run is interrupted; they are put back otherwise.
const DRAIN_S: u64 = 5;

/// Answer a file of prompts in one process and write the answers.
///
/// Every line is one prompt: an OpenAI batch line, a chat-completions body, {"prompt": …} or plain
/// text. Answers are OpenAI batch output lines in the order they come; `custom_id` is the line's
/// own or its number. What the ledger has answered already is not computed again, so an
/// interrupted run is resumed by running it again. Lines may say what answer is right in "expect"
/// (and of which "family" they are): the summary then tells the accuracy by family and by tier. An
/// answer is right when it, or what follows its last "#", equals "expect".
///
/// Exit codes: 0 all answered, 1 some not, 2 wrong usage, 130 interrupted.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// File of prompts, one a line; `-` is standard input
    file: PathBuf,
    /// Write the answers to a file instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write what the small model's answers to marked lines tell about themselves, for `router
    /// calibrate`
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Print the summary as JSON (to standard output with --out, else to standard error)
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    models: ModelArgs,
    #[command(flatten)]
    common: Common,
    /// Serve /metrics, /healthz and /readyz at this address meanwhile
    #[arg(long, value_name = "HOST:PORT")]
    metrics_listen: Option<String>,
}

/// Runs `run`.
pub async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let config = load(&args)?;
    init_logs(&config)?;
    let lines = input::open(&args.file, config.request_limits())
        .with_context(|| format!("cannot open {}", args.file.display()))?;
    let total = input::count(&args.file)?;
    let mut taken = vec![(args.file.clone(), "the file of prompts")];
    taken.extend(config.sqlite_path().map(|path| (path, "the ledger")));
    let out = Output::open(args.out.as_deref(), &taken)?;
    let labels = args.labels.as_deref().map(Labels::create).transpose()?;
    let metrics = match args.metrics_listen {
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
        progress: Progress::new(total),
        summary: Summary::new(),
        words: HashMap::new(),
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
        complain(&format!(
            "interrupted with {} jobs open; run the same command again to go on",
            awaited.len()
        ));
        return Ok(ExitCode::from(INTERRUPTED));
    }
    Ok(ExitCode::from(u8::from(summary.failed() > 0)))
}

fn load(args: &RunArgs) -> anyhow::Result<Config> {
    let mut overrides = Overrides::default();
    args.models.apply(&mut overrides);
    if let Some(address) = &args.metrics_listen {
        overrides.set("--metrics-listen", "telemetry.listen", address);
    }
    let mut config = args.common.load(overrides)?;
    // A file is all back-log from its first moment, and is to be routed alike each time.
    config.router.load_shift_max.get_or_insert(0.0);
    config.worker.drain_s = config.worker.drain_s.min(DRAIN_S);
    if config.telemetry.log == TelemetryConfig::default().log {
        // A person watches a progress bar: only what goes wrong is worth a line.
        config.telemetry.log = "warn".to_owned();
    }
    Ok(config)
}

fn report(args: &RunArgs, config: &Config, summary: &Summary) -> anyhow::Result<()> {
    let ledger = config.store.url.masked();
    let text = if args.json {
        summary.to_json(&ledger).to_string()
    } else {
        summary.to_text(&ledger).trim_end().to_owned()
    };
    if args.out.is_some() {
        say(&text)?;
    } else {
        complain(&text);
    }
    Ok(())
}

/// What is to be known of a line when its job ends.
struct Asked {
    custom_id: String,
    expectation: Option<Expectation>,
}

/// A run under way.
struct Run {
    fleet: Fleet,
    shutdown: Shutdown,
    /// The lines whose jobs have not ended, by tenant and key.
    awaited: HashMap<(Tenant, String), Asked>,
    /// The awaited, in the order in which they are looked up next.
    order: VecDeque<(Tenant, String)>,
    /// True when jobs were published that an earlier run had published already.
    repeated: bool,
    out: BufWriter<Box<dyn Write + Send>>,
    progress: Progress,
    summary: Summary,
    /// Marks that the ledger is to keep.
    words: HashMap<Tenant, Vec<Feedback>>,
    labels: Option<Labels>,
}

impl Run {
    /// Submits every line and collects every end, or stops when told to.
    async fn answer(
        &mut self,
        lines: impl Iterator<Item = std::io::Result<Line>> + Send + 'static,
    ) -> anyhow::Result<()> {
        // Standard input may block, so a thread of its own reads it.
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
                    anyhow::ensure!(shutdown.is_requested(), "a role ended before the run did");
                }
                count = receiver.recv_many(&mut chunk, CHUNK_MAX), if may_read => {
                    at_end = count == 0;
                    let lines = chunk.drain(..).collect::<Result<Vec<_>, _>>();
                    self.submit(lines.context("cannot read the prompts")?).await?;
                }
                _ = poll.tick(), if !self.awaited.is_empty() => self.collect().await?,
            }
        }
        // What an earlier run published may not have been in the ledger when its lines were published
        // again; only a queue of this process's own tells of that by not being empty.
        if self.repeated || !self.fleet.broker.is_shared() {
            // What is left over does no harm, but a queue that holds nothing should look so.
            let _ = tokio::time::timeout(REPEATS_WAIT_MAX, self.drop_repeats()).await;
        }
        Ok(())
    }

    /// Waits until the queues are empty: a worker drops the message of a job that has ended.
    async fn drop_repeats(&self) {
        let mut empty_looks = 0;
        while empty_looks < 2 && !self.shutdown.is_requested() {
            let depths = self.fleet.broker.depths().await.unwrap_or_default();
            let ready: u64 = depths.iter().map(|depth| depth.ready).sum();
            empty_looks = if ready == 0 { empty_looks + 1 } else { 0 };
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
        let (mut letters, mut refusals) = (Vec::new(), Vec::new());
        for line in lines {
            let slot = (line.tenant.clone(), line.key.clone());
            let asked = Asked {
                custom_id: line.custom_id.clone(),
                expectation: line.expectation.clone(),
            };
            if let Some(record) = known.get(&slot)
                && record.state.is_terminal()
            {
                self.write(record, &asked, false)?;
                continue;
            }
            match line.body {
                Err(ref reason) => refusals.push((refusal(&line, reason.clone()), asked)),
                Ok(body) => {
                    // A job that is known but open is published again, should its message be
                    // lost; if it is not, the second one does nothing.
                    self.repeated |= known.contains_key(&slot);
                    letters.push(Publication::from(WireMessage {
                        key: Some(line.key),
                        custom_id: Some(line.custom_id),
                        ..WireMessage::new(body)
                    }));
                    self.awaited.insert(slot.clone(), asked);
                    self.order.push_back(slot);
                }
            }
        }
        self.refuse(refusals).await?;
        self.tell_marks().await?;
        publish_all(&self.fleet.broker, letters, &self.shutdown).await;
        Ok(())
    }

    /// Lines that are no requests end at once, as rows with their reason.
    async fn refuse(&mut self, refusals: Vec<(Admission, Asked)>) -> anyhow::Result<()> {
        if refusals.is_empty() {
            return Ok(());
        }
        let (admissions, asked): (Vec<_>, Vec<_>) = refusals.into_iter().unzip();
        let outcomes = self.fleet.store.admit(&admissions, Duration::ZERO).await?;
        for (outcome, asked) in outcomes.into_iter().zip(asked) {
            if let Admitted::Ended(record) | Admitted::Known(record) = outcome {
                self.write(&record, &asked, true)?;
            }
        }
        Ok(())
    }

    /// Looks up the next of the awaited jobs, and writes those that have ended.
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
                    tracing::warn!(%error, "cannot look for answers; trying again");
                    Vec::new()
                }
                Err(error) => return Err(error.into()),
            };
            for record in records
                .into_iter()
                .filter(|record| record.state.is_terminal())
            {
                let slot = (tenant.clone(), record.key.clone().unwrap_or_default());
                if let Some(asked) = self.awaited.remove(&slot) {
                    self.write(&record, &asked, true)?;
                }
            }
            let open = keys.into_iter().map(|key| (tenant.clone(), key));
            self.order
                .extend(open.filter(|slot| self.awaited.contains_key(slot)));
        }
        self.tell_marks().await?;
        self.out.flush().context("cannot write the answers")
    }

    /// Keeps what the expected answers say about those that came, so that the router can learn.
    async fn tell_marks(&mut self) -> anyhow::Result<()> {
        for (tenant, words) in self.words.drain() {
            for some in words.chunks(CHUNK_MAX) {
                let kept = self.fleet.store.record_feedback(&tenant, some).await;
                kept.context("cannot keep the marks")?;
            }
        }
        Ok(())
    }

    fn write(&mut self, record: &JobRecord, asked: &Asked, is_new: bool) -> anyhow::Result<()> {
        let mut line = record.to_batch_line();
        line["custom_id"] = asked.custom_id.as_str().into();
        writeln!(self.out, "{line}").context("cannot write the answers")?;
        self.summary.add(record, is_new);
        if let Some(expectation) = &asked.expectation {
            self.summary.marks.add(record, expectation);
            if let Some(answer) = &record.answer {
                let words = self.words.entry(record.tenant.clone()).or_default();
                words.push(Feedback {
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

/// The admission of a line that is no request.
fn refusal(line: &Line, reason: Reason) -> Admission {
    Admission {
        head: JobHead {
            id: JobId::now(),
            tenant: line.tenant.clone(),
            key: Some(line.key.clone()),
            custom_id: Some(line.custom_id.clone()),
            batch: None,
            deadline: None,
            not_before: None,
            attempts_max: None,
            reply_to: None,
            priority: Priority::Normal,
            redrive_of: None,
            submitted_at: Utc::now(),
        },
        request: None,
        digest: line.digest,
        decision: AdmissionDecision::End {
            state: JobState::Rejected,
            reason,
        },
    }
}
