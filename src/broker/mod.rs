//! Jobs wait here: named durable queues with confirmed publishing and explicit acknowledgement.
//!
//! Comes in: messages to publish. Goes out: deliveries, each settled exactly once by its acker.
//! Two backends pass one contract suite (`tests/contracts/broker`): [`rabbitmq`] for a fleet and
//! [`embedded`] for one process. A broker never looks into a body and never counts attempts.

mod counts;
pub mod embedded;
pub mod publisher;
pub mod rabbitmq;
pub mod wire;

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};

use crate::{
    config::BrokerConfig,
    job::{Priority, Tier},
    shutdown::Shutdown,
};

use embedded::{EmbeddedAcker, EmbeddedBroker, EmbeddedConsumer};
use rabbitmq::{RabbitAcker, RabbitBroker, RabbitConsumer};

/// How long to wait before a broker that is away is subscribed to again.
const SUBSCRIBE_WAIT: Duration = Duration::from_millis(500);

/// How long a job rests before it is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Delay {
    /// One second.
    S1,
    /// Ten seconds.
    S10,
    /// A minute.
    S60,
}

impl Delay {
    /// Its length in milliseconds.
    pub fn as_millis(self) -> u64 {
        match self {
            Self::S1 => 1_000,
            Self::S10 => 10_000,
            Self::S60 => 60_000,
        }
    }
}

/// One of a tier's side queues, for jobs that are best run by the worker which holds their beginning.
/// Their number is fixed, and workers come to them: no queue belongs to a worker, so none can be
/// left behind with jobs in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AffinityQueue(u8);

impl AffinityQueue {
    /// Lanes of each tier.
    pub const COUNT: usize = 8;
    /// Every affinity queue of a tier, in order.
    pub const ALL: [Self; Self::COUNT] = {
        let mut all = [Self(0); Self::COUNT];
        let mut at = 0;
        while at < Self::COUNT {
            all[at] = Self(at as u8);
            at += 1;
        }
        all
    };
    const SMALL: [&'static str; Self::COUNT] = [
        "jobs.small.0",
        "jobs.small.1",
        "jobs.small.2",
        "jobs.small.3",
        "jobs.small.4",
        "jobs.small.5",
        "jobs.small.6",
        "jobs.small.7",
    ];
    const LARGE: [&'static str; Self::COUNT] = [
        "jobs.large.0",
        "jobs.large.1",
        "jobs.large.2",
        "jobs.large.3",
        "jobs.large.4",
        "jobs.large.5",
        "jobs.large.6",
        "jobs.large.7",
    ];

    /// Its position, from 0.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The queues of a fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Queue {
    /// Bodies from producers, for the router.
    In,
    /// Routed jobs of a tier, for its workers.
    Tier(Tier),
    /// Routed jobs of a tier, for the worker that holds their beginnings.
    Affinity(Tier, AffinityQueue),
    /// What the broker gave up on: expired, rejected or delivered too often.
    Dead,
    /// Routed jobs that rest; when their time is over the broker moves them to [`Queue::In`].
    Retry(Delay),
}

impl Queue {
    /// Every queue.
    pub const ALL: [Self; 7 + 2 * AffinityQueue::COUNT] = {
        let mut all = [Self::In; 7 + 2 * AffinityQueue::COUNT];
        all[1] = Self::Tier(Tier::Small);
        all[2] = Self::Tier(Tier::Large);
        all[3] = Self::Dead;
        all[4] = Self::Retry(Delay::S1);
        all[5] = Self::Retry(Delay::S10);
        all[6] = Self::Retry(Delay::S60);
        let mut at = 0;
        while at < AffinityQueue::COUNT {
            all[7 + at] = Self::Affinity(Tier::Small, AffinityQueue::ALL[at]);
            all[7 + AffinityQueue::COUNT + at] =
                Self::Affinity(Tier::Large, AffinityQueue::ALL[at]);
            at += 1;
        }
        all
    };

    /// The queue's name, before the configured prefix is put to it.
    pub fn name(self) -> &'static str {
        match self {
            Self::In => "jobs.in",
            Self::Tier(Tier::Small) => "jobs.small",
            Self::Tier(Tier::Large) => "jobs.large",
            Self::Affinity(Tier::Small, affinity_queue) => {
                AffinityQueue::SMALL[affinity_queue.index()]
            }
            Self::Affinity(Tier::Large, affinity_queue) => {
                AffinityQueue::LARGE[affinity_queue.index()]
            }
            Self::Dead => "jobs.dead",
            Self::Retry(Delay::S1) => "jobs.retry.1s",
            Self::Retry(Delay::S10) => "jobs.retry.10s",
            Self::Retry(Delay::S60) => "jobs.retry.60s",
        }
    }

    /// The tier whose routed jobs it holds, if it does.
    pub fn tier(self) -> Option<Tier> {
        match self {
            Self::Tier(tier) | Self::Affinity(tier, _) => Some(tier),
            Self::In | Self::Dead | Self::Retry(_) => None,
        }
    }

    /// True where messages expire.
    pub(crate) fn expires(self) -> bool {
        self == Self::In || self.tier().is_some()
    }
}

