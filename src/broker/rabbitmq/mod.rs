//! Queues on RabbitMQ: quorum queues behind one direct exchange.
//!
//! Comes in: publications, confirmed by the broker (`publisher`). Goes out: deliveries, one
//! channel for each queue of a subscription (`consumer`). Publishing and consuming have a
//! connection each, since a broker short of memory stops reading from connections that publish. Broken
//! connections are re-established here (`link`) and not by lapin's recovery: a new channel makes every
//! older acker provably dead, and the queues are declared again before anything is sent.

mod acker;
mod consumer;
mod link;
mod properties;
mod publisher;
mod topology;
mod transport;

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Acker, BrokerError, Depth, Publication, PublishError, Queue};
use crate::config::BrokerConfig;

use consumer::Source;
use link::Link;
use publisher::Publisher;
use topology::Topology;

pub use acker::RabbitAcker;
pub use consumer::RabbitConsumer;

/// A fleet's queues on a RabbitMQ server.
#[derive(Clone, Debug)]
pub struct RabbitBroker {
    publisher: Arc<Publisher>,
    source: Arc<Source>,
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
        Ok(Self {
            publisher: Arc::new(Publisher::new(config, publishing, topology.clone())),
            source: Arc::new(Source {
                topology,
                link: consuming,
                connect_timeout: Duration::from_millis(config.connect_timeout_ms),
                closed,
                _close_with_last_clone: end,
            }),
        })
    }

    /// See [`super::Broker::publish`].
    pub async fn publish(&self, messages: &[Publication]) -> Vec<Result<(), PublishError>> {
        self.publisher.publish(messages).await
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
        if self.source.closed.is_cancelled() {
            return Err(BrokerError::Closed);
        }
        RabbitConsumer::open(self.source.clone(), queues, prefetch).await
    }

    /// See [`super::Broker::ack`].
    ///
    /// # Errors
    /// Never: an acker that cannot reach the server is skipped.
    pub async fn ack(&self, ackers: Vec<Acker>) -> Result<usize, BrokerError> {
        Ok(acker::ack(&of_rabbit(ackers)).await)
    }

    /// See [`super::Broker::requeue`].
    ///
    /// # Errors
    /// Never: messages that cannot be requeued return when the channel ends.
    pub async fn requeue(&self, ackers: Vec<Acker>) -> Result<(), BrokerError> {
        acker::nack(&of_rabbit(ackers), true).await;
        Ok(())
    }

    /// See [`super::Broker::reject`].
    ///
    /// # Errors
    /// Never: messages that cannot be rejected are delivered again.
    pub async fn reject(&self, ackers: Vec<Acker>) -> Result<(), BrokerError> {
        acker::nack(&of_rabbit(ackers), false).await;
        Ok(())
    }

    /// See [`super::Broker::depths`].
    ///
    /// # Errors
    /// When the server cannot be reached or a queue is missing.
    pub async fn depths(&self) -> Result<Vec<Depth>, BrokerError> {
        let source = &self.source;
        let connection = source.link.connection(source.connect_timeout).await?;
        let result = source.topology.depths(&connection).await;
        result.map_err(|error| source.link.error(&error))
    }

    /// See [`super::Broker::is_connected`].
    pub fn is_connected(&self) -> bool {
        self.publisher.is_connected()
    }

    /// See [`super::Broker::delete_queues`]. This broker's own consumers do not declare them again.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn delete_queues(&self) -> Result<(), BrokerError> {
        let source = &self.source;
        let connection = source.link.connection(source.connect_timeout).await?;
        let result = source.topology.delete(&connection).await;
        result.map_err(|error| source.link.error(&error))
    }

    /// See [`super::Broker::close`].
    pub async fn close(&self) {
        self.source.closed.cancel();
        let ended = async {
            self.publisher.ended().await;
            self.source.link.ended().await;
        };
        if timeout(CLOSE_TIMEOUT, ended).await.is_err() {
            tracing::warn!("RabbitMQ did not close the connections in time; leaving without it");
        }
    }
}

/// Most time for closing the connections; unsettled messages return without it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// An acker of the embedded broker cannot be settled here; only a bug passes one.
fn of_rabbit(ackers: Vec<Acker>) -> Vec<RabbitAcker> {
    ackers
        .into_iter()
        .filter_map(|acker| match acker {
            Acker::Rabbit(acker) => Some(acker),
            Acker::Embedded(_) => {
                tracing::error!("an acker of the embedded broker was given to RabbitMQ");
                None
            }
        })
        .collect()
}
