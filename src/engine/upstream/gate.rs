//! Admits requests to the server in order, within its concurrency limit, and none while the server
//! is down or asked for a pause.

use std::{
    mem,
    sync::{Arc, Mutex},
    time::Duration,
};

use metrics::{counter, gauge};
use tokio::{
    pin, select,
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{
    error::unavailable,
    limit::{ConcurrencyLimit, LimitPermit, LoadSignal},
};
use crate::{
    engine::EngineError,
    job::Tier,
    metrics::{UPSTREAM_LIMIT, UPSTREAM_RUNNING, UPSTREAM_THROTTLED},
};

/// How long a request waits at a closed gate before it is returned to the broker. Long enough for a
/// server restart, since a returned request is charged an attempt and a waiting one is not; short
/// enough to let another worker, whose server is up, take over.
pub(super) const CLOSED_WAIT: Duration = Duration::from_secs(60);

/// Where requests wait for their permits.
#[derive(Debug)]
pub(super) struct RequestGate {
    tier: Tier,
    state: Mutex<GateState>,
    /// Notified whenever a request ends or the gate opens or closes.
    changed: Notify,
    /// Held by the first request in line; the lock's queue keeps the order.
    first: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct GateState {
    limit: ConcurrencyLimit,
    is_down: bool,
    /// Since when no request is admitted, whatever the limit.
    closed_since: Option<Instant>,
    /// Rejected requests that wait for a retry, ahead of all others.
    retrying: usize,
}

/// Why a request is not admitted yet.
enum Blocked {
    /// The limit is reached, or others are ahead.
    Busy,
    /// Closed since the first time; opens at the second, or when the server is back up.
    Closed(Instant, Option<Instant>),
}

impl RequestGate {
    pub(super) fn new(tier: Tier, limit_max: usize) -> Self {
        Self {
            tier,
            state: Mutex::new(GateState {
                limit: ConcurrencyLimit::new(limit_max),
                is_down: false,
                closed_since: None,
                retrying: 0,
            }),
            changed: Notify::new(),
            first: tokio::sync::Mutex::default(),
        }
    }

    /// False while the server is down.
    pub(super) fn is_open(&self) -> bool {
        !self.with(|state| state.is_down)
    }

    /// Records that the server is up.
    pub(super) fn open(&self) {
        if self.with(|state| mem::replace(&mut state.is_down, false)) {
            tracing::info!(tier = %self.tier, "the model server is up again");
            self.changed.notify_waiters();
        }
    }

    /// Records that the server is down.
    pub(super) fn close(&self) {
        if !self.with(|state| mem::replace(&mut state.is_down, true)) {
            tracing::warn!(tier = %self.tier, "the model server is down; requests wait until it is up again");
            self.changed.notify_waiters();
        }
    }

    /// Waits for a permit.
    ///
    /// # Errors
    /// When the gate stayed closed for [`CLOSED_WAIT`].
    pub(super) async fn acquire(self: &Arc<Self>) -> Result<RequestPermit, EngineError> {
        let since = Instant::now();
        let _first = self.first.lock().await;
        self.wait(since, |state| state.retrying == 0).await
    }

    /// Waits for a permit to retry a rejected request, ahead of all that were not sent yet.
    ///
    /// # Errors
    /// When the gate stayed closed for [`CLOSED_WAIT`].
    pub(super) async fn acquire_retry(self: &Arc<Self>) -> Result<RequestPermit, EngineError> {
        let since = Instant::now();
        let _retrying = RetryGuard::new(self);
        self.wait(since, |_| true).await
    }

    async fn wait(
        self: &Arc<Self>,
        since: Instant,
        is_next: impl Fn(&GateState) -> bool,
    ) -> Result<RequestPermit, EngineError> {
        loop {
            let changed = self.changed.notified();
            pin!(changed);
            // No notification after this line is missed.
            changed.as_mut().enable();
            let now = Instant::now();
            match self.with(|state| state.start(now, &is_next)) {
                Ok(permit) => {
                    return Ok(RequestPermit {
                        gate: self.clone(),
                        permit: Some(permit),
                    });
                }
                Err(Blocked::Busy) => changed.await,
                Err(Blocked::Closed(closed_since, opens_at)) => {
                    let wait_ends = closed_since.max(since) + CLOSED_WAIT;
                    if wait_ends <= now {
                        return Err(match opens_at {
                            Some(at) => {
                                unavailable("the server is throttling".to_owned(), Some(at - now))
                            }
                            None => unavailable("the server is down".to_owned(), None),
                        });
                    }
                    let next = opens_at.map_or(wait_ends, |at| at.min(wait_ends));
                    select! {
                        () = changed => {}
                        () = sleep_until(next) => {}
                    }
                }
            }
        }
    }

    fn end(&self, permit: LimitPermit, signal: LoadSignal) {
        self.with(|state| state.limit.end(permit, signal, Instant::now()));
        self.changed.notify_waiters();
        let reason = match signal {
            LoadSignal::Throttled(_) => "refused",
            LoadSignal::TimedOut => "timed_out",
            LoadSignal::Answered | LoadSignal::Unknown => return,
        };
        counter!(UPSTREAM_THROTTLED, "tier" => self.tier.as_str(), "reason" => reason).increment(1);
    }

    fn with<T>(&self, act: impl FnOnce(&mut GateState) -> T) -> T {
        let mut state = self.state.lock().expect("nobody panics while holding it");
        let outcome = act(&mut state);
        let tier = self.tier.as_str();
        gauge!(UPSTREAM_LIMIT, "tier" => tier).set(state.limit.allowed() as f64);
        gauge!(UPSTREAM_RUNNING, "tier" => tier).set(state.limit.in_flight() as f64);
        outcome
    }
}

impl GateState {
    fn start(
        &mut self,
        now: Instant,
        is_next: impl Fn(&Self) -> bool,
    ) -> Result<LimitPermit, Blocked> {
        let opens_at = self.limit.paused_until(now);
        if self.is_down || opens_at.is_some() {
            let since = *self.closed_since.get_or_insert(now);
            return Err(Blocked::Closed(since, opens_at.filter(|_| !self.is_down)));
        }
        self.closed_since = None;
        if !is_next(self) {
            return Err(Blocked::Busy);
        }
        self.limit.start(now).ok_or(Blocked::Busy)
    }
}

/// Counts a request waiting for a retry.
struct RetryGuard<'a>(&'a RequestGate);

impl<'a> RetryGuard<'a> {
    fn new(gate: &'a RequestGate) -> Self {
        gate.with(|state| state.retrying += 1);
        Self(gate)
    }
}

impl Drop for RetryGuard<'_> {
    fn drop(&mut self) {
        self.0.with(|state| state.retrying -= 1);
        self.0.changed.notify_waiters();
    }
}

