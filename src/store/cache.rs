//! What is known of kept answers as a whole, and which of them are to go.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::job::{JobId, Tenant};

/// Entries removed in one transaction.
pub(super) const STEP_MAX: i64 = 1000;
/// Steps of one kind in one round; what is left over waits for the next.
pub(super) const STEPS_MAX: u32 = 100;
/// After its lease an entry that nobody computes is kept so long: whoever waits for it is promoted.
pub(super) const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

/// A number as the database counts, which is never below 0.
pub(super) fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// A limit as the database takes it.
pub(super) fn limit(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// How much may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// Most entries in all.
    pub entries_max: u64,
    /// Most entries of one tenant.
    pub tenant_entries_max: u64,
    /// Most bytes of answers in all.
    pub bytes_max: u64,
    /// An entry of a revision that no worker serves any more, while one of the same name serves
    /// another, goes so long after the last of its workers was seen.
    pub stale_after: Duration,
}

/// What a round of upkeep came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheUpkeep {
    /// Entries that are kept.
    pub entries: u64,
    /// Bytes of their answers.
    pub bytes: u64,
    /// Removed because their time was over.
    pub expired: u64,
    /// Removed because nobody serves their model's revision any more.
    pub stale: u64,
    /// Removed because there were too many, those used longest ago first.
    pub evicted: u64,
    /// Removed because no job computes them any more or waits for them.
    pub abandoned: u64,
}

/// Which entries are meant; every condition narrows, and none means all.
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

/// Figures of the kept answers of one tenant and revision.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheStats {
    /// Whose answers they are.
    pub tenant: String,
    /// The model that gave them.
    pub model: String,
    /// Its revision.
    pub revision: String,
    /// Answers.
    pub entries: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Jobs answered from them.
    pub hits: u64,
    /// When the latest of those was.
    pub last_hit_at: Option<DateTime<Utc>>,
}
