//! The job database: every job, attempt, answer and cache entry, and the only place where a job's
//! state changes.
//!
//! Comes in: batches of admissions, claims and settlements. Goes out: what each of them came to,
//! and records. Two backends pass one contract suite (`tests/contracts/store`): `postgres` for
//! a fleet and `sqlite` for one machine. Every method that changes state does so for a whole
//! batch in one transaction. It never publishes and never runs a model.

mod admission;
mod attempt;
mod backend;
mod cache;
mod dead_letter;
mod deferral;
mod effect;
mod error;
mod keys;
mod learning;
mod outage;
mod postgres;
mod records;
mod row;
mod rules;
mod schema;
mod semantic;
mod sqlite;
mod stored;

use chrono::{DateTime, Utc};

use crate::job::{JobId, JobState, Tenant};

pub use admission::{Admission, AdmissionDecision, Admitted, Decision, Route};
pub use attempt::{
    AttemptOutcome, AttemptRecord, Claim, Claimant, Claimed, Heartbeat, Reused, Settled,
    Settlement, WorkerRecord,
};
pub use backend::Store;
pub use cache::{CacheFilter, CacheLimits, CacheStats, CacheUpkeep};
pub use dead_letter::{DeadFilter, DeadLetter, DeadResolution};
pub use deferral::{
    CANCEL_SETTLES, CancelFilter, CancelledBatch, Deferral, DeferredJob, DeferredQueue, Released,
    RescueRules, Rescued, TenantLimits, TenantLoad,
};
pub use keys::{ApiKey, KeyDigest, Scope, Scopes, new_key};
pub use learning::{
    DecisionRecord, Feedback, PairRow, PastDecision, RouteReason, ScopedTarget, StoredWeights,
    TierCost,
};

pub use outage::{Batch, Batches, Written, wait_out};
pub use semantic::{KnownQuestion, Lookup, NearOutcome, NearQuestion, Recheck, RecheckOutcome};

/// Why the job database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No connection, or it broke, or a deadlock or serialisation error: try again.
    #[error("cannot reach the job database at {url}: {message}")]
    Unreachable {
        /// The URL, masked.
        url: String,
        /// What went wrong.
        message: String,
    },
    /// The tables are missing or of another version: run `promptyard migrate`.
    #[error("the database's tables do not fit this version: {message}; run `promptyard migrate`")]
    Schema {
        /// What went wrong.
        message: String,
    },
    /// The disk is full, the file is read-only or damaged.
    #[error("the job database cannot be written: {message}")]
    Storage {
        /// What went wrong.
        message: String,
    },
    /// A bug or an unknown value: the statement or a stored value is invalid.
    #[error("the job database refused a statement: {message}")]
    Refused {
        /// What went wrong.
        message: String,
    },
}

impl StoreError {
    /// True when the same call may work later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Storage { .. })
    }
}

/// Which records to list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecordFilter {
    /// Only this tenant's.
    pub tenant: Option<Tenant>,
    /// Only this submission's.
    pub batch: Option<String>,
    /// Only jobs that became terminal at or after this instant; terminal jobs only.
    pub finished_since: Option<DateTime<Utc>>,
    /// Continues after this position of an earlier page: (finished_at, id).
    pub after: Option<(DateTime<Utc>, JobId)>,
}

/// Figures for `promptyard status`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overview {
    /// Jobs in each state that has any, over the last day and all unfinished ones.
    pub states: Vec<(JobState, u64)>,
    /// Jobs that became terminal in the last minute.
    pub finished_last_minute: u64,
    /// Tokens generated for jobs that became terminal in the last minute.
    pub completion_tokens_last_minute: u64,
    /// Dead letters not yet redriven or discarded.
    pub dead_letters: u64,
}
