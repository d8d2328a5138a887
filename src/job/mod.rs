//! The words that every stage shares: a job, its life, its answer.
//!
//! Comes in: request bodies as producers write them ([`submission`]).
//! Goes out: [`Job`] on the queues, [`JobRecord`] from the ledger and to the producer ([`record`]).
//! It never does I/O.

mod body;
pub mod logprobs;
mod pair;
pub mod record;
pub mod request;
pub mod sampling;
pub mod signals;
pub mod submission;

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use logprobs::{Likelihood, TokenLogprob};
pub use pair::{ModelPair, ServedModel};
pub use record::{Answer, AnswerSource, ContextSavings, FinishReason, JobRecord, Usage};
pub use request::{
    CacheMode, ChatRequest, ContextMode, Message, ModelChoice, Options, RequestLimits, Role,
};
pub use sampling::{NamedSchema, ResponseFormat, Sampling};
pub use signals::{DistributionSignals, Signals};
pub use submission::{Rejection, Schedule, Submission};

/// Identifies a job: a UUIDv7, so ids sort by creation time and the ledger partitions by them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub Uuid);

impl JobId {
    /// Makes a new id from the present time.
    pub fn now() -> Self {
        Self(Uuid::now_v7())
    }

    /// When it was made, to the millisecond.
    pub fn created_at(self) -> Option<DateTime<Utc>> {
        let (seconds, nanos) = self.0.get_timestamp()?.to_unix();
        DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for JobId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text).map(Self)
    }
}

/// Separates producers from one another: keys, cached answers and views never cross it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tenant(String);

impl Tenant {
    /// Longest name accepted, in bytes.
    pub const BYTES_MAX: usize = 64;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Tenant {
    fn default() -> Self {
        Self("default".into())
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Tenant> for String {
    fn from(tenant: Tenant) -> Self {
        tenant.0
    }
}

impl TryFrom<String> for Tenant {
    type Error = String;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > Self::BYTES_MAX || !name.bytes().all(allowed) {
            return Err(format!(
                "a tenant is 1 to {} characters of A-Z a-z 0-9 . _ -",
                Self::BYTES_MAX
            ));
        }
        Ok(Self(name))
    }
}

impl FromStr for Tenant {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        name.to_owned().try_into()
    }
}

/// Which of the fleet's two models serves a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// The model that answers fast and cheaply.
    Small,
    /// The model that answers hard prompts.
    Large,
}

impl Tier {
    /// Both tiers, small first.
    pub const ALL: [Self; 2] = [Self::Small, Self::Large];

    /// The name used in SQL, metrics, queues and flags.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Large => "large",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Tier {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|tier| tier.as_str() == name)
            .ok_or_else(|| format!("expected \"small\" or \"large\", found {name:?}"))
    }
}

/// Where a job stands.
///
/// ```text
///  queued ─▶ routed ─▶ running ─▶ succeeded
///    │          │         ├─▶ routed (escalated to large; retry with delay; attempt + 1)
///    │          │         └─▶ failed (attempts spent, or a error no retry mends)
///    └──────────┴──▶ rejected · cancelled · expired
/// ```
///
/// Terminal states never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Accepted over HTTP and published; the router has not seen it yet.
    Queued,
    /// A tier is chosen; the job waits in that tier's queue, a delay queue, or for an identical job.
    Routed,
    /// A worker has claimed it.
    Running,
    /// It has an answer.
    Succeeded,
    /// It ran and no further attempt will be made.
    Failed,
    /// It could not be accepted.
    Rejected,
    /// Its producer took it back.
    Cancelled,
    /// Its deadline passed first.
    Expired,
}

impl JobState {
    /// Every state, in the order of a job's life.
    pub const ALL: [Self; 8] = [
        Self::Queued,
        Self::Routed,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Rejected,
        Self::Cancelled,
        Self::Expired,
    ];

    /// True for the states that never change.
    pub fn is_terminal(self) -> bool {
        !matches!(self, Self::Queued | Self::Routed | Self::Running)
    }

    /// The name used in SQL, JSON and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Routed => "routed",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for JobState {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == name)
            .ok_or_else(|| format!("unknown job state {name:?}"))
    }
}

/// Why a job, an attempt or a message did not end in an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Stable, machine-readable: `context_length_exceeded`, `deadline_passed`, ….
    pub code: String,
    /// One sentence a person can act on. Never holds prompt text.
    pub message: String,
}

