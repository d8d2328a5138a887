//! Claims, attempts and their ends; the workers behind them.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::job::{Answer, CacheKey, ContextSavings, JobId, JobRecord, Reason, Signals, Tier};

/// The worker on whose behalf jobs are claimed.
#[derive(Clone, Debug, PartialEq)]
pub struct Claimant {
    /// Unique for each process and tier.
    pub worker: String,
    /// The tier it serves.
    pub tier: Tier,
    /// The served model's name.
    pub model: String,
    /// The model's revision.
    pub revision: String,
    /// Attempts a job gets; returned attempts do not count.
    pub attempts_max: u32,
    /// How long the claim holds without a heartbeat.
    pub lease: Duration,
}

/// A job that a worker wants to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The job.
    pub job: JobId,
    /// The message was delivered before, so an attempt that still runs is presumed lost.
    pub redelivered: bool,
}

/// What a claim came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Claimed {
    /// Run it. The attempt is recorded; only its number can settle the job.
    Run {
        /// Counted from 1, never reused.
        attempt: u32,
        /// An earlier attempt vanished without a word: run this one apart from others.
        poison_candidate: bool,
        /// No attempt is left after this one: a error that would be retried ends the job
        /// ([`AttemptOutcome::AttemptsExhausted`]).
        last: bool,
    },
    /// Another worker runs it and is alive: this message is a duplicate.
    Busy,
    /// Escalated meanwhile: the message is an old one. Publish the job to this tier, should that
    /// not have happened, and acknowledge.
    Elsewhere(Tier),
    /// Terminal, now or before (deadline passed, attempts spent): send the reply, acknowledge.
    Ended(Box<JobRecord>),
    /// The ledger does not know the job.
    Unknown,
}

/// What an attempt came to.
#[derive(Clone, Debug, PartialEq)]
pub enum AttemptOutcome {
    /// The job has its answer.
    Succeeded(Answer),
    /// The job's model says that the answer to another question serves: it is the job's.
    Reused(Box<Reused>),
    /// The job ends as failed; no further attempt.
    Failed(Reason),
    /// The job ends as failed with the error of its last attempt, and leaves a dead letter as a
    /// claim with spent attempts does.
    AttemptsExhausted(Reason),
    /// The job ends as expired; what the attempt had written, if anything, stays with it.
    Expired(Reason, Option<Box<Answer>>),
    /// The job had been taken back, and its attempt is over; what it had written stays with it. This
    /// never changes the job, so it settles as [`Settled::Fenced`].
    Cancelled(Reason, Option<Box<Answer>>),
    /// The job goes back to routed and will be tried again.
    Retry(Reason),
    /// The job goes back to routed and will be tried again, apart from others: this attempt does not
    /// count, since a neighbour may have brought it down.
    RetryIsolated(Reason),
    /// The job goes back to routed on another tier; an answer, if any, stays with the attempt. Should
    /// the job end without another one, that answer becomes its result.
    Escalate {
        /// The tier that takes over.
        to: Tier,
        /// Why.
        reason: Reason,
        /// The answer that was not sure enough.
        answer: Option<Box<Answer>>,
    },
    /// The worker stops: the job goes back to routed and the attempt does not count.
    Returned,
}

impl AttemptOutcome {
    /// What closes the attempt where its job was taken back, or another attempt has it; what it wrote
    /// stays with it.
    pub fn superseded(written: Option<&Answer>) -> Self {
        let reason = Reason::new(
            "withdrawn",
            "the job was taken back, or another attempt has it",
        );
        Self::Cancelled(reason, written.cloned().map(Box::new))
    }
}

/// Another question's answer that serves, as the model that was asked says.
#[derive(Clone, Debug, PartialEq)]
pub struct Reused {
    /// The cache entry it comes from.
    pub entry: CacheKey,
    /// The job that computed it.
    pub leader: JobId,
    /// NearQuestion of the two questions.
    pub cosine: f32,
    /// The answer that serves.
    pub answer: Answer,
    /// What the model said when it was asked; its tokens are the attempt's.
    pub check: Answer,
    /// What the attempt's row says of it.
    pub reason: Reason,
}

