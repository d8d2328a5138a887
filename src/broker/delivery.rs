//! A message as a consumer gets it, and the handle that settles it.

use super::{Envelope, Queue, embedded::EmbeddedAcker, rabbitmq::RabbitAcker};

/// A message handed to a consumer.
#[derive(Debug)]
pub struct Delivery {
    /// The queue it came from.
    pub queue: Queue,
    /// Properties and headers.
    pub envelope: Envelope,
    /// The body.
    pub body: Vec<u8>,
    /// True when it may have been delivered before.
    pub redelivered: bool,
    /// Settles it.
    pub acker: Acker,
}

/// Settles one delivery through [`super::Broker::ack`], [`super::Broker::requeue`] or [`super::Broker::reject`].
/// The message of an acker that is dropped stays unsettled until its consumer and all of its other
/// ackers are gone.
#[derive(Debug)]
pub enum Acker {
    /// Of RabbitMQ.
    Rabbit(RabbitAcker),
    /// Of the embedded broker.
    Embedded(EmbeddedAcker),
}

impl Acker {
    /// False when the connection that delivered it is gone: the broker will deliver the message
    /// again, so work on it now would be done twice.
    pub fn is_live(&self) -> bool {
        match self {
            Self::Rabbit(acker) => acker.is_live(),
            Self::Embedded(acker) => acker.is_live(),
        }
    }
}

/// How full a queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    /// The queue.
    pub queue: Queue,
    /// Messages that wait for a consumer.
    pub ready: u64,
    /// Consumers subscribed to it. RabbitMQ counts one that has ended until its last message is
    /// settled; the embedded broker knows only those of this process.
    pub consumers: u32,
}
