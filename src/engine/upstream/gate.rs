//! Lets requests go to the server: as many as its limit allows, in their order, and none while it
//! is down or rests.

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
    limit::{End, Limit, Start},
    refusal::unavailable,
};
use crate::{
    engine::EngineError,
    job::Tier,
    metrics::{UPSTREAM_LIMIT, UPSTREAM_RUNNING, UPSTREAM_THROTTLED},
};

/// How long a request waits at a closed gate before it is given back. Long enough for a server to
/// be started again: a request that is given back is charged an attempt, one that waits is not.
/// Short enough for another worker, whose server is up, to take it then.
pub(super) const CLOSED_WAIT: Duration = Duration::from_secs(60);

/// Where requests wait until they may go.
#[derive(Debug)]
pub(super) struct Gate {
    tier: Tier,
    state: Mutex<State>,
    /// Told whenever a request ends or the gate opens or shuts.
    changed: Notify,
    /// Held by the first in line; the lock itself keeps the order.
    first: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    limit: Limit,
    is_lost: bool,
    /// Since when no request may go, whatever the limit.
    closed_since: Option<Instant>,
    /// Refused requests that wait to go again, before all others.
    returning: usize,
}

/// Why a request may not go yet.
enum Wait {
    /// Others are in flight or before it.
    Turn,
    /// The gate is closed since then; it opens at a time or when the server is back.
    Closed(Instant, Option<Instant>),
}

impl Gate {
    pub(super) fn new(tier: Tier, limit_max: usize) -> Self {
        Self {
            tier,
            state: Mutex::new(State {
                limit: Limit::new(limit_max),
                is_lost: false,
                closed_since: None,
                returning: 0,
            }),
            changed: Notify::new(),
            first: tokio::sync::Mutex::default(),
        }
    }

    /// False while the server is down.
    pub(super) fn is_open(&self) -> bool {
        !self.with(|state| state.is_lost)
    }

    /// The server is there.
    pub(super) fn open(&self) {
        if self.with(|state| mem::replace(&mut state.is_lost, false)) {
            tracing::info!(tier = %self.tier, "the model server is back");
            self.changed.notify_waiters();
        }
    }

    /// The server is down.
    pub(super) fn shut(&self) {
        if !self.with(|state| mem::replace(&mut state.is_lost, true)) {
            tracing::warn!(tier = %self.tier, "the model server is down; requests wait for it");
            self.changed.notify_waiters();
        }
    }

    /// Waits for a request's turn.
    ///
    /// # Errors
    /// The gate stayed closed for [`CLOSED_WAIT`].
    pub(super) async fn enter(self: &Arc<Self>) -> Result<Turn, EngineError> {
        let since = Instant::now();
        let _first = self.first.lock().await;
        self.wait(since, |state| state.returning == 0).await
    }

    /// Waits for the next turn of a request that was refused: before all that have not gone yet.
    ///
    /// # Errors
    /// The gate stayed closed for [`CLOSED_WAIT`].
    pub(super) async fn enter_again(self: &Arc<Self>) -> Result<Turn, EngineError> {
        let since = Instant::now();
        let _returning = Returning::new(self);
        self.wait(since, |_| true).await
    }

    async fn wait(
        self: &Arc<Self>,
        since: Instant,
        is_next: impl Fn(&State) -> bool,
    ) -> Result<Turn, EngineError> {
        loop {
            let changed = self.changed.notified();
            pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            let now = Instant::now();
            match self.with(|state| state.start(now, &is_next)) {
                Ok(start) => {
                    return Ok(Turn {
                        gate: self.clone(),
                        start: Some(start),
                    });
                }
                Err(Wait::Turn) => changed.await,
                Err(Wait::Closed(closed_since, opens_at)) => {
                    let patience_ends = closed_since.max(since) + CLOSED_WAIT;
                    if patience_ends <= now {
                        return Err(match opens_at {
                            Some(at) => {
                                unavailable("the server throttles".to_owned(), Some(at - now))
                            }
                            None => unavailable("the server is down".to_owned(), None),
                        });
                    }
                    let next = opens_at.map_or(patience_ends, |at| at.min(patience_ends));
                    select! {
                        () = changed => {}
                        () = sleep_until(next) => {}
                    }
                }
            }
        }
    }

    fn end(&self, start: Start, end: End) {
        self.with(|state| state.limit.end(start, end, Instant::now()));
        self.changed.notify_waiters();
        let reason = match end {
            End::Throttled(_) => "refused",
            End::TimedOut => "timed_out",
            End::Answered | End::Untold => return,
        };
        counter!(UPSTREAM_THROTTLED, "tier" => self.tier.as_str(), "reason" => reason).increment(1);
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().expect("nobody panics while holding it");
        let outcome = act(&mut state);
        let tier = self.tier.as_str();
        gauge!(UPSTREAM_LIMIT, "tier" => tier).set(state.limit.allowed() as f64);
        gauge!(UPSTREAM_RUNNING, "tier" => tier).set(state.limit.in_flight() as f64);
        outcome
    }
}

