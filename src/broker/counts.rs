//! Counts of messages, for the metrics.

use std::collections::BTreeMap;

use metrics::counter;

use super::{Delivery, Publication, PublishError, Target};
use crate::metrics::{DELIVERED, PUBLISHED};

/// Labels of [`crate::metrics::PUBLISHED`].
fn labels(target: &Target, outcome: &Result<(), PublishError>) -> (&'static str, &'static str) {
    let queue = match target {
        Target::Queue(queue) => queue.name(),
        Target::Reply(_) => "reply",
    };
    let outcome = match outcome {
        Ok(()) => "confirmed",
        Err(PublishError::Refused) => "refused",
        Err(PublishError::Unroutable) => "unroutable",
        Err(PublishError::TimedOut(_)) => "timed_out",
        Err(PublishError::Unreachable(_)) => "unreachable",
    };
    (queue, outcome)
}

/// Counts the outcomes of a batch, by queue.
pub(super) fn count_published(messages: &[Publication], outcomes: &[Result<(), PublishError>]) {
    let mut counts = BTreeMap::new();
    for (message, outcome) in messages.iter().zip(outcomes) {
        *counts.entry(labels(&message.target, outcome)).or_insert(0) += 1;
    }
    for ((queue, outcome), count) in counts {
        counter!(PUBLISHED, "queue" => queue, "outcome" => outcome).increment(count);
    }
}

/// Counts messages handed to a consumer, by queue.
pub(super) fn count_delivered(batch: &[Delivery]) {
    let mut counts = BTreeMap::new();
    for delivery in batch {
        *counts
            .entry((delivery.queue.name(), delivery.redelivered))
            .or_insert(0) += 1;
    }
    for ((queue, redelivered), count) in counts {
        let redelivered = if redelivered { "true" } else { "false" };
        counter!(DELIVERED, "queue" => queue, "redelivered" => redelivered).increment(count);
    }
}
