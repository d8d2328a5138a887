//! How many requests a server takes at once, learnt from its answers: additive increase and
//! multiplicative decrease, as TCP probes a path (RFC 5681) and Netflix's concurrency-limits a
//! service.
//!
//! Pure: counts in, counts out, time passed in. A *window* is as many requests as the limit allows.
//!
//! ```text
//!            answer, below the threshold: + 1        answer, above it: + 1 / limit
//!            (doubles in a window: slow start)       (one more in a window)
//!                        │                                   │
//!   1 ◀────────── × 0.7 ─┴── throttled or timed out ─────────┘
//!                 once a window; a second time without an answer between rests as well
//! ```

use std::time::Duration;

use tokio::time::Instant;

/// What is left of the limit when the server throttles: CUBIC's factor (RFC 9438, section 4.6).
/// Around a steady capacity the limit then averages 85 % of it; halving would leave it at 75 %.
const DECREASE: f64 = 0.7;
/// First rest after a second refusal in a row; it doubles with each further one.
const REST_MIN: Duration = Duration::from_millis(100);
/// Longest rest of our own choosing: a server that is back waits no longer for its requests.
const REST_MAX: Duration = Duration::from_secs(10);
/// Longest rest at a server's word; what asks for more has a quota by the day, and is asked again.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// A request that was let go, to be given back when it ends.
#[derive(Debug)]
#[must_use]
pub(super) struct Start {
    /// Decreases before it.
    decreases: u64,
    /// Requests in flight with it.
    in_flight: usize,
}

/// What a request's end says about the server's load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It was answered.
    Answered,
    /// The server takes no more now; it may say when it will.
    Throttled(Option<Duration>),
    /// It took too long.
    TimedOut,
    /// Nothing: it was dropped, or failed for another reason.
    Untold,
}

/// The limit and what is in flight under it.
#[derive(Debug)]
pub(super) struct Limit {
    max: usize,
    /// Between 1 and `max`; its whole part counts.
    allowed: f64,
    /// Below it the limit grows fast: so many were taken not long ago.
    threshold: f64,
    in_flight: usize,
    decreases: u64,
    /// Decreases since the last answer.
    refusals: u32,
    rests_until: Option<Instant>,
}

impl Limit {
    /// Begins at the maximum: whoever configured it knows the server, and one that throttles says
    /// so at once.
    pub(super) fn new(max: usize) -> Self {
        let max = max.max(1);
        Self {
            max,
            allowed: max as f64,
            threshold: max as f64,
            in_flight: 0,
            decreases: 0,
            refusals: 0,
            rests_until: None,
        }
    }

    /// Requests that may be in flight now.
    pub(super) fn allowed(&self) -> usize {
        (self.allowed as usize).clamp(1, self.max)
    }

    /// Requests in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// When requests may start again, while they may not.
    pub(super) fn rests_until(&self, now: Instant) -> Option<Instant> {
        self.rests_until.filter(|until| *until > now)
    }

    /// Lets a request go if there is room for it.
    pub(super) fn start(&mut self, now: Instant) -> Option<Start> {
        if self.rests_until(now).is_some() || self.in_flight >= self.allowed() {
            return None;
        }
        self.in_flight += 1;
        Some(Start {
            decreases: self.decreases,
            in_flight: self.in_flight,
        })
    }

    /// Takes a request's end.
    pub(super) fn end(&mut self, start: Start, end: End, now: Instant) {
        // A request from before the last decrease met another limit; it says nothing of this one.
        let is_news = start.decreases == self.decreases;
        match end {
            End::Answered if is_news => {
                self.refusals = 0;
                // Half in use, as RFC 7661 and Netflix's rule have it: what is idle proves nothing.
                if 2 * start.in_flight.max(self.in_flight) >= self.allowed() {
                    self.increase();
                }
            }
            End::Throttled(_) | End::TimedOut if is_news => self.decrease(now),
            _ => {}
        }
        if let End::Throttled(Some(after)) = end {
            self.rest(now + after.min(RETRY_AFTER_MAX));
        }
        self.in_flight -= 1;
    }

    fn increase(&mut self) {
        let step = if self.allowed < self.threshold {
            1.0
        } else {
            1.0 / self.allowed
        };
        self.allowed = (self.allowed + step).min(self.max as f64);
    }

    fn decrease(&mut self, now: Instant) {
        // What was not in use was not refused.
        let used = self.allowed.min(self.in_flight as f64);
        self.allowed = (used * DECREASE).max(1.0);
        self.decreases += 1;
        self.refusals = self.refusals.saturating_add(1);
        match self.refusals {
            1 => self.threshold = self.allowed,
            // The threshold stays (RFC 5681, section 3.1): an outage says nothing about capacity.
            further => {
                let doublings = (further - 2).min(16);
                self.rest(now + REST_MAX.min(REST_MIN * 2_u32.pow(doublings)));
            }
        }
    }

    fn rest(&mut self, until: Instant) {
        self.rests_until = self.rests_until.max(Some(until));
    }
}

#[cfg(test)]
#[path = "limit_tests.rs"]
mod tests;
