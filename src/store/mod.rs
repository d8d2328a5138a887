//! The ledger: every job, attempt, answer and cache entry, and the only place where a job's state changes.
//!
//! Comes in: batches of admissions, claims and settlements. Goes out: what each of them came to,
//! and records. Two backends pass one contract suite (`tests/store_contract.rs`): [`postgres`] for
//! a fleet and [`sqlite`] for one machine. Every method that changes state does so for a whole
//! batch in one transaction. It never publishes and never runs a model.

mod admission;
mod attempt;
mod cache;
mod dead_letter;
mod deferral;
mod effect;
mod error;
mod keys;
mod learning;
pub mod postgres;
mod row;
mod rules;
mod schema;
mod semantic;

pub mod sqlite;

use std::{
    future::Future,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use metrics::{counter, histogram};
use uuid::Uuid;

use crate::{
    clock::Clock,
    config::StoreConfig,
    job::{Job, JobHead, JobId, JobRecord, JobState, Reason, RoutedJob, Tenant},
    metrics::{STORE_ERRORS, STORE_SECONDS},
};

pub use admission::{Admission, AdmissionDecision, Admitted, Decision, Route};
pub use attempt::{
    AttemptOutcome, AttemptRecord, Claim, Claimant, Claimed, Heartbeat, Reused, Settled,
    Settlement, WorkerRecord,
};
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

pub use semantic::{KnownQuestion, Lookup, NearOutcome, NearQuestion, Recheck, RecheckOutcome};

use postgres::PostgresStore;
use sqlite::SqliteStore;

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No connection, or it broke, or a deadlock or serialisation error: try again.
    #[error("cannot reach the ledger at {url}: {message}")]
    Unreachable {
        /// The URL, masked.
        url: String,
        /// What went wrong.
        message: String,
    },
    /// The tables are missing or of another version: run `promptyard migrate`.
    #[error("the ledger's tables do not fit this version: {message}; run `promptyard migrate`")]
    Schema {
        /// What went wrong.
        message: String,
    },
    /// The disk is full, the file is read-only or damaged.
    #[error("the ledger cannot be written: {message}")]
    Storage {
        /// What went wrong.
        message: String,
    },
    /// A error of ours: a statement or a stored value that cannot be.
    #[error("the ledger refused a statement: {message}")]
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

/// A ledger of either kind. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub enum Store {
    /// Postgres 15 and later.
    Postgres(PostgresStore),
    /// A SQLite file.
    Sqlite(SqliteStore),
}

macro_rules! each {
    ($value:expr, $backend:ident => $call:expr) => {
        match $value {
            Self::Postgres($backend) => $call,
            Self::Sqlite($backend) => $call,
        }
    };
}

/// Calls a backend under the eyes of the metrics.
macro_rules! measured {
    ($value:expr, $name:literal, $backend:ident => $call:expr) => {
        match $value {
            Self::Postgres($backend) => measure($name, $call).await,
            Self::Sqlite($backend) => measure($name, $call).await,
        }
    };
}

mod cache_calls;
mod delivery_calls;
mod key_calls;
mod learning_calls;
mod semantic_calls;

/// Takes the time of a call and counts it if it fails.
async fn measure<T>(
    call: &'static str,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let begun = Instant::now();
    let outcome = work.await;
    histogram!(STORE_SECONDS, "call" => call).record(begun.elapsed());
    if outcome.is_err() {
        counter!(STORE_ERRORS, "call" => call).increment(1);
    }
    outcome
}

impl Store {
    /// Connects. The tables are not touched: see [`Store::migrate`].
    ///
    /// # Errors
    /// When the database cannot be reached or the file cannot be opened.
    pub async fn connect(config: &StoreConfig) -> Result<Self, StoreError> {
        if config.url.has_scheme(&["sqlite"]) {
            SqliteStore::connect(config).await.map(Self::Sqlite)
        } else {
            PostgresStore::connect(config).await.map(Self::Postgres)
        }
    }

