//! Queues in a table of a SQLite file, usually the job database's own.
//!
//! Comes in: publications of any process that opens the file. Goes out: deliveries to the one
//! process that consumes from it, which holds an operating-system lock on `<file>.lock` until it
//! closes the broker or ends, however it ends. Messages that it had not settled are delivered
//! again by the next one. One task owns the file (`worker`): it groups the callers' commands into
//! few transactions and hands claimed messages to the waiting consumers (`subscription`).
//!
//! There are no reply queues, since nothing could consume them: a reply is always unroutable. The
//! depths do not count consumers of other processes.

mod insert;
mod subscription;
mod table;
mod worker;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use metrics::histogram;
use sqlx::{
    ConnectOptions as _, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use super::{
    Acker, BrokerError, Delivery, Depth, Publication, PublishError, Queue,
    counts::{count_delivered, count_published},
};
use crate::{config::BrokerConfig, metrics::PUBLISH_SECONDS};

use subscription::{Session, Subscription};
use table::{Row, Table};
use worker::{COMMANDS_MAX, Command, Reply, Settlement, Worker};

pub use subscription::EmbeddedAcker;

/// How long a statement waits while another connection writes to the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// A fleet's queues in a SQLite file.
#[derive(Clone, Debug)]
pub struct EmbeddedBroker {
    path: PathBuf,
    session: Arc<Session>,
    commands: mpsc::Sender<Command>,
}

impl EmbeddedBroker {
    /// Opens the file; creates it, its folder and the table where they are missing.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub async fn open(config: &BrokerConfig, path: &Path) -> Result<Self, BrokerError> {
        let storage = |message: String| BrokerError::Storage {
            path: path.display().to_string(),
            message,
        };
        if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
            let made = tokio::fs::create_dir_all(folder).await;
            made.map_err(|error| storage(error.to_string()))?;
        }
        let opened = async {
            let mut durable = connect(path, SqliteSynchronous::Full).await?;
            Table::create(&mut durable).await?;
            let quick = connect(path, SqliteSynchronous::Normal).await?;
            Ok((durable, quick))
        };
        let (durable, quick) = opened
            .await
            .map_err(|error: sqlx::Error| storage(error.to_string()))?;
        let session = Arc::<Session>::default();
        let (commands, received) = mpsc::channel(COMMANDS_MAX);
        let worker = Worker {
            path: path.to_owned(),
            table: Table {
                prefix: config.prefix.clone(),
                delivery_limit: config.delivery_limit,
            },
            queue_messages_max: config.queue_messages_max,
            session: session.clone(),
            durable,
            quick,
            subscriptions: Vec::new(),
            lock: None,
            lengths: HashMap::new(),
        };
        tokio::spawn(worker.run(received));
        Ok(Self {
            path: path.to_owned(),
            session,
            commands,
        })
    }

    /// See [`super::Broker::publish`].
    pub async fn publish(&self, messages: &[Publication]) -> Vec<Result<(), PublishError>> {
        if messages.is_empty() {
            return Vec::new();
        }
        let started = Instant::now();
        // The task that owns the file outlives a caller that is dropped, so it needs its own copy.
        let copy = messages.to_vec();
        let answer = self.ask(|reply| Command::Publish(copy, reply)).await;
        let outcomes = answer.unwrap_or_else(|error| {
            vec![Err(PublishError::Unreachable(error.to_string())); messages.len()]
        });
        histogram!(PUBLISH_SECONDS).record(started.elapsed().as_secs_f64());
        count_published(messages, &outcomes);
        outcomes
    }

    /// See [`super::Broker::consume`].
    ///
    /// # Errors
    /// When another process, or another opening of the file in this one, consumes from it.
    pub async fn consume(
        &self,
        queues: &[Queue],
        prefetch: u16,
    ) -> Result<EmbeddedConsumer, BrokerError> {
        let subscription = Arc::new(Subscription::new(self.session.clone(), queues, prefetch));
        let shared = subscription.clone();
        self.ask(|reply| Command::Subscribe(shared, reply))
            .await??;
        Ok(EmbeddedConsumer {
            subscription,
            commands: self.commands.clone(),
        })
    }

    /// See [`super::Broker::ack`].
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn ack(&self, ackers: Vec<Acker>) -> Result<usize, BrokerError> {
        self.settle(Settlement::Ack, ackers).await
    }

    /// See [`super::Broker::requeue`].
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn requeue(&self, ackers: Vec<Acker>) -> Result<(), BrokerError> {
        self.settle(Settlement::Requeue, ackers).await.map(drop)
    }

    /// See [`super::Broker::reject`].
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn reject(&self, ackers: Vec<Acker>) -> Result<(), BrokerError> {
        self.settle(Settlement::Reject, ackers).await.map(drop)
    }

    /// See [`super::Broker::depths`].
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn depths(&self) -> Result<Vec<Depth>, BrokerError> {
        let depths = self.ask(Command::Depths).await?;
        depths.map_err(|message| self.storage(message))
    }

    /// See [`super::Broker::is_connected`].
    pub fn is_connected(&self) -> bool {
        !self.session.ended.is_cancelled()
    }

    /// See [`super::Broker::delete_queues`]. The table stays, empty of this fleet's messages.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn delete_queues(&self) -> Result<(), BrokerError> {
        let cleared = self.ask(Command::Clear).await?;
        cleared.map_err(|message| self.storage(message))
    }

    /// See [`super::Broker::close`]. Afterwards another process may consume.
    pub async fn close(&self) {
        // An error means that it is closed already.
        let _ = self.ask(Command::Close).await;
    }

    /// Settles live ackers; returns how many were not.
    async fn settle(&self, how: Settlement, ackers: Vec<Acker>) -> Result<usize, BrokerError> {
        let given = ackers.len();
        let ackers: Vec<_> = ackers
            .into_iter()
            .filter_map(|acker| match acker {
                Acker::Embedded(acker) => Some(acker),
                Acker::Rabbit(_) => {
                    tracing::error!("an acker of RabbitMQ was given to the embedded broker");
                    None
                }
            })
            .filter(|acker| {
                acker.is_live() && Arc::ptr_eq(&acker.subscription.session, &self.session)
            })
            .collect();
        let passed_over = given - ackers.len();
        if ackers.is_empty() {
            return Ok(passed_over);
        }
        let ids = ackers.iter().map(|acker| acker.id).collect();
        match self.ask(|reply| Command::Settle(how, ids, reply)).await {
            // Closed in between: the messages have been requeued.
            Err(_) => return Ok(given),
            Ok(Err(message)) => return Err(self.storage(message)),
            Ok(Ok(())) => {}
        }
        for acker in ackers {
            acker.subscription.settled(acker.place, acker.id);
        }
        // Consumers that had reached their prefetch may be served again.
        self.session.demand.notify_one();
        Ok(passed_over)
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, BrokerError> {
        ask(&self.commands, command).await
    }

    fn storage(&self, message: String) -> BrokerError {
        BrokerError::Storage {
            path: self.path.display().to_string(),
            message,
        }
    }
}

