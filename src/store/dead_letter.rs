//! Dead letters and how they are resolved.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::job::{JobId, Reason, Tenant};

/// A message given up by the broker, or by a worker after the last attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// Its own identity.
    pub id: Uuid,
    /// The job, if it could be read.
    pub job: Option<JobId>,
    /// The tenant, if it could be read.
    pub tenant: Option<Tenant>,
    /// The queue it died in.
    pub queue: String,
    /// Why.
    pub reason: Reason,
    /// The body to publish on a redrive: the job, or the original message.
    pub body: Vec<u8>,
    /// When it died.
    pub died_at: DateTime<Utc>,
}

impl DeadLetter {
    /// The letter without its body, as HTTP and the command line show it.
    pub fn to_json(&self) -> Value {
        json!({
            "id": self.id,
            "job": self.job,
            "tenant": self.tenant,
            "queue": self.queue,
            "reason": self.reason,
            "died_at": self.died_at,
        })
    }
}

/// Which dead letters to list, redrive or discard.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeadFilter {
    /// Only these.
    pub ids: Vec<Uuid>,
    /// Only with this reason code.
    pub reason: Option<String>,
    /// Only this tenant's.
    pub tenant: Option<Tenant>,
    /// Only those that died before this instant.
    pub died_before: Option<DateTime<Utc>>,
}

/// What was done with a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum DeadResolution {
    /// Published again as a new job.
    Redriven,
    /// Discarded by an operator.
    Discarded,
}

impl DeadResolution {
    /// The name used in SQL.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}
