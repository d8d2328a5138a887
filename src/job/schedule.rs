//! When a job may run, and how often.

use chrono::{DateTime, TimeDelta, Utc};

/// The deadline, start and attempts that a body allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// Time allowed from submission, in milliseconds.
    pub deadline_ms: Option<u64>,
    /// Earliest start.
    pub not_before: Option<DateTime<Utc>>,
    /// Most attempts.
    pub attempts_max: Option<u32>,
}

impl Schedule {
    /// Longest time ahead in milliseconds: a year, so that adding it to the present never overflows.
    pub const AHEAD_MS_MAX: u64 = 365 * 24 * 3600 * 1000;
    /// Most attempts that a producer may allow.
    pub const ATTEMPTS_MAX: u32 = 100;

    /// The deadline of a job submitted at an instant.
    pub fn deadline(&self, submitted_at: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let ms = i64::try_from(self.deadline_ms?).ok()?;
        submitted_at.checked_add_signed(TimeDelta::try_milliseconds(ms)?)
    }
}
