//! Polling with a deadline: the only place where tests sleep. Exceptions are `tests/chaos`, whose
//! errors and traffic take time, and the upstream test server, whose answers do.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Longest wait for anything; far more than a busy machine needs.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Time between two polls.
const PAUSE: Duration = Duration::from_millis(10);

/// Polls until `probe` gives a value; none once `patience` is over.
pub async fn poll<T>(patience: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = probe().await {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Polls until a condition holds.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let held = poll(PATIENCE, async || condition().await.then_some(())).await;
    assert!(held.is_some(), "never came true: {what}");
}

/// [`poll`] outside a runtime.
pub fn poll_blocking<T>(patience: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = probe() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(PAUSE);
    }
}

/// [`until`] outside a runtime.
#[track_caller]
pub fn until_blocking(what: &str, mut condition: impl FnMut() -> bool) {
    let held = poll_blocking(PATIENCE, || condition().then_some(()));
    assert!(held.is_some(), "never came true: {what}");
}