impl State {
    fn start(&mut self, now: Instant, is_next: impl Fn(&Self) -> bool) -> Result<Start, Wait> {
        let opens_at = self.limit.rests_until(now);
        if self.is_lost || opens_at.is_some() {
            let since = *self.closed_since.get_or_insert(now);
            return Err(Wait::Closed(since, opens_at.filter(|_| !self.is_lost)));
        }
        self.closed_since = None;
        if !is_next(self) {
            return Err(Wait::Turn);
        }
        self.limit.start(now).ok_or(Wait::Turn)
    }
}

/// Counts a returning request while it waits.
struct Returning<'a>(&'a Gate);

impl<'a> Returning<'a> {
    fn new(gate: &'a Gate) -> Self {
        gate.with(|state| state.returning += 1);
        Self(gate)
    }
}

impl Drop for Returning<'_> {
    fn drop(&mut self) {
        self.0.with(|state| state.returning -= 1);
        self.0.changed.notify_waiters();
    }
}

/// A request in flight. Dropped, it ends and says nothing of the server.
#[derive(Debug)]
#[must_use]
pub(super) struct Turn {
    gate: Arc<Gate>,
    start: Option<Start>,
}

impl Turn {
    /// Ends it.
    pub(super) fn end(mut self, end: End) {
        if let Some(start) = self.start.take() {
            self.gate.end(start, end);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(start) = self.start.take() {
            self.gate.end(start, End::Untold);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, pin_mut};
    use tokio::time::advance;

    use super::*;

    fn gate(limit_max: usize) -> Arc<Gate> {
        Arc::new(Gate::new(Tier::Small, limit_max))
    }

    #[tokio::test(start_paused = true)]
    async fn requests_go_in_their_order_and_refused_ones_before_them() {
        let gate = gate(1);
        let first = gate.enter().await.expect("open");
        let (second, third) = (gate.enter(), gate.enter());
        pin_mut!(second, third);
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        first.end(End::Throttled(None));
        let again = gate.enter_again();
        pin_mut!(again);
        assert!(third.as_mut().now_or_never().is_none());
        let first = again.as_mut().now_or_never();
        // What was polled before the refused one came back may be first; then it comes next.
        let first = first.expect("its turn").expect("open");
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        assert!(third.as_mut().now_or_never().is_none());
        let second = second.now_or_never().expect("its turn").expect("open");
        drop(second);
        assert!(third.now_or_never().expect("its turn").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_gate_opens_or_gives_its_requests_back() {
        let gate = gate(2);
        gate.shut();
        let began = Instant::now();
        let (one, other) = tokio::join!(gate.enter(), gate.enter());
        assert!(matches!(one, Err(EngineError::Unavailable { .. })) && other.is_err());
        assert_eq!(began.elapsed(), CLOSED_WAIT, "both have waited enough");
        let late = gate.enter();
        pin_mut!(late);
        assert!(late.as_mut().now_or_never().is_none());
        advance(CLOSED_WAIT / 2).await;
        gate.open();
        assert!(late.now_or_never().expect("its turn").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_throttled_gate_rests_as_long_as_the_server_asks() {
        let gate = gate(2);
        let turn = gate.enter().await.expect("open");
        turn.end(End::Throttled(Some(Duration::from_secs(7))));
        let began = Instant::now();
        let turn = gate.enter().await.expect("open again");
        assert_eq!(began.elapsed(), Duration::from_secs(7));
        turn.end(End::Throttled(Some(CLOSED_WAIT * 2)));
        let error = gate.enter().await.expect_err("too long");
        let left = CLOSED_WAIT.as_millis() as u64;
        assert!(
            matches!(error, EngineError::Unavailable { retry_after_ms: Some(ms), .. } if ms == left),
            "{error:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_dropped_keeps_nobody_waiting() {
        let gate = gate(1);
        let turn = gate.enter().await.expect("open");
        let mut first = Box::pin(gate.enter());
        let mut second = Box::pin(gate.enter());
        let mut again = Box::pin(gate.enter_again());
        for waiting in [&mut first, &mut second] {
            assert!(waiting.now_or_never().is_none());
        }
        assert!((&mut again).now_or_never().is_none());
        drop((first, again, turn));
        assert!(second.now_or_never().expect("its turn").is_ok());
    }

    #[test]
    fn metrics_show_the_limit_and_what_met_it() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let shown = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            let gate = gate(10);
            let mut turns: Vec<_> = (0..10)
                .map(|_| {
                    gate.enter()
                        .now_or_never()
                        .expect("its turn")
                        .expect("open")
                })
                .collect();
            turns.remove(0).end(End::Throttled(None));
            turns.remove(0).end(End::TimedOut);
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
