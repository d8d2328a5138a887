//! A job on its way to the router, and with its tier to a worker.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    identity::{JobId, Tenant},
    pair::ModelPair,
    request::ChatRequest,
    state::Tier,
};

/// How urgently a job is served. Quorum queues of RabbitMQ 4 have two levels, older ones none.
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

    /// Reads an AMQP priority: above 4 is high, as in quorum queues of RabbitMQ 4.0–4.2.
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

/// A job without its prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobHead {
    /// The job's identity in the database.
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
    /// Where to send the answer, besides the database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<ReplyTo>,
    /// How urgently it is served.
    #[serde(default)]
    pub priority: Priority,
    /// The job that this one repeats, when a dead letter was redriven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redrive_of: Option<JobId>,
    /// When the producer submitted it.
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

/// A job that the router has not seen yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Identity and envelope.
    pub head: JobHead,
    /// What to answer and how.
    pub request: ChatRequest,
}

/// The BLAKE3 digest under which an answer may be reused.
///
/// It covers tenant, model, revision, messages and sampling parameters; see `cache`.
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
/// rebuilt from the database when a job is published again.
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
    /// Set when another question's answer may serve, if the model confirms it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Candidate>,
    /// True when the engine crashed in this job's last attempt: it runs alone until an attempt ends
    /// without a crash.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub poison_candidate: bool,
}

/// A similar question whose answer may serve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The cache entry that holds its answer.
    pub entry: CacheKey,
    /// Its text.
    pub question: String,
    /// Cosine similarity of the two questions.
    pub cosine: f32,
}

impl RoutedJob {
    /// A job for a tier, with nothing known beyond that.
    pub fn new(job: Job, tier: Tier) -> Self {
        Self {
            job,
            tier,
            cache_key: None,
            pair: None,
            candidate: None,
            poison_candidate: false,
        }
    }

    /// The job as it goes to another tier. It keeps its cache key only while it still leads its
    /// single flight.
    #[must_use]
    pub fn moved(&self, tier: Tier, keeps_lead: bool) -> Self {
        Self {
            tier,
            cache_key: self.cache_key.filter(|_| keeps_lead),
            pair: self.pair.clone().filter(|_| keeps_lead),
            // The model has already decided on it.
            candidate: None,
            ..self.clone()
        }
    }
}
