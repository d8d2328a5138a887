//! Learns how many requests a server takes at once: additive increase and multiplicative decrease,
//! as TCP congestion control (RFC 5681) and Netflix's concurrency-limits do.
//!
//! Pure: time is an argument. A *window* is as many requests as the limit allows.
//!
//! ```text
//!       answered, below the threshold: + 1      answered, above it: + 1 / limit
//!       (doubles per window: slow start)        (one more per window)
//!                        │                                   │
//!   1 ◀────────── × 0.7 ─┴── throttled or timed out ─────────┘
//!                 once per window; a second time without an answer in between also pauses
//! ```

use std::time::Duration;

use tokio::time::Instant;

/// Factor on throttling: CUBIC's (RFC 9438, section 4.6). Around a steady capacity the limit then
/// averages 85 % of it; halving would average 75 %.
const DECREASE: f64 = 0.7;
/// First pause, after a second rejection in a row; doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause of our own choosing, so that a recovered server soon gets requests again.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Longest pause that a server can ask for. Longer ones come from daily quotas; ask again then.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// Held by a request in flight; must be given back when it ends.
#[derive(Debug)]
#[must_use]
pub(super) struct LimitPermit {
    /// Number of decreases before it.
    decreases: u64,
    /// Requests in flight, this one included.
    in_flight: usize,
}

/// What the end of a request tells about the server's load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LoadSignal {
    /// It was answered.
    Answered,
    /// The server accepts no more now; it may say for how long.
    Throttled(Option<Duration>),
    /// It timed out.
    TimedOut,
    /// Nothing: the request was dropped or failed for another reason.
    Unknown,
}

/// The limit and the requests in flight.
#[derive(Debug)]
pub(super) struct ConcurrencyLimit {
    max: usize,
    /// Between 1 and `max`; the integer part counts.
    allowed: f64,
    /// Slow-start threshold: below it the limit grows fast.
    threshold: f64,
    in_flight: usize,
    decreases: u64,
    /// Decreases since the last answer.
    rejections: u32,
    paused_until: Option<Instant>,
}

impl ConcurrencyLimit {
    /// Starts at the maximum: it was configured for this server, and throttling corrects it at once.
    pub(super) fn new(max: usize) -> Self {
        let max = max.max(1);
        Self {
            max,
            allowed: max as f64,
            threshold: max as f64,
            in_flight: 0,
            decreases: 0,
            rejections: 0,
            paused_until: None,
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

    /// When the current pause ends; `None` without a pause.
    pub(super) fn paused_until(&self, now: Instant) -> Option<Instant> {
        self.paused_until.filter(|until| *until > now)
    }

    /// Starts a request if the limit allows it.
    pub(super) fn start(&mut self, now: Instant) -> Option<LimitPermit> {
        if self.paused_until(now).is_some() || self.in_flight >= self.allowed() {
            return None;
        }
        self.in_flight += 1;
        Some(LimitPermit {
            decreases: self.decreases,
            in_flight: self.in_flight,
        })
    }

    /// Ends a request and applies its feedback.
    pub(super) fn end(&mut self, permit: LimitPermit, signal: LoadSignal, now: Instant) {
        // A request from before the last decrease met a different limit; ignore its feedback.
        let is_current = permit.decreases == self.decreases;
        match signal {
            LoadSignal::Answered if is_current => {
                self.rejections = 0;
                // At least half in use, as in RFC 7661 and Netflix's rule: idle capacity proves nothing.
                if 2 * permit.in_flight.max(self.in_flight) >= self.allowed() {
                    self.increase();
                }
            }
            LoadSignal::Throttled(_) | LoadSignal::TimedOut if is_current => self.decrease(now),
            _ => {}
        }
        if let LoadSignal::Throttled(Some(after)) = signal {
            self.pause(now + after.min(RETRY_AFTER_MAX));
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
        // Unused capacity was not rejected.
        let used = self.allowed.min(self.in_flight as f64);
        self.allowed = (used * DECREASE).max(1.0);
        self.decreases += 1;
        self.rejections = self.rejections.saturating_add(1);
        match self.rejections {
            1 => self.threshold = self.allowed,
            // The threshold stays (RFC 5681, section 3.1): an outage tells nothing about capacity.
            further => {
                let doublings = (further - 2).min(16);
                self.pause(now + PAUSE_MAX.min(PAUSE_MIN * 2_u32.pow(doublings)));
            }
        }
    }

    fn pause(&mut self, until: Instant) {
        self.paused_until = self.paused_until.max(Some(until));
    }
}

#[cfg(test)]
mod tests;
