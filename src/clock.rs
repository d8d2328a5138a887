//! The time of day as the store and the router read it; tests move it ahead instead of sleeping.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};

/// The system's clock, which a test may move ahead. Clones share one time.
///
/// All times in the job database come from the processes' clocks, never from the database's, so
/// that leases, deadlines and latencies compare instants of one kind. Fleets need clocks
/// synchronised to a second: leases last a minute and more.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    ahead_us: Arc<AtomicI64>,
}

impl Clock {
    /// The present time in microseconds, which is as exact as Postgres keeps it.
    pub fn now(&self) -> DateTime<Utc> {
        let ahead = TimeDelta::microseconds(self.ahead_us.load(Ordering::Relaxed));
        Utc::now().trunc_subsecs(6) + ahead
    }

    /// Moves this clock and its clones ahead of the system's by `span` more. For tests.
    pub fn advance(&self, span: Duration) {
        let span = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        self.ahead_us.fetch_add(span, Ordering::Relaxed);
    }
}
