//! Queues on RabbitMQ: quorum queues behind one direct exchange.
//!
//! Comes in: publications, confirmed by the broker (`publisher`). Goes out: deliveries, one
//! channel for each queue of a subscription (`consumer`). Publishing and consuming have a
//! connection each, since a broker short of memory stops reading from those that publish. Broken
//! connections are re-made here (`link`) and not by lapin's recovery: a new channel makes every
//! older acker provably dead, and the queues are declared again before anything is sent.

mod consumer;
mod link;
mod properties;
mod publisher;
mod topology;
mod transport;

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Acker, BrokerError, Delivery, Depth, Publication, PublishError, Queue};
use crate::config::BrokerConfig;

use link::Link;
use publisher::Publisher;
use topology::Topology;

pub use consumer::{RabbitAcker, RabbitConsumer};

/// A fleet's queues on a RabbitMQ server.
#[derive(Clone, Debug)]
pub struct RabbitBroker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    topology: Arc<Topology>,
    publisher: Publisher,
    consuming: Link,
    closed: CancellationToken,
    connect_timeout: Duration,
    // Ends the tasks that keep the connections when the last clone goes without a close.
    _end_with_last_clone: DropGuard,
}

impl RabbitBroker {
    /// Connects and declares the queues.
    ///
    /// # Errors
    /// When the server cannot be reached or has conflicting queues.
    pub async fn connect(config: &BrokerConfig) -> Result<Self, BrokerError> {
        let closed = CancellationToken::new();
        let end = closed.clone().drop_guard();
        let topology = Arc::new(Topology::new(config));
        let publishing = Link::open(config, "promptyard publish", &topology, &closed).await?;
        let consuming = Link::open(config, "promptyard consume", &topology, &closed).await?;
        let connect_timeout = Duration::from_millis(config.connect_timeout_ms);
        Ok(Self {
            shared: Arc::new(Shared {
                publisher: Publisher::new(config, publishing, topology.clone()),
                topology,
                consuming,
                closed,
                connect_timeout,
                _end_with_last_clone: end,
            }),
        })
    }

    /// See [`super::Broker::publish`].
    pub async fn publish(&self, messages: Vec<Publication>) -> Vec<Result<(), PublishError>> {
        self.shared.publisher.publish(messages).await
    }

    /// See [`super::Broker::consume`].
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn consume(
        &self,
        queues: &[Queue],
        prefetch: u16,
    ) -> Result<RabbitConsumer, BrokerError> {
        if self.shared.closed.is_cancelled() {
            return Err(BrokerError::Closed);
        }
        RabbitConsumer::open(self.shared.clone(), queues, prefetch).await
    }

    /// See [`super::Broker::ack`].
    ///
    /// # Errors
    /// Never: a acker that cannot reach the server is passed over.
    pub async fn ack(&self, ackers: Vec<Acker>) -> Result<usize, BrokerError> {
        let ackers = of_rabbit(ackers);
        let acks = ackers
            .iter()
            .map(|acker| timeout(SETTLE_TIMEOUT, acker.acker.ack(BasicAckOptions::default())));
        let done = join_all(acks).await;
        Ok(done
            .iter()
            .filter(|ack| !matches!(ack, Ok(Ok(true))))
            .count())
    }

    /// See [`super::Broker::requeue`].
    ///
    /// # Errors
    /// Never: what cannot be put back returns by itself.
    pub async fn requeue(&self, ackers: Vec<Acker>) -> Result<(), BrokerError> {
        nack(&of_rabbit(ackers), true).await;
        Ok(())
    }

    /// See [`super::Broker::reject`].
    ///
    /// # Errors
    /// Never: what cannot be rejected comes again.
    pub async fn reject(&self, ackers: Vec<Acker>) -> Result<(), BrokerError> {
        nack(&of_rabbit(ackers), false).await;
        Ok(())
    }

    /// See [`super::Broker::depths`].
    ///
    /// # Errors
    /// When the server cannot be reached or a queue is missing.
    pub async fn depths(&self) -> Result<Vec<Depth>, BrokerError> {
        let shared = &self.shared;
        let connection = shared.consuming.connection(shared.connect_timeout).await?;
        shared
            .topology
            .depths(&connection)
            .await
            .map_err(|error| shared.consuming.error(&error))
    }

    /// See [`super::Broker::is_connected`].
    pub fn is_connected(&self) -> bool {
        self.shared.publisher.is_connected()
    }

    /// See [`super::Broker::delete_queues`]. This broker's own consumers do not declare them again.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn delete_queues(&self) -> Result<(), BrokerError> {
        let shared = &self.shared;
        let connection = shared.consuming.connection(shared.connect_timeout).await?;
        shared
            .topology
            .delete(&connection)
            .await
            .map_err(|error| shared.consuming.error(&error))
    }

    /// See [`super::Broker::close`].
    pub async fn close(&self) {
        self.shared.closed.cancel();
        let ended = async {
            self.shared.publisher.ended().await;
            self.shared.consuming.ended().await;
        };
        if timeout(CLOSE_TIMEOUT, ended).await.is_err() {
            tracing::warn!("RabbitMQ did not answer the farewell; leaving without it");
        }
    }
}

/// Most time for the frame of an acknowledgement to go out. lapin's promise for it can stay open
/// for ever when the connection breaks in that instant; the message comes again then.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the farewell to the broker may take; what is unsettled returns without it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// A acker of another backend cannot be settled here, and only a error of ours brings one.
fn of_rabbit(ackers: Vec<Acker>) -> Vec<RabbitAcker> {
    ackers
        .into_iter()
        .filter_map(|acker| match acker {
            Acker::Rabbit(acker) => Some(acker),
            Acker::Embedded(_) => {
                tracing::error!("a acker of the embedded broker was given to RabbitMQ");
                None
            }
        })
        .collect()
}

/// A nack that does not reach the server needs no answer: the message returns when the channel ends.
async fn nack(ackers: &[RabbitAcker], requeue: bool) {
    let nacks = ackers.iter().map(|acker| {
        let requeue = requeue || acker.is_dead_letter();
        let options = BasicNackOptions {
            requeue,
            ..BasicNackOptions::default()
        };
        timeout(SETTLE_TIMEOUT, acker.acker.nack(options))
    });
    join_all(nacks).await;
}

/// Puts deliveries back that nobody has seen.
async fn put_back(deliveries: impl IntoIterator<Item = Delivery>) {
    let ackers = deliveries.into_iter().map(|delivery| delivery.acker);
    nack(&of_rabbit(ackers.collect()), true).await;
}
