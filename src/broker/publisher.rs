//! Publishing that does not give up: a refused or unconfirmed message is tried again until the
//! broker has it or the process is told to stop. The caller keeps its own delivery unacknowledged
//! meanwhile, so a full queue slows the stage before it down instead of losing anything.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use metrics::counter;

use crate::{metrics::REPLIES_LOST, shutdown::Shutdown};

use super::{Broker, Publication, PublishError, Target};

/// Shortest and longest wait between tries.
const WAIT_MIN: Duration = Duration::from_millis(50);
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Publishes every message, trying again what was not confirmed. One flag for each message, in
/// order: false when the stop was requested before the broker had it.
///
/// A reply whose queue is gone counts as done: the answer is in the ledger.
pub async fn publish_all(
    broker: &Broker,
    messages: Vec<Publication>,
    shutdown: &Shutdown,
) -> Vec<bool> {
    let mut done = vec![false; messages.len()];
    let mut pending: Vec<(usize, Publication)> = messages.into_iter().enumerate().collect();
    let mut waits = ExponentialBuilder::default()
        .with_min_delay(WAIT_MIN)
        .with_max_delay(WAIT_MAX)
        .with_jitter()
        .without_max_times()
        .build();
    while !pending.is_empty() {
        let outcomes = broker
            .publish(pending.iter().map(|(_, m)| m.clone()).collect())
            .await;
        let mut error = None;
        let mut outcomes = outcomes.into_iter();
        pending.retain(|(at, message)| {
            let outcome = outcomes.next().unwrap_or(Err(PublishError::Unroutable));
            match (outcome, &message.target) {
                (Ok(()), _) => done[*at] = true,
                (Err(PublishError::Unroutable), Target::Reply(_)) => {
                    counter!(REPLIES_LOST).increment(1);
                    done[*at] = true;
                }
                (Err(other), _) => error = Some(other),
            }
            !done[*at]
        });
        let Some(error) = error else { break };
        tracing::warn!(%error, messages = pending.len(), "not published; trying again");
        let wait = waits.next().unwrap_or(WAIT_MAX);
        tokio::select! {
            () = shutdown.requested() => break,
            () = tokio::time::sleep(wait) => {}
        }
    }
    done
}