impl Reason {
    /// Builds a reason from its code and sentence.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

/// How urgently a job is served. RabbitMQ 4 knows two levels on quorum queues; older ones none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// The default; AMQP priority 0.
    #[default]
    Normal,
    /// Served first where the broker can; AMQP priority 5.
    High,
}

impl Priority {
    /// The AMQP priority that is sent.
    pub fn to_amqp(self) -> u8 {
        match self {
            Self::Normal => 0,
            Self::High => 5,
        }
    }

    /// Reads an AMQP priority: above 4 is high, as quorum queues of RabbitMQ 4.0–4.2 see it.
    pub fn from_amqp(priority: u8) -> Self {
        if priority > 4 {
            Self::High
        } else {
            Self::Normal
        }
    }
}

/// The queue and correlation id under which the producer wants its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyTo {
    /// Queue name, reached through the broker's default exchange.
    pub queue: String,
    /// Copied to the reply unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
}

/// What a job is, apart from its prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobHead {
    /// The job's identity in the ledger.
    pub id: JobId,
    /// Whose job it is.
    pub tenant: Tenant,
    /// The producer's idempotency key, unique within its tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The producer's own name for the line, copied to the output line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom_id: Option<String>,
    /// Groups the jobs of one submission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<String>,
    /// After this instant the job is not started any more, and stopped if it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<DateTime<Utc>>,
    /// Before this instant the job is not routed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<DateTime<Utc>>,
    /// Attempts that its producer allows; the fleet's limit if that is lower or this is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts_max: Option<u32>,
    /// Where to send the answer besides the ledger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<ReplyTo>,
    /// How urgently it is served.
    #[serde(default)]
    pub priority: Priority,
    /// The job that this one repeats, when a dead letter was redriven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redrive_of: Option<JobId>,
    /// When the producer handed it over.
    pub submitted_at: DateTime<Utc>,
}

impl JobHead {
    /// A job of a tenant, submitted now, with nothing else set.
    pub fn new(tenant: Tenant) -> Self {
        let id = JobId::now();
        Self {
            id,
            tenant,
            key: None,
            custom_id: None,
            batch: None,
            deadline: None,
            not_before: None,
            attempts_max: None,
            reply_to: None,
            priority: Priority::Normal,
            redrive_of: None,
            submitted_at: id.created_at().unwrap_or_else(Utc::now),
        }
    }
}

/// A prompt on its way: its head and the validated request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Identity and envelope.
    pub head: JobHead,
    /// What to answer and how.
    pub request: ChatRequest,
}

/// The BLAKE3 digest under which an answer may be reused.
///
/// It covers tenant, model, revision, messages and sampling parameters; the cache stage makes it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheKey(pub [u8; 32]);

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for CacheKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CacheKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let hex = String::deserialize(deserializer)?;
        blake3::Hash::from_hex(&hex)
            .map(|hash| Self(*hash.as_bytes()))
            .map_err(serde::de::Error::custom)
    }
}

/// A job with its tier: the body of the messages in `jobs.small`, `jobs.large` and the delay queues,
/// rebuilt from the ledger when a job is put back on a queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoutedJob {
    /// The job itself.
    pub job: Job,
    /// The tier that is to serve it.
    pub tier: Tier,
    /// Set when this job's answer is to fill the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_key: Option<CacheKey>,
    /// Set while the small tier's answer may be escalated: the models that the cache key covers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pair: Option<ModelPair>,
    /// Set when another question's answer may serve, if the model that is to answer says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Candidate>,
    /// True when the engine crashed in this job's last attempt: it runs apart from its neighbours
    /// until it has proved harmless.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub poison_candidate: bool,
}

/// A question that asks nearly the same, and whose answer may serve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The cache entry that holds its answer.
    pub entry: CacheKey,
    /// What it asked.
    pub question: String,
    /// NearQuestion of the two questions.
    pub cosine: f32,
}

impl RoutedJob {
    /// The job as it goes to another tier. It keeps its cache entry only if it leads it still.
    #[must_use]
    pub fn moved(&self, tier: Tier, keeps_lead: bool) -> Self {
        Self {
            tier,
            cache_key: self.cache_key.filter(|_| keeps_lead),
            pair: self.pair.clone().filter(|_| keeps_lead),
            // It was asked about already.
            candidate: None,
            ..self.clone()
        }
    }
}