/// Permits one request in flight. Dropping it ends the request without feedback on the server's load.
#[derive(Debug)]
#[must_use]
pub(super) struct RequestPermit {
    gate: Arc<RequestGate>,
    permit: Option<LimitPermit>,
}

impl RequestPermit {
    /// Ends the request with its feedback.
    pub(super) fn end(mut self, signal: LoadSignal) {
        if let Some(permit) = self.permit.take() {
            self.gate.end(permit, signal);
        }
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            self.gate.end(permit, LoadSignal::Unknown);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, pin_mut};
    use tokio::time::advance;

    use super::*;

    fn gate(limit_max: usize) -> Arc<RequestGate> {
        Arc::new(RequestGate::new(Tier::Small, limit_max))
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_admitted_in_order_and_retries_first() {
        let gate = gate(1);
        let first = gate.acquire().await.expect("open");
        let (second, third) = (gate.acquire(), gate.acquire());
        pin_mut!(second, third);
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        first.end(LoadSignal::Throttled(None));
        let again = gate.acquire_retry();
        pin_mut!(again);
        assert!(third.as_mut().now_or_never().is_none());
        let first = again.as_mut().now_or_never();
        // A request polled before the rejected one returned may be first in line; it comes next.
        let first = first.expect("its permit").expect("open");
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        assert!(third.as_mut().now_or_never().is_none());
        let second = second.now_or_never().expect("its permit").expect("open");
        drop(second);
        assert!(third.now_or_never().expect("its permit").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_gate_opens_or_fails_its_requests() {
        let gate = gate(2);
        gate.close();
        let began = Instant::now();
        let (one, other) = tokio::join!(gate.acquire(), gate.acquire());
        assert!(matches!(one, Err(EngineError::Unavailable { .. })) && other.is_err());
        assert_eq!(began.elapsed(), CLOSED_WAIT, "both have waited enough");
        let late = gate.acquire();
        pin_mut!(late);
        assert!(late.as_mut().now_or_never().is_none());
        advance(CLOSED_WAIT / 2).await;
        gate.open();
        assert!(late.now_or_never().expect("its permit").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_throttled_gate_pauses_as_long_as_the_server_asks() {
        let gate = gate(2);
        let permit = gate.acquire().await.expect("open");
        permit.end(LoadSignal::Throttled(Some(Duration::from_secs(7))));
        let began = Instant::now();
        let permit = gate.acquire().await.expect("open again");
        assert_eq!(began.elapsed(), Duration::from_secs(7));
        permit.end(LoadSignal::Throttled(Some(CLOSED_WAIT * 2)));
        let error = gate.acquire().await.expect_err("too long");
        let left = CLOSED_WAIT.as_millis() as u64;
        assert!(
            matches!(error, EngineError::Unavailable { retry_after_ms: Some(ms), .. } if ms == left),
            "{error:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_request_does_not_block_others() {
        let gate = gate(1);
        let permit = gate.acquire().await.expect("open");
        let mut first = Box::pin(gate.acquire());
        let mut second = Box::pin(gate.acquire());
        let mut again = Box::pin(gate.acquire_retry());
        for waiting in [&mut first, &mut second] {
            assert!(waiting.now_or_never().is_none());
        }
        assert!((&mut again).now_or_never().is_none());
        drop((first, again, permit));
        assert!(second.now_or_never().expect("its permit").is_ok());
    }

    #[test]
    fn metrics_report_the_limit_and_throttling() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let shown = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            let gate = gate(10);
            let mut permits: Vec<_> = (0..10)
                .map(|_| {
                    gate.acquire()
                        .now_or_never()
                        .expect("its permit")
                        .expect("open")
                })
                .collect();
            permits.remove(0).end(LoadSignal::Throttled(None));
            permits.remove(0).end(LoadSignal::TimedOut);
            let shown = shown.render();
            for line in [
                "promptyard_upstream_limit_requests{tier=\"small\"} 7",
                "promptyard_upstream_running_requests{tier=\"small\"} 8",
                "promptyard_upstream_throttled_total{tier=\"small\",reason=\"refused\"} 1",
                "promptyard_upstream_throttled_total{tier=\"small\",reason=\"timed_out\"} 1",
            ] {
                assert!(shown.contains(line), "{line} in {shown}");
            }
        });
    }
}
