//! Fleets of their own for each test, and waiting with a limit.

use std::{future::Future, path::PathBuf, time::Duration};

use promptyard::{
    broker::{Broker, Consumer, Delivery, Envelope, Publication, PublishError, Queue, Target},
    config::{BrokerConfig, SecretUrl},
};
use tokio::time::{Instant, timeout};

use crate::support::servers::amqp_url;

/// No single wait of a test takes longer unless something is broken.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A prefix on RabbitMQ or a file, deleted on drop.
pub struct TestBroker {
    pub config: BrokerConfig,
    pub folder: tempfile::TempDir,
    delete_queues: bool,
}

impl TestBroker {
    pub fn rabbit() -> Self {
        Self::rabbit_at(&amqp_url())
    }

    pub fn rabbit_at(url: &str) -> Self {
        let mut fleet = Self::embedded();
        fleet.config.url = SecretUrl::new(url);
        fleet.config.prefix = format!("test-{}.", uuid::Uuid::now_v7().simple());
        fleet.delete_queues = true;
        fleet
    }

    pub fn embedded() -> Self {
        Self {
            config: BrokerConfig::default(),
            folder: tempfile::tempdir().unwrap(),
            delete_queues: false,
        }
    }

    /// A fleet of its own on the same server, or in a file of its own, configured otherwise.
    pub fn with(&self, change: impl FnOnce(&mut BrokerConfig)) -> Self {
        let mut other = if self.delete_queues {
            Self::rabbit_at(self.config.url.expose())
        } else {
            Self::embedded()
        };
        change(&mut other.config);
        other
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("deep").join("ledger.db")
    }

    pub async fn connect(&self) -> Broker {
        match Broker::connect(&self.config, &self.path()).await {
            Ok(broker) => broker,
            Err(error) => panic!("{error}; set PROMPTYARD_TEST_AMQP_URL or start RabbitMQ"),
        }
    }
}

impl Drop for TestBroker {
    /// Also on panic, and from a thread since the test's own runtime may be going down.
    fn drop(&mut self) {
        if !self.delete_queues {
            return;
        }
        let (config, path) = (self.config.clone(), self.path());
        let deleting = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                if let Ok(broker) = Broker::connect(&config, &path).await {
                    let _ = timeout(PATIENCE, broker.delete_queues()).await;
                    broker.close().await;
                }
            });
        });
        let _ = deleting.join();
    }
}

/// Fails a test that hangs.
pub async fn in_time<T>(test: impl Future<Output = T>) -> T {
    timeout(PATIENCE * 4, test).await.expect("the test hangs")
}

/// A message with nothing but a body.
pub fn message(queue: Queue, body: impl Into<Vec<u8>>) -> Publication {
    Publication {
        target: Target::Queue(queue),
        envelope: Envelope::default(),
        body: body.into(),
    }
}

/// Numbered messages.
pub fn numbered(queue: Queue, numbers: std::ops::Range<usize>) -> Vec<Publication> {
    numbers.map(|n| message(queue, n.to_string())).collect()
}

pub async fn publish(broker: &Broker, messages: Vec<Publication>) {
    for outcome in broker.publish(&messages).await {
        outcome.unwrap();
    }
}

/// Publishes one message again and again until the broker has taken it.
pub async fn publish_until_taken(broker: &Broker, message: Publication) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match broker
            .publish(std::slice::from_ref(&message))
            .await
            .remove(0)
        {
            Ok(()) => return,
            Err(PublishError::Unroutable | PublishError::Refused) => panic!("not taken"),
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

/// The next `count` messages.
pub async fn take(consumer: &mut Consumer, count: usize) -> Vec<Delivery> {
    let mut taken = Vec::with_capacity(count);
    while taken.len() < count {
        let next = consumer.next_batch(count - taken.len(), Duration::from_millis(20));
        let batch = timeout(PATIENCE, next).await;
        let batch = batch.unwrap_or_else(|_| panic!("{} of {count} came", taken.len()));
        assert!(!batch.is_empty(), "the broker was closed");
        taken.extend(batch);
    }
    taken
}

/// The next message.
pub async fn take_one(consumer: &mut Consumer) -> Delivery {
    take(consumer, 1).await.remove(0)
}

/// True when no message comes for a while.
pub async fn is_quiet(consumer: &mut Consumer) -> bool {
    let next = consumer.next_batch(1, Duration::ZERO);
    timeout(Duration::from_millis(400), next).await.is_err()
}

pub async fn ack(broker: &Broker, deliveries: Vec<Delivery>) -> usize {
    let ackers = deliveries.into_iter().map(|d| d.acker).collect();
    broker.ack(ackers).await.unwrap()
}

pub fn texts(deliveries: &[Delivery]) -> Vec<String> {
    let text = |d: &Delivery| String::from_utf8(d.body.clone()).unwrap();
    deliveries.iter().map(text).collect()
}

pub async fn ready(broker: &Broker, queue: Queue) -> u64 {
    let depths = broker.depths().await.unwrap();
    depths.iter().find(|d| d.queue == queue).unwrap().ready
}