/// The end of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Settlement {
    /// The job.
    pub job: JobId,
    /// The attempt that claimed it: settles only while this is the job's latest.
    pub attempt: u32,
    /// What it came to.
    pub outcome: AttemptOutcome,
    /// When the engine began with it.
    pub started_at: DateTime<Utc>,
    /// When the first token was there.
    pub first_token_at: Option<DateTime<Utc>>,
    /// When the engine was done with it.
    pub finished_at: DateTime<Utc>,
    /// The cache entry this job leads; `None` leaves the cache alone.
    pub cache_key: Option<CacheKey>,
    /// What was left out of the prompt.
    pub saved: ContextSavings,
    /// Whether the entry may serve later jobs. False when the model that answered is not the one
    /// the key was made for: jobs that wait are settled, and then the entry is deleted.
    pub reusable: bool,
    /// Calibrated probability that the attempt's answer is right, where it was judged.
    pub confidence: Option<f32>,
    /// What the tokens of the attempt's answer tell, where the engine gives log-probabilities.
    pub signals: Option<Signals>,
}

/// What a settlement came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Settled {
    /// Written.
    Committed {
        /// The job as it is now.
        record: Box<JobRecord>,
        /// Identical jobs that waited for this answer and are now terminal too.
        shared: Vec<JobRecord>,
    },
    /// A newer attempt has the job, or it is terminal: nothing was written.
    Fenced,
}

/// A worker's sign of life.
#[derive(Clone, Debug, PartialEq)]
pub struct Heartbeat {
    /// The worker and its model.
    pub claimant: Claimant,
    /// Sequences it runs at once.
    pub batch_max: u32,
    /// Longest context of its model in tokens, where it is known.
    pub context_tokens: Option<u32>,
    /// Jobs it runs now.
    pub running: u32,
    /// True from when it was told to stop.
    pub draining: bool,
    /// True when it takes jobs from affinity queues.
    pub takes_affinity_queues: bool,
}

/// A worker as the ledger knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerRecord {
    /// Unique for each process and tier.
    pub worker: String,
    /// The tier it serves.
    pub tier: Tier,
    /// The served model's name.
    pub model: String,
    /// The model's revision.
    pub revision: String,
    /// Sequences it runs at once.
    pub batch_max: u32,
    /// Longest context of its model in tokens, where it is known.
    pub context_tokens: Option<u32>,
    /// Jobs it ran at its last sign of life.
    pub running: u32,
    /// True from when it was told to stop.
    pub draining: bool,
    /// True when it takes jobs from affinity queues.
    pub takes_affinity_queues: bool,
    /// Until when it counts as alive.
    pub lease_until: DateTime<Utc>,
    /// Its last sign of life.
    pub seen_at: DateTime<Utc>,
}

/// One attempt, for `dead show` and `GET /v1/jobs/{id}`.
#[derive(Clone, Debug, PartialEq)]
pub struct AttemptRecord {
    /// Counted from 1.
    pub attempt: u32,
    /// The tier it ran on.
    pub tier: Tier,
    /// The served model's name.
    pub model: String,
    /// The model's revision.
    pub revision: String,
    /// The worker that ran it.
    pub worker: String,
    /// `running`, `succeeded`, `failed`, `expired`, `retried`, `escalated`, `returned`, `lost` or
    /// `cancelled`.
    pub outcome: String,
    /// Why it did not succeed.
    pub reason: Option<Reason>,
    /// Prompt tokens sent, where it gave an answer.
    pub prompt_tokens: Option<u32>,
    /// Tokens generated, where it gave an answer.
    pub completion_tokens: Option<u32>,
    /// Calibrated probability that its answer is right, where it was judged.
    pub confidence: Option<f32>,
    /// What its answer's tokens tell, where the engine gives log-probabilities.
    pub signals: Option<Signals>,
    /// What it wrote, where that is not the job's answer: it was escalated, or stopped before its end.
    pub answer: Option<String>,
    /// When it was claimed.
    pub claimed_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
}

impl AttemptRecord {
    /// The attempt as the HTTP interface and the command line show it.
    pub fn to_json(&self) -> Value {
        json!({
            "attempt": self.attempt,
            "tier": self.tier,
            "model": self.model,
            "worker": self.worker,
            "outcome": self.outcome,
            "reason": self.reason,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "confidence": self.confidence,
            "answer": self.answer,
            "claimed_at": self.claimed_at,
            "finished_at": self.finished_at,
        })
    }
}