/// Where a message goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One of the fleet's queues.
    Queue(Queue),
    /// A producer's reply queue, by its full name; a broker that has no such queue answers
    /// [`PublishError::Unroutable`].
    Reply(String),
}

/// What travels beside a body.
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
    /// RabbitMQ neither does a message that has rested in a retry queue.
    pub expires_at: Option<DateTime<Utc>>,
    /// In a retry queue, milliseconds to rest there: less than the queue's own time, which is the longest.
    pub rest_ms: Option<u64>,
    /// When the producer made the message (AMQP `timestamp`, whole seconds on RabbitMQ).
    pub timestamp: Option<DateTime<Utc>>,
    /// Text headers; names of ours begin with `promptyard-`.
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
    /// What travels beside the body.
    pub envelope: Envelope,
    /// The body, opaque to the broker.
    pub body: Vec<u8>,
}

/// Why a message was not published. In every case the message is not in the queue, or is not
/// known to be there; publishing it again is safe since jobs carry idempotency keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The queue is full: try again later, and tell the producer so.
    #[error("the queue is full")]
    Refused,
    /// There is no such queue, or AMQP cannot say its name or a header's (over 255 bytes).
    #[error("no queue takes the message")]
    Unroutable,
    /// No confirm came in time (a memory or disk alarm on the broker, or a lost connection).
    #[error("the broker did not confirm within {0} ms")]
    TimedOut(u64),
    /// The connection is down and being re-made: try again.
    #[error("the broker cannot be reached: {0}")]
    Unreachable(String),
}

/// Why the broker cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// No connection; the message holds no password.
    #[error("cannot reach the broker at {url}: {message}")]
    Unreachable {
        /// The URL, masked.
        url: String,
        /// What went wrong.
        message: String,
    },
    /// A queue exists with other arguments than ours.
    #[error(
        "queue {queue} exists with other arguments ({message}); delete it or choose another broker.prefix"
    )]
    Conflict {
        /// The queue's full name.
        queue: String,
        /// The broker's words.
        message: String,
    },
    /// Another process consumes from this embedded broker.
    #[error(
        "{path} is in use by another promptyard process; for several processes use RabbitMQ and Postgres"
    )]
    InUse {
        /// The SQLite file.
        path: String,
    },
    /// The embedded broker's file cannot be used.
    #[error("cannot use the queue tables in {path}: {message}")]
    Storage {
        /// The SQLite file.
        path: String,
        /// What went wrong.
        message: String,
    },
    /// The broker was closed by this process.
    #[error("the broker is closed")]
    Closed,
}

/// A message handed to a consumer.
#[derive(Debug)]
pub struct Delivery {
    /// The queue it came from.
    pub queue: Queue,
    /// What travels beside the body.
    pub envelope: Envelope,
    /// The body.
    pub body: Vec<u8>,
    /// True when it may have been delivered before.
    pub redelivered: bool,
    /// Settles it.
    pub acker: Acker,
}

/// Settles one delivery through [`Broker::ack`], [`Broker::requeue`] or [`Broker::reject`].
/// One that is dropped leaves its message held until its consumer and the other ackers are gone.
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
    /// Connects and declares the queues; `embedded_path` is the file the embedded broker lives in.
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
    pub async fn publish(&self, messages: Vec<Publication>) -> Vec<Result<(), PublishError>> {
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

    /// Subscribes as [`Broker::consume`] does, and waits for a broker that is away. `None` when the stop was
    /// requested meanwhile.
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
            tokio::select! {
                () = shutdown.requested() => return Ok(None),
                () = tokio::time::sleep(SUBSCRIBE_WAIT) => {}
            }
        }
    }

    /// Acknowledges deliveries: they are done. Tickets that are not live are passed over, and the
    /// number of those is returned; their messages will come again.
    ///
    /// # Errors
    /// When the broker cannot be reached; the messages will come again.
    pub async fn ack(&self, ackers: Vec<Acker>) -> Result<usize, BrokerError> {
        each!(self, broker => broker.ack(ackers).await)
    }

    /// Puts deliveries back at once, to be delivered again.
    ///
    /// # Errors
    /// When the broker cannot be reached; the messages will come again anyway.
    pub async fn requeue(&self, ackers: Vec<Acker>) -> Result<(), BrokerError> {
        each!(self, broker => broker.requeue(ackers).await)
    }

    /// Gives deliveries up: they move to [`Queue::Dead`] with reason `rejected`. What lies there
    /// already is put back instead.
    ///
    /// # Errors
    /// When the broker cannot be reached; the messages will come again.
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

    /// Deletes the queues and the exchange with all they hold.
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

/// A subscription. Connections that break are re-made behind it, with jittered waits.
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

    /// Ends the subscription and puts back what was prefetched but never returned.
    /// Deliveries already returned may still be settled.
    pub async fn close(self) {
        each!(self, consumer => consumer.close().await)
    }
}
