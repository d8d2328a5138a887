//! Where a job stands, and why it has no answer.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::names::unknown_name;

/// One of the fleet's two models.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantNames,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = unknown_name::<Tier>)]
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
        self.into()
    }
}

/// Where a job stands.
///
/// ```text
///  queued ─▶ routed ─▶ running ─▶ succeeded
///    │          │         ├─▶ routed (escalated to large; retry with delay; attempt + 1)
///    │          │         └─▶ failed (attempts exhausted, or an error that no retry fixes)
///    └──────────┴──▶ rejected · cancelled · expired
/// ```
///
/// Terminal states never change.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantNames,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = unknown_name::<JobState>)]
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
    /// Its producer cancelled it.
    Cancelled,
    /// Its deadline passed first.
    Expired,
}

impl JobState {
    /// True for the states that never change.
    pub fn is_terminal(self) -> bool {
        !matches!(self, Self::Queued | Self::Routed | Self::Running)
    }

    /// The name used in SQL, JSON and metrics.
    pub fn as_str(self) -> &'static str {
        self.into()
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
