//! The exchange and the queues: their names, arguments, declaration, deletion and depths.

use std::sync::atomic::{AtomicBool, Ordering};

use lapin::{
    Channel, Connection, ErrorKind, ExchangeKind,
    options::{
        ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
        QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};

use crate::{
    broker::{BrokerError, Depth, Queue},
    config::BrokerConfig,
};

/// AMQP's code for declaring what exists with other arguments.
const PRECONDITION_FAILED: u16 = 406;
/// AMQP's code for a queue that does not exist.
const NOT_FOUND: u16 = 404;
/// Dead letters may be delivered any number of times, since they cannot be dead-lettered. 4.x takes -1 for "no
/// limit" but 3.x refuses it, so this is the largest number that both take.
const DEAD_DELIVERY_LIMIT: u32 = i32::MAX as u32;

/// Why declaring failed.
#[derive(Debug)]
pub(super) enum DeclareError {
    /// The queue or exchange exists with other arguments.
    Conflict { name: String, message: String },
    /// Anything else.
    Broken(lapin::Error),
}

impl DeclareError {
    pub(super) fn into_broker_error(
        self,
        unreachable: &impl Fn(String) -> BrokerError,
    ) -> BrokerError {
        match self {
            Self::Conflict { name, message } => BrokerError::Conflict {
                queue: name,
                message,
            },
            Self::Broken(error) => unreachable(error.to_string()),
        }
    }
}

impl From<lapin::Error> for DeclareError {
    fn from(error: lapin::Error) -> Self {
        Self::Broken(error)
    }
}

/// True when the server says that there is no such queue.
pub(super) fn is_not_found(error: &lapin::Error) -> bool {
    code(error) == Some(NOT_FOUND)
}

fn code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

/// Names and arguments of one fleet's exchange and queues.
#[derive(Debug)]
pub(super) struct Topology {
    prefix: String,
    queue_messages_max: u64,
    delivery_limit: u32,
    deleted: AtomicBool,
}

impl Topology {
    pub(super) fn new(config: &BrokerConfig) -> Self {
        Self {
            prefix: config.prefix.clone(),
            queue_messages_max: config.queue_messages_max,
            delivery_limit: config.delivery_limit,
            deleted: AtomicBool::new(false),
        }
    }

    /// The exchange's full name.
    pub(super) fn exchange(&self) -> ShortString {
        format!("{}promptyard", self.prefix).into()
    }

    /// A queue's full name.
    pub(super) fn queue(&self, queue: Queue) -> ShortString {
        format!("{}{}", self.prefix, queue.name()).into()
    }

    /// A queue's name without the prefix.
    pub(super) fn strip<'a>(&self, name: &'a str) -> &'a str {
        name.strip_prefix(&self.prefix).unwrap_or(name)
    }

    /// True after [`Self::delete`]: queues deleted on purpose are not declared again.
    pub(super) fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Relaxed)
    }

    /// Declares the exchange and the queues.
    pub(super) async fn declare(&self, connection: &Connection) -> Result<(), DeclareError> {
        let channel = connection.create_channel().await?;
        let exchange = self.exchange();
        let durable = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let declared = channel
            .exchange_declare(
                exchange.clone(),
                ExchangeKind::Direct,
                durable,
                FieldTable::default(),
            )
            .await;
        conflict_of(&exchange, declared)?;
        for queue in Queue::ALL {
            let name = self.queue(queue);
            let options = QueueDeclareOptions::durable();
            let declared = channel
                .queue_declare(name.clone(), options, self.arguments(queue))
                .await;
            conflict_of(&name, declared)?;
            channel
                .queue_bind(
                    name,
                    exchange.clone(),
                    queue.name().into(),
                    QueueBindOptions::default(),
                    FieldTable::default(),
                )
                .await?;
        }
        self.deleted.store(false, Ordering::Relaxed);
        close(&channel).await;
        Ok(())
    }

    /// At-least-once dead-lettering keeps a message in its queue until the next one has confirmed
    /// it, and needs `reject-publish`.
    fn arguments(&self, queue: Queue) -> FieldTable {
        let mut arguments = FieldTable::default();
        let mut put = |name: &str, value: AMQPValue| {
            arguments.insert(name.into(), value);
        };
        let text = |value: &str| AMQPValue::LongString(value.into());
        let number = |value: u64| AMQPValue::LongLongInt(i64::try_from(value).unwrap_or(i64::MAX));
        put("x-queue-type", text("quorum"));
        put("x-overflow", text("reject-publish"));
        put("x-max-length", number(self.queue_messages_max));
        let limit = match queue {
            Queue::Dead => DEAD_DELIVERY_LIMIT,
            _ => self.delivery_limit,
        };
        put("x-delivery-limit", number(limit.into()));
        let next = match queue {
            Queue::Dead => return arguments,
            Queue::Retry(_) => Queue::In,
            Queue::In | Queue::Tier(_) | Queue::Affinity(..) => Queue::Dead,
        };
        put("x-dead-letter-exchange", text(self.exchange().as_str()));
        put("x-dead-letter-routing-key", text(next.name()));
        put("x-dead-letter-strategy", text("at-least-once"));
        if let Queue::Retry(delay) = queue {
            put("x-message-ttl", number(delay.as_millis()));
        }
        arguments
    }

    /// How full each queue is.
    pub(super) async fn depths(&self, connection: &Connection) -> lapin::Result<Vec<Depth>> {
        let channel = connection.create_channel().await?;
        let mut depths = Vec::with_capacity(Queue::ALL.len());
        for queue in Queue::ALL {
            let options = QueueDeclareOptions::durable().passive();
            let found = channel
                .queue_declare(self.queue(queue), options, FieldTable::default())
                .await?;
            depths.push(Depth {
                queue,
                ready: found.message_count().into(),
                consumers: found.consumer_count(),
            });
        }
        close(&channel).await;
        Ok(depths)
    }

    /// Deletes the exchange and the queues with their messages.
    pub(super) async fn delete(&self, connection: &Connection) -> lapin::Result<()> {
        self.deleted.store(true, Ordering::Relaxed);
        let channel = connection.create_channel().await?;
        for queue in Queue::ALL {
            channel
                .queue_delete(self.queue(queue), QueueDeleteOptions::default())
                .await?;
        }
        channel
            .exchange_delete(self.exchange(), ExchangeDeleteOptions::default())
            .await?;
        close(&channel).await;
        Ok(())
    }
}

fn conflict_of<T>(name: &ShortString, declared: lapin::Result<T>) -> Result<T, DeclareError> {
    declared.map_err(|error| match error.kind() {
        ErrorKind::ProtocolError(amqp) if amqp.get_id() == PRECONDITION_FAILED => {
            DeclareError::Conflict {
                name: name.to_string(),
                message: amqp.get_message().to_string(),
            }
        }
        _ => DeclareError::Broken(error),
    })
}

/// Closes a channel; one that cannot be closed is closed already.
async fn close(channel: &Channel) {
    let _ = channel.close(200, "OK".into()).await;
}
