//! Jobs wait here: named durable queues with confirmed publishing and explicit acknowledgement.
//!
//! Comes in: messages to publish. Goes out: deliveries, each settled exactly once by its acker.
//! Two backends pass one contract suite (`tests/contracts/broker`): [`rabbitmq`] for a fleet and
//! [`embedded`] for one process. [`wire`] is the format of job messages, [`publisher`] publishes
//! until the broker has confirmed and then settles deliveries. A broker never reads a body and never
//! counts attempts.

mod counts;
mod delivery;
pub mod embedded;
mod error;
mod message;
pub mod publisher;
mod queue;
pub mod rabbitmq;
pub mod wire;

use std::time::Duration;

use crate::{config::BrokerConfig, shutdown::Shutdown};

use embedded::{EmbeddedBroker, EmbeddedConsumer};
use rabbitmq::{RabbitBroker, RabbitConsumer};

pub use delivery::{Acker, Delivery, Depth};
pub use error::{BrokerError, PublishError};
pub use message::{Envelope, HEADER_DEATH_QUEUE, HEADER_DEATH_REASON, Publication, Target};
pub use queue::{AffinityQueue, Delay, Queue};

/// Pause before subscribing again to a broker that is away.
const SUBSCRIBE_WAIT: Duration = Duration::from_millis(500);

/// A broker of either kind. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub enum Broker {
    /// RabbitMQ 3.10 to 4.3.
    Rabbit(RabbitBroker),
    /// Tables of a SQLite file.
    Embedded(EmbeddedBroker),
}

/// Calls the same method on whichever backend there is.
macro_rules! each {
    ($value:expr, $backend:ident => $call:expr) => {
        match $value {
            Self::Rabbit($backend) => $call,
            Self::Embedded($backend) => $call,
        }
    };
}

impl Broker {
    /// Connects and declares the queues; `embedded_path` is the embedded broker's file.
    ///
    /// # Errors
    /// When the broker cannot be reached or has conflicting queues.
    pub async fn connect(
        config: &BrokerConfig,
        embedded_path: &std::path::Path,
    ) -> Result<Self, BrokerError> {
        if config.url.expose() == "embedded" {
            EmbeddedBroker::open(config, embedded_path)
                .await
                .map(Self::Embedded)
        } else {
            RabbitBroker::connect(config).await.map(Self::Rabbit)
        }
    }

    /// Publishes messages with pipelined confirms and waits for all of them. One outcome for each
    /// message, in order; `Ok` means that the broker has made it durable.
    pub async fn publish(&self, messages: &[Publication]) -> Vec<Result<(), PublishError>> {
        each!(self, broker => broker.publish(messages).await)
    }

    /// Subscribes to queues, holding at most `prefetch` unsettled messages of each.
    ///
    /// # Errors
    /// When the broker cannot be reached, or (embedded) another process consumes.
    pub async fn consume(&self, queues: &[Queue], prefetch: u16) -> Result<Consumer, BrokerError> {
        Ok(match self {
            Self::Rabbit(broker) => Consumer::Rabbit(broker.consume(queues, prefetch).await?),
            Self::Embedded(broker) => Consumer::Embedded(broker.consume(queues, prefetch).await?),
        })
    }

    /// Subscribes as [`Broker::consume`] does, waiting for a broker that is away. `None` when the stop
    /// was requested meanwhile.
    ///
    /// # Errors
    /// When waiting would not help: the broker is closed, or (embedded) another process consumes.
    pub async fn subscribe(
        &self,
        queues: &[Queue],
        prefetch: u16,
        shutdown: &Shutdown,
    ) -> Result<Option<Consumer>, BrokerError> {
        loop {
            match self.consume(queues, prefetch).await {
                Err(error @ BrokerError::Unreachable { .. }) => {
                    tracing::warn!(%error, "cannot subscribe yet");
                }
                outcome => return outcome.map(Some),
            }
            if !shutdown.sleep(SUBSCRIBE_WAIT).await {
                return Ok(None);
            }
        }
    }

    /// Acknowledges deliveries: they are done. Returns the number of ackers that were skipped because
    /// they are not live; their messages are delivered again.
    ///
    /// # Errors
    /// When the broker cannot be reached; the messages are delivered again.
    pub async fn ack(&self, ackers: Vec<Acker>) -> Result<usize, BrokerError> {
        each!(self, broker => broker.ack(ackers).await)
    }

    /// Requeues deliveries at once, to be delivered again.
    ///
    /// # Errors
    /// When the broker cannot be reached; the messages are delivered again anyway.
    pub async fn requeue(&self, ackers: Vec<Acker>) -> Result<(), BrokerError> {
        each!(self, broker => broker.requeue(ackers).await)
    }

    /// Rejects deliveries: they move to [`Queue::Dead`] with reason `rejected`. A delivery from there is
    /// requeued instead.
    ///
    /// # Errors
    /// When the broker cannot be reached; the messages are delivered again.
    pub async fn reject(&self, ackers: Vec<Acker>) -> Result<(), BrokerError> {
        each!(self, broker => broker.reject(ackers).await)
    }

    /// How full each queue is.
    ///
    /// # Errors
    /// When the broker cannot be reached.
    pub async fn depths(&self) -> Result<Vec<Depth>, BrokerError> {
        each!(self, broker => broker.depths().await)
    }

    /// True when several processes may consume from it.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Rabbit(_))
    }

    /// True while publishing can be expected to work; drives `/readyz`.
    pub fn is_connected(&self) -> bool {
        each!(self, broker => broker.is_connected())
    }

    /// Deletes the exchange and the queues with their messages.
    ///
    /// # Errors
    /// When the broker cannot be reached.
    pub async fn delete_queues(&self) -> Result<(), BrokerError> {
        each!(self, broker => broker.delete_queues().await)
    }

    /// Closes the connections. Unsettled deliveries return to their queues.
    pub async fn close(&self) {
        each!(self, broker => broker.close().await)
    }
}

/// A subscription. It reconnects and subscribes again by itself, with jittered pauses.
#[derive(Debug)]
pub enum Consumer {
    /// Of RabbitMQ.
    Rabbit(RabbitConsumer),
    /// Of the embedded broker.
    Embedded(EmbeddedConsumer),
}

impl Consumer {
    /// Waits for a message, then up to `linger` for more, and returns at most `max`.
    /// Cancel-safe: a message is either returned or stays for the next call.
    /// An empty batch means that the broker was closed.
    pub async fn next_batch(&mut self, max: usize, linger: Duration) -> Vec<Delivery> {
        each!(self, consumer => consumer.next_batch(max, linger).await)
    }

    /// Ends the subscription and requeues what was prefetched but never returned. Deliveries already
    /// returned may still be settled.
    pub async fn close(self) {
        each!(self, consumer => consumer.close().await)
    }
}
