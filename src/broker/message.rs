//! A message: where it goes, its envelope and its body.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::job::Priority;

use super::Queue;

/// Where a message goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One of the fleet's queues.
    Queue(Queue),
    /// A producer's reply queue, by its full name; a broker that has no such queue answers
    /// [`super::PublishError::Unroutable`].
    Reply(String),
}

/// A message's properties and headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// The producer's idempotency key.
    pub message_id: Option<String>,
    /// Copied to the reply.
    pub correlation_id: Option<String>,
    /// Where the producer wants its answer.
    pub reply_to: Option<String>,
    /// How urgently the message is delivered, where the broker knows priorities.
    pub priority: Priority,
    /// From this instant the message is dead-lettered instead of delivered. On the wire it is the
    /// AMQP `expiration`, milliseconds from publishing. Dead letters keep it and do not expire; on
    /// RabbitMQ neither does a message that was in a delay queue.
    pub expires_at: Option<DateTime<Utc>>,
    /// In a delay queue, milliseconds to wait there, at most the queue's own delay.
    pub rest_ms: Option<u64>,
    /// When the producer made the message (AMQP `timestamp`, whole seconds on RabbitMQ).
    pub timestamp: Option<DateTime<Utc>>,
    /// Text headers; promptyard's own begin with `promptyard-`.
    pub headers: BTreeMap<String, String>,
}

/// On a message in [`Queue::Dead`]: why the broker gave up (`expired`, `rejected`,
/// `delivery_limit`, `maxlen`).
pub const HEADER_DEATH_REASON: &str = "promptyard-death-reason";
/// On a message in [`Queue::Dead`]: name of the queue it died in, without the prefix.
pub const HEADER_DEATH_QUEUE: &str = "promptyard-death-queue";

/// A message to publish.
#[derive(Clone, Debug, PartialEq)]
pub struct Publication {
    /// Where it goes.
    pub target: Target,
    /// Properties and headers.
    pub envelope: Envelope,
    /// The body, opaque to the broker.
    pub body: Vec<u8>,
}
