//! Reliable publishing: a message that is refused or not confirmed is published again until the broker
//! confirms it or the stop is requested. Its delivery stays unacknowledged meanwhile, so a full queue
//! slows the stage before it down and nothing is lost.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use metrics::counter;

use crate::{metrics::REPLIES_LOST, shutdown::Shutdown};

use super::{Acker, Broker, Publication, PublishError, Target};

/// Shortest and longest pause between tries.
const WAIT_MIN: Duration = Duration::from_millis(50);
const WAIT_MAX: Duration = Duration::from_secs(5);

/// A delivery whose work is committed, with the messages that follow from it.
#[derive(Debug)]
pub struct Handled {
    /// Settles the delivery.
    pub acker: Acker,
    /// To be published before it is settled.
    pub messages: Vec<Publication>,
    /// True to requeue it even when everything is published.
    pub requeue: bool,
}

impl Handled {
    /// A delivery to acknowledge once its messages are published.
    pub fn new(acker: Acker, messages: impl IntoIterator<Item = Publication>) -> Self {
        Self {
            acker,
            messages: messages.into_iter().collect(),
            requeue: false,
        }
    }
}

/// Publishes what follows from deliveries, then acknowledges those whose messages are all confirmed
/// and requeues the others: redelivered, they find the committed state and publish again.
pub async fn publish_and_settle(broker: &Broker, handled: Vec<Handled>, shutdown: &Shutdown) {
    let mut messages = Vec::new();
    let mut settled = Vec::with_capacity(handled.len());
    for one in handled {
        settled.push((one.acker, one.messages.len(), one.requeue));
        messages.extend(one.messages);
    }
    let mut published = publish_all(broker, messages, shutdown).await.into_iter();
    let (mut done, mut returned) = (Vec::new(), Vec::new());
    for (acker, count, requeue) in settled {
        // Every flag is consumed, so that the next acker finds its own.
        let missing = published.by_ref().take(count).filter(|is_out| !is_out);
        if missing.count() > 0 || requeue {
            returned.push(acker)
        } else {
            done.push(acker)
        }
    }
    acknowledge(broker, done).await;
    requeue(broker, returned).await;
}

/// Publishes every message, again until it is confirmed. Returns one flag for each message, in order:
/// false when the stop was requested before the broker had confirmed it.
///
/// A reply whose queue is gone counts as published: the answer is in the job database.
pub async fn publish_all(
    broker: &Broker,
    messages: Vec<Publication>,
    shutdown: &Shutdown,
) -> Vec<bool> {
    let mut done = vec![false; messages.len()];
    let mut places: Vec<usize> = (0..messages.len()).collect();
    let mut pending = messages;
    let mut waits = ExponentialBuilder::default()
        .with_min_delay(WAIT_MIN)
        .with_max_delay(WAIT_MAX)
        .with_jitter()
        .without_max_times()
        .build();
    while !pending.is_empty() {
        let outcomes = broker.publish(&pending).await;
        let mut error = None;
        let mut open = Vec::new();
        for ((at, message), outcome) in places.into_iter().zip(pending).zip(outcomes) {
            match (outcome, &message.target) {
                (Ok(()), _) => done[at] = true,
                (Err(PublishError::Unroutable), Target::Reply(_)) => {
                    counter!(REPLIES_LOST).increment(1);
                    done[at] = true;
                }
                (Err(other), _) => {
                    error = Some(other);
                    open.push((at, message));
                }
            }
        }
        (places, pending) = open.into_iter().unzip();
        let Some(error) = error else { break };
        tracing::warn!(%error, messages = pending.len(), "messages were not published; trying again");
        if !shutdown.sleep(waits.next().unwrap_or(WAIT_MAX)).await {
            break;
        }
    }
    done
}

/// Acknowledges deliveries, and logs a broker that cannot be reached: it delivers them again.
pub async fn acknowledge(broker: &Broker, ackers: Vec<Acker>) {
    if ackers.is_empty() {
        return;
    }
    if let Err(error) = broker.ack(ackers).await {
        tracing::warn!(%error, "messages were not acknowledged; they will be delivered again");
    }
}

/// Requeues deliveries; a broker that cannot be reached does so itself when the connection ends.
pub async fn requeue(broker: &Broker, ackers: Vec<Acker>) {
    if ackers.is_empty() {
        return;
    }
    if let Err(error) = broker.requeue(ackers).await {
        tracing::warn!(%error, "messages were not requeued; the broker requeues them when the connection ends");
    }
}

/// Turns deliveries into dead letters, and logs a broker that cannot be reached: it delivers them again.
pub async fn reject(broker: &Broker, ackers: Vec<Acker>) {
    if ackers.is_empty() {
        return;
    }
    if let Err(error) = broker.reject(ackers).await {
        tracing::warn!(%error, "messages were not rejected; they will be delivered again");
    }
}