    /// Takes the time from `clock`; clones made before keep theirs.
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        each!(&mut self, store => store.clock = clock);
        self
    }

    /// The clock that leases, deadlines and latencies are measured by.
    pub fn clock(&self) -> &Clock {
        each!(self, store => &store.clock)
    }

    /// Brings the tables to this version; safe to run from several processes at once.
    /// Returns the number of migrations applied.
    ///
    /// # Errors
    /// When a migration fails, or the tables are newer than this version.
    pub async fn migrate(&self) -> Result<usize, StoreError> {
        measured!(self, "migrate", store => store.migrate())
    }

    /// Fails unless the tables are of this version.
    ///
    /// # Errors
    /// [`StoreError::Schema`] when they are not.
    pub async fn check_schema(&self) -> Result<(), StoreError> {
        measured!(self, "check_schema", store => store.check_schema())
    }

    /// Makes the partitions that the next days need; no work for SQLite. Call at start and daily.
    ///
    /// # Errors
    /// As every method: when the database cannot be reached or refuses.
    pub async fn ensure_partitions(&self) -> Result<(), StoreError> {
        measured!(self, "ensure_partitions", store => store.ensure_partitions())
    }

    /// Writes jobs that come in; one outcome for each, in order. Within one batch, earlier
    /// admissions are seen by later ones. A cache key leads to a hit (fresh entry), to waiting
    /// (an identical job leads and its lease runs) or to leading.
    ///
    /// # Errors
    /// When nothing was written.
    pub async fn admit(
        &self,
        admissions: &[Admission],
        cache_lease: Duration,
    ) -> Result<Vec<Admitted>, StoreError> {
        measured!(self, "admit", store => store.admit(admissions, cache_lease))
    }

    /// Records an attempt for each job before it runs; one outcome for each, in order. A job whose
    /// deadline has passed ends as expired; one whose attempts are spent ends as failed and leaves
    /// a dead letter.
    ///
    /// # Errors
    /// When nothing was written.
    pub async fn claim(
        &self,
        claimant: &Claimant,
        claims: &[Claim],
    ) -> Result<Vec<Claimed>, StoreError> {
        measured!(self, "claim", store => store.claim(claimant, claims))
    }

    /// Ends attempts; one outcome for each, in order. A success with a cache key fills the entry
    /// and settles the jobs that wait for it; any other end of the job, and its escalation, gives
    /// the entry up, so that a waiting job is promoted. A job that goes back to its tier's queue
    /// keeps its lead.
    ///
    /// # Errors
    /// When nothing was written.
    pub async fn settle(
        &self,
        settlements: &[Settlement],
        cache_ttl: Duration,
    ) -> Result<Vec<Settled>, StoreError> {
        measured!(self, "settle", store => store.settle(settlements, cache_ttl))
    }

    /// Ends jobs that no attempt holds: the broker gave them up. Jobs that are terminal stay as
    /// they are, and so do running ones whose claim holds: their attempt's word counts. Jobs the
    /// ledger does not know (by id, then by tenant and key) are written.
    /// Returns the records, in order.
    ///
    /// # Errors
    /// When nothing was written.
    pub async fn end(
        &self,
        endings: &[(JobHead, JobState, Reason)],
    ) -> Result<Vec<JobRecord>, StoreError> {
        measured!(self, "end", store => store.end(endings))
    }

    /// Picks, for each cache key whose leader was lost or failed, the oldest waiting job, makes it
    /// the leader and returns it to be published. It stays pickable until a worker claims it.
    ///
    /// # Errors
    /// When nothing was changed.
    pub async fn take_over_flights(
        &self,
        limit: usize,
        cache_lease: Duration,
    ) -> Result<Vec<RoutedJob>, StoreError> {
        measured!(self, "take_over_flights", store => store.take_over_flights(limit, cache_lease))
    }

    /// Records a worker's sign of life and extends the leases of all jobs it runs.
    ///
    /// # Errors
    /// When nothing was written.
    pub async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<(), StoreError> {
        measured!(self, "beat", store => store.heartbeat(heartbeat))
    }

    /// The workers seen within `age`, the latest first.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn workers(&self, age: Duration) -> Result<Vec<WorkerRecord>, StoreError> {
        measured!(self, "workers", store => store.workers(age))
    }

    /// The records of these jobs that exist, in no particular order.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn records(&self, ids: &[JobId]) -> Result<Vec<JobRecord>, StoreError> {
        measured!(self, "records", store => store.records(ids))
    }

    /// The records of the jobs that own these idempotency keys.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn records_by_key(
        &self,
        tenant: &Tenant,
        keys: &[String],
    ) -> Result<Vec<JobRecord>, StoreError> {
        measured!(self, "records_by_key", store => store.records_by_key(tenant, keys))
    }

    /// Terminal records by rising (finished_at, id); copies for learning are left out.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn finished(
        &self,
        filter: &RecordFilter,
        limit: usize,
    ) -> Result<Vec<JobRecord>, StoreError> {
        measured!(self, "finished", store => store.finished(filter, limit))
    }

    /// A job with its request, as it was admitted.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn job(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        measured!(self, "job", store => store.job(id))
    }

    /// A job's attempts, the first first.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn attempts(&self, id: JobId) -> Result<Vec<AttemptRecord>, StoreError> {
        measured!(self, "attempts", store => store.attempts(id))
    }

    /// Keeps dead letters; a letter whose id is known is passed over.
    ///
    /// # Errors
    /// When nothing was written.
    pub async fn keep_dead_letters(&self, letters: &[DeadLetter]) -> Result<(), StoreError> {
        measured!(self, "keep_dead_letters", store => store.keep_dead_letters(letters))
    }

    /// Unresolved dead letters, the oldest first.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn dead_letters(
        &self,
        filter: &DeadFilter,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        measured!(self, "dead_letters", store => store.dead_letters(filter, limit))
    }

    /// Marks dead letters as resolved; returns how many were not before.
    ///
    /// # Errors
    /// When nothing was written.
    pub async fn resolve_dead(
        &self,
        ids: &[Uuid],
        resolution: DeadResolution,
    ) -> Result<u64, StoreError> {
        measured!(self, "resolve_dead", store => store.resolve_dead(ids, resolution))
    }

    /// Figures for `promptyard status`.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn overview(&self) -> Result<Overview, StoreError> {
        measured!(self, "overview", store => store.overview())
    }

    /// True while the database answers; drives `/readyz`.
    pub async fn is_reachable(&self) -> bool {
        each!(self, store => store.is_reachable().await)
    }

    /// Drops the schema (Postgres) or the tables (SQLite) with all they hold. For tests.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn drop_all(&self) -> Result<(), StoreError> {
        measured!(self, "drop_all", store => store.drop_all())
    }

    /// Closes the connections.
    pub async fn close(&self) {
        each!(self, store => store.close().await)
    }
}
