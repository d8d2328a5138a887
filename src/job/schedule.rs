//! When a job may run, and how often.

use chrono::{DateTime, TimeDelta, Utc};

/// When a job is to be done and how often it may be tried, as its body says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// Time allowed from submission, in milliseconds.
    pub deadline_ms: Option<u64>,
    /// Not before this instant.
    pub not_before: Option<DateTime<Utc>>,
    /// Attempts that are allowed.
    pub attempts_max: Option<u32>,
}

impl Schedule {
    /// Longest time ahead in milliseconds: a year, so that adding it to the present never overflows.
    pub const AHEAD_MS_MAX: u64 = 365 * 24 * 3600 * 1000;
    /// Most attempts that a producer may allow.
    pub const ATTEMPTS_MAX: u32 = 100;

    /// The deadline of a job that was submitted then.
    pub fn deadline(&self, submitted_at: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let ms = i64::try_from(self.deadline_ms?).ok()?;
        submitted_at.checked_add_signed(TimeDelta::try_milliseconds(ms)?)
    }
}
