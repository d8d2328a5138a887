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

/// The outcome of a claim.
#[derive(Clone, Debug, PartialEq)]
pub enum Claimed {
    /// Run it. The attempt is recorded; only its number can settle the job.
    Run {
        /// Counted from 1, never reused.
        attempt: u32,
        /// The worker of an earlier attempt vanished: run this one isolated.
        poison_candidate: bool,
        /// This is the last attempt: an error that would be retried ends the job
        /// ([`AttemptOutcome::AttemptsExhausted`]).
        last: bool,
    },
    /// Another worker runs it and is alive: this message is a duplicate.
    Busy,
    /// Escalated meanwhile: the message is outdated. Publish the job to this tier in case that has
    /// not happened, and acknowledge.
    Elsewhere(Tier),
    /// Terminal, now or before (deadline passed, attempts exhausted): send the reply, acknowledge.
    Ended(Box<JobRecord>),
    /// The database does not know the job.
    Unknown,
}

/// The outcome of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum AttemptOutcome {
    /// The job has its answer.
    Succeeded(Answer),
    /// The model confirmed that the answer to another question fits; the job gets it.
    Reused(Box<Reused>),
    /// The job ends as failed; no further attempt.
    Failed(Reason),
    /// The job ends as failed with the error of its last attempt and leaves a dead letter.
    AttemptsExhausted(Reason),
    /// The job ends as expired; a partial answer stays with the attempt.
    Expired(Reason, Option<Box<Answer>>),
    /// The job was cancelled during the attempt; a partial answer stays with the attempt. The job
    /// does not change, so this settles as [`Settled::Fenced`].
    Cancelled(Reason, Option<Box<Answer>>),
    /// The job returns to routed and is retried.
    Retry(Reason),
    /// The job returns to routed and is retried in isolation; this attempt does not count, since
    /// another job of its batch may have caused the error.
    RetryIsolated(Reason),
    /// The job returns to routed on another tier; an answer stays with the attempt and becomes the
    /// result if the job ends without another one.
    Escalate {
        /// The tier that takes over.
        to: Tier,
        /// Why.
        reason: Reason,
        /// The answer with too low confidence.
        answer: Option<Box<Answer>>,
    },
    /// The worker stops: the job returns to routed and the attempt does not count.
    Returned,
}

impl AttemptOutcome {
    /// Closes an attempt whose job was cancelled or has a newer attempt; `written` stays with it.
    pub fn superseded(written: Option<&Answer>) -> Self {
        let reason = Reason::new(
            "withdrawn",
            "the job was cancelled, or another attempt has it",
        );
        Self::Cancelled(reason, written.cloned().map(Box::new))
    }
}

/// Another question's answer that the model confirmed.
#[derive(Clone, Debug, PartialEq)]
pub struct Reused {
    /// The cache entry it comes from.
    pub entry: CacheKey,
    /// The job that computed it.
    pub leader: JobId,
    /// Cosine similarity of the two questions.
    pub cosine: f32,
    /// The reused answer.
    pub answer: Answer,
    /// The model's confirmation; its tokens are the attempt's.
    pub check: Answer,
    /// The reason in the attempt's row.
    pub reason: Reason,
}

/// The end of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Settlement {
    /// The job.
    pub job: JobId,
    /// The attempt that claimed it: settles only while this is the job's latest.
    pub attempt: u32,
    /// Its outcome.
    pub outcome: AttemptOutcome,
    /// When the engine started it.
    pub started_at: DateTime<Utc>,
    /// When the first token was generated.
    pub first_token_at: Option<DateTime<Utc>>,
    /// When the engine finished it.
    pub finished_at: DateTime<Utc>,
    /// The cache entry this job leads; `None` leaves the cache alone.
    pub cache_key: Option<CacheKey>,
    /// Tokens left out of the prompt.
    pub saved: ContextSavings,
    /// Whether the entry may serve later jobs. False when the model that answered is not the one
    /// the key was made for: jobs that wait are settled, and then the entry is deleted.
    pub reusable: bool,
    /// Calibrated probability that the attempt's answer is right, where it was judged.
    pub confidence: Option<f32>,
    /// Statistics of the answer's tokens, if the engine gives log-probabilities.
    pub signals: Option<Signals>,
}

/// The outcome of a settlement.
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

/// A worker's heartbeat.
#[derive(Clone, Debug, PartialEq)]
pub struct Heartbeat {
    /// The worker and its model.
    pub claimant: Claimant,
    /// Sequences it runs at once.
    pub batch_max: u32,
    /// Longest context of its model in tokens, where it is known.
    pub context_tokens: Option<u32>,
    /// Jobs it is running.
    pub running: u32,
    /// True once it is stopping.
    pub draining: bool,
    /// True when it takes jobs from affinity queues.
    pub takes_affinity_queues: bool,
}

/// A worker in the database.
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
    /// Jobs it ran at its last heartbeat.
    pub running: u32,
    /// True once it is stopping.
    pub draining: bool,
    /// True when it takes jobs from affinity queues.
    pub takes_affinity_queues: bool,
    /// Until when it counts as alive.
    pub lease_until: DateTime<Utc>,
    /// Its last heartbeat.
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
    /// Statistics of its answer's tokens, if the engine gives log-probabilities.
    pub signals: Option<Signals>,
    /// Its text, if that is not the job's answer: it was escalated or stopped early.
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