async fn ask<T>(
    commands: &mpsc::Sender<Command>,
    command: impl FnOnce(Reply<T>) -> Command,
) -> Result<T, BrokerError> {
    let (reply, answer) = oneshot::channel();
    let sent = commands.send(command(reply)).await;
    sent.map_err(|_| BrokerError::Closed)?;
    answer.await.map_err(|_| BrokerError::Closed)
}

async fn connect(path: &Path, synchronous: SqliteSynchronous) -> sqlx::Result<SqliteConnection> {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous)
        .busy_timeout(BUSY_TIMEOUT)
        .connect()
        .await
}

/// A subscription to queues of the embedded broker.
#[derive(Debug)]
pub struct EmbeddedConsumer {
    subscription: Arc<Subscription>,
    commands: mpsc::Sender<Command>,
}

impl EmbeddedConsumer {
    /// See [`super::Consumer::next_batch`].
    pub async fn next_batch(&mut self, max: usize, linger: Duration) -> Vec<Delivery> {
        let max = max.max(1);
        let subscription = &self.subscription;
        subscription.want(max);
        while subscription.waiting() == 0 {
            tokio::select! {
                () = subscription.session.ended.cancelled() => return Vec::new(),
                () = subscription.arrived.notified() => {}
            }
        }
        let deadline = Instant::now() + linger;
        while subscription.waiting() < max && !subscription.session.ended.is_cancelled() {
            if timeout_at(deadline, subscription.arrived.notified())
                .await
                .is_err()
            {
                break;
            }
        }
        if subscription.session.ended.is_cancelled() {
            return Vec::new();
        }
        let taken = subscription.take(max);
        let batch = taken
            .into_iter()
            .map(|(place, row)| self.delivery(place, row));
        let batch: Vec<_> = batch.collect();
        count_delivered(&batch);
        batch
    }

    fn delivery(&self, place: usize, row: Row) -> Delivery {
        Delivery {
            queue: self.subscription.queues[place],
            envelope: row.envelope,
            body: row.body,
            redelivered: row.deliveries > 1,
            acker: Acker::Embedded(EmbeddedAcker {
                id: row.id,
                place,
                subscription: self.subscription.clone(),
            }),
        }
    }

    /// See [`super::Consumer::close`].
    pub async fn close(self) {
        self.subscription.close();
        // A closed broker has requeued everything.
        let _ = ask(&self.commands, Command::Reap).await;
    }
}

impl Drop for EmbeddedConsumer {
    fn drop(&mut self) {
        self.subscription.close();
    }
}
