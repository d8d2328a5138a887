//! Limits, figures and upkeep of the answer cache.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::job::{JobId, Tenant};

/// Entries deleted in one transaction.
pub(super) const STEP_MAX: i64 = 1000;
/// Steps of one kind in one round; the rest waits for the next.
pub(super) const STEPS_MAX: u32 = 100;
/// How long an entry that nobody computes is kept after its lease, for single-flight takeover.
pub(super) const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

/// A count from the database.
pub(super) fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// A limit for the database.
pub(super) fn limit(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Limits of the answer cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// Most entries in all.
    pub entries_max: u64,
    /// Most entries of one tenant.
    pub tenant_entries_max: u64,
    /// Most bytes of answers in all.
    pub bytes_max: u64,
    /// How long after its last worker was seen an entry of an outdated revision is deleted, while
    /// workers serve another revision of the model.
    pub stale_after: Duration,
}

/// The outcome of a round of upkeep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheUpkeep {
    /// Remaining entries.
    pub entries: u64,
    /// Bytes of their answers.
    pub bytes: u64,
    /// Deleted because they expired.
    pub expired: u64,
    /// Deleted because no worker serves their model's revision.
    pub stale: u64,
    /// Deleted as surplus, least recently used first.
    pub evicted: u64,
    /// Deleted because no job computes them or waits for them.
    pub abandoned: u64,
}

/// Which entries to count or delete; conditions are combined, none matches all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CacheFilter {
    /// Only this tenant's.
    pub tenant: Option<Tenant>,
    /// Only answers of this model.
    pub model: Option<String>,
    /// Only answers of this revision.
    pub revision: Option<String>,
    /// Only answers given before this instant.
    pub answered_before: Option<DateTime<Utc>>,
    /// Only the answer that this job computed.
    pub job: Option<JobId>,
}

/// Cached answers of one tenant and revision.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheStats {
    /// The tenant.
    pub tenant: String,
    /// The model.
    pub model: String,
    /// Its revision.
    pub revision: String,
    /// Answers.
    pub entries: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Jobs answered from them.
    pub hits: u64,
    /// The latest hit.
    pub last_hit_at: Option<DateTime<Utc>>,
}
