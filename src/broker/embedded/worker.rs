//! The task that owns the file: it merges the callers' commands into few transactions.
//!
//! Commands that arrive while one transaction is written go into the next, so a slow disk makes
//! larger groups and not a longer queue.

use std::{
    collections::HashMap,
    fs::{File, TryLockError},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use sqlx::{Connection as _, SqliteConnection};
use tokio::{
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, interval},
};

use crate::broker::{BrokerError, Depth, Publication, PublishError, Queue};

use super::{
    insert::{Insert, Length},
    subscription::{Session, Subscription},
    table::Table,
};

/// Commands that wait for the worker; further callers are blocked.
pub(super) const COMMANDS_MAX: usize = 256;
/// How often the file is polled for other processes' messages, deadlines and delays.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// What happens to settled messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settlement {
    Ack,
    Requeue,
    Reject,
}

pub(super) type Outcomes = Vec<Result<(), PublishError>>;
pub(super) type Reply<T> = oneshot::Sender<T>;

/// The callers' commands.
#[derive(Debug)]
pub(super) enum Command {
    Publish(Vec<Publication>, Reply<Outcomes>),
    Settle(Settlement, Vec<i64>, Reply<Result<(), String>>),
    Subscribe(Arc<Subscription>, Reply<Result<(), BrokerError>>),
    Depths(Reply<Result<Vec<Depth>, String>>),
    Clear(Reply<Result<(), String>>),
    /// Answered when the messages of closed subscriptions are requeued.
    Reap(Reply<()>),
    Close(Reply<()>),
}

/// The file and the subscriptions to it.
pub(super) struct Worker {
    pub(super) path: PathBuf,
    pub(super) table: Table,
    pub(super) queue_messages_max: u64,
    pub(super) session: Arc<Session>,
    /// Publishing and settling: what it commits is on the disk.
    pub(super) durable: SqliteConnection,
    /// Claiming: a lost claim is only a message delivered again, so it need not wait for the disk.
    pub(super) quick: SqliteConnection,
    pub(super) subscriptions: Vec<Arc<Subscription>>,
    /// Held while this process consumes.
    pub(super) lock: Option<File>,
    pub(super) lengths: HashMap<Queue, Length>,
}

impl Worker {
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut polls = interval(POLL_INTERVAL);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let session = self.session.clone();
        let mut group = Vec::with_capacity(COMMANDS_MAX);
        let closing = loop {
            tokio::select! {
                received = commands.recv_many(&mut group, COMMANDS_MAX) => if received == 0 {
                    break Vec::new();
                },
                () = session.demand.notified() => {}
                _ = polls.tick(), if self.lock.is_some() => {
                    let moved = self.move_due().await;
                    log("cannot move messages that are due", moved);
                }
            }
            let closing = self.answer(std::mem::take(&mut group)).await;
            if !closing.is_empty() {
                break closing;
            }
            let reaped = self.reap().await;
            log("cannot requeue messages", reaped);
            let served = self.serve().await;
            log("cannot take messages", served);
        };
        self.end().await;
        for reply in closing {
            // A caller that was dropped needs no answer; so in all of this file.
            let _ = reply.send(());
        }
    }

    /// Executes a group of commands; returns the callers that wait for the broker to close.
    async fn answer(&mut self, group: Vec<Command>) -> Vec<Reply<()>> {
        let mut closing = Vec::new();
        let mut writes = Vec::new();
        let mut reaps = Vec::new();
        for command in group {
            match command {
                Command::Close(reply) => closing.push(reply),
                Command::Reap(reply) => reaps.push(reply),
                Command::Subscribe(subscription, reply) => {
                    let _ = reply.send(self.subscribe(subscription).await);
                }
                Command::Depths(reply) => {
                    let depths = self.depths().await;
                    let _ = reply.send(depths.map_err(|error| error.to_string()));
                }
                write => writes.push(write),
            }
        }
        self.write(writes).await;
        if !reaps.is_empty() {
            let reaped = self.reap().await;
            log("cannot requeue messages", reaped);
            for reply in reaps {
                let _ = reply.send(());
            }
        }
        closing
    }

    /// Writes a group in one transaction and answers its callers.
    async fn write(&mut self, group: Vec<Command>) {
        if group.is_empty() {
            return;
        }
        let mut work = Vec::with_capacity(group.len());
        let mut waiting = Vec::with_capacity(group.len());
        for command in group {
            let (task, answer) = match command {
                Command::Publish(messages, reply) => {
                    let outcomes = Vec::with_capacity(messages.len());
                    let expected = messages.len();
                    (
                        Work::Insert(messages),
                        Answer::Outcomes(reply, outcomes, expected),
                    )
                }
                Command::Settle(how, ids, reply) => (Work::Settle(how, ids), Answer::Done(reply)),
                Command::Clear(reply) => (Work::Clear, Answer::Done(reply)),
                // Answered before.
                Command::Subscribe(..)
                | Command::Depths(_)
                | Command::Reap(_)
                | Command::Close(_) => continue,
            };
            work.push(task);
            waiting.push(answer);
        }
        let written = self.transact(work, &mut waiting).await;
        if written.is_err() {
            self.lengths.clear();
        }
        for answer in waiting {
            answer.send(&written);
        }
    }

    async fn transact(&mut self, work: Vec<Work>, waiting: &mut [Answer]) -> sqlx::Result<()> {
        let mut transaction = self.durable.begin_with("BEGIN IMMEDIATE").await?;
        for (task, answer) in work.into_iter().zip(waiting) {
            match (task, answer) {
                (Work::Insert(messages), Answer::Outcomes(_, outcomes, _)) => {
                    let mut insert = Insert {
                        table: &self.table,
                        lengths: &mut self.lengths,
                        queue_messages_max: self.queue_messages_max,
                    };
                    for message in messages {
                        outcomes.push(insert.one(&mut transaction, message).await?);
                    }
                }
                (Work::Settle(Settlement::Ack, ids), _) => {
                    self.table.delete(&mut transaction, &ids).await?;
                }
                (Work::Settle(how, ids), _) => {
                    if how == Settlement::Reject {
                        self.table
                            .keep_dead_letters(&mut transaction, &ids, "rejected")
                            .await?;
                    }
                    self.table.release(&mut transaction, &ids).await?;
                }
                (Work::Clear, _) => {
                    self.table.clear(&mut transaction).await?;
                    self.lengths.clear();
                }
                (Work::Insert(_), Answer::Done(_)) => {}
            }
        }
        transaction.commit().await
    }

    /// The first subscription locks the file for this process and requeues what an earlier process
    /// had claimed when it ended.
    async fn subscribe(&mut self, subscription: Arc<Subscription>) -> Result<(), BrokerError> {
        if self.lock.is_none() {
            let lock = self.take_lock()?;
            let recovered = self.recover().await;
            recovered.map_err(|error| BrokerError::Storage {
                path: self.path.display().to_string(),
                message: error.to_string(),
            })?;
            self.lock = Some(lock);
        }
        self.subscriptions.push(subscription);
        Ok(())
    }

    fn take_lock(&self) -> Result<File, BrokerError> {
        let mut path = self.path.clone().into_os_string();
        path.push(".lock");
        let shown = || self.path.display().to_string();
        let open = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let storage = |error: std::io::Error| BrokerError::Storage {
            path: shown(),
            message: format!("lock file: {error}"),
        };
        let file = open.map_err(storage)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(BrokerError::InUse { path: shown() }),
            Err(TryLockError::Error(error)) => Err(storage(error)),
        }
    }

    async fn recover(&mut self) -> sqlx::Result<()> {
        let held = self.table.claimed(&mut self.durable).await?;
        self.put_back(&held).await
    }

    async fn put_back(&mut self, ids: &[i64]) -> sqlx::Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut transaction = self.durable.begin_with("BEGIN IMMEDIATE").await?;
        self.table.release(&mut transaction, ids).await?;
        transaction.commit().await
    }

    /// Requeues what closed subscriptions never returned. When their last acker is gone too, the
    /// rest cannot be settled any more and is requeued as well.
    async fn reap(&mut self) -> sqlx::Result<()> {
        let mut ids = Vec::new();
        self.subscriptions.retain(|subscription| {
            if !subscription.is_closed() {
                return true;
            }
            let last = Arc::strong_count(subscription) == 1;
            ids.extend(subscription.abandon(last));
            !last
        });
        self.put_back(&ids).await
    }

    /// Moves messages that are due: from the delay queues to the router, and expired ones to the
    /// dead letters.
    async fn move_due(&mut self) -> sqlx::Result<()> {
        let (rested, _) = self.table.due(&mut self.quick).await?;
        self.table.wake(&mut self.quick, &rested).await?;
        let (_, expired) = self.table.due(&mut self.quick).await?;
        self.table
            .keep_dead_letters(&mut self.quick, &expired, "expired")
            .await
    }

    /// Serves consumers in turn, and the queues of each in turn.
    async fn serve(&mut self) -> sqlx::Result<()> {
        if self.lock.is_none() {
            return Ok(());
        }
        for subscription in &self.subscriptions {
            let mut asked = 0;
            while let Some((place, room)) = subscription.room(asked) {
                asked += 1;
                if room == 0 {
                    continue;
                }
                let queue = subscription.queues[place];
                let rows = self.table.claim(&mut self.quick, queue, room).await?;
                subscription.fill(place, rows);
            }
        }
        // Rotate, so that another subscription is served first next time.
        if self.subscriptions.len() > 1 {
            self.subscriptions.rotate_left(1);
        }
        Ok(())
    }

    async fn depths(&mut self) -> sqlx::Result<Vec<Depth>> {
        let mut depths = Vec::with_capacity(Queue::ALL.len());
        for queue in Queue::ALL {
            let open = self.subscriptions.iter().filter(|s| !s.is_closed());
            let consumers = open.filter(|s| s.queues.contains(&queue)).count();
            depths.push(Depth {
                queue,
                ready: self.table.ready(&mut self.quick, queue).await?,
                consumers: u32::try_from(consumers).unwrap_or(u32::MAX),
            });
        }
        Ok(depths)
    }

    /// Requeues everything, closes the file and ends the consumers.
    async fn end(mut self) {
        self.session.ended.cancel();
        if self.lock.is_some() {
            let recovered = self.recover().await;
            log("cannot requeue messages", recovered);
        }
        for connection in [self.durable, self.quick] {
            log("cannot close the file", connection.close().await);
        }
        // Only now may another process consume.
        drop(self.lock);
    }
}

/// What a command does to the table.
enum Work {
    Insert(Vec<Publication>),
    Settle(Settlement, Vec<i64>),
    Clear,
}

/// The caller that waits for a command, and its outcomes so far.
enum Answer {
    Outcomes(Reply<Outcomes>, Outcomes, usize),
    Done(Reply<Result<(), String>>),
}

impl Answer {
    fn send(self, written: &sqlx::Result<()>) {
        match self {
            Self::Outcomes(reply, outcomes, expected) => {
                let outcomes = match written {
                    Ok(()) => outcomes,
                    Err(error) => {
                        vec![Err(PublishError::Unreachable(error.to_string())); expected]
                    }
                };
                let _ = reply.send(outcomes);
            }
            Self::Done(reply) => {
                let done = written.as_ref().map_err(ToString::to_string);
                let _ = reply.send(done.copied());
            }
        }
    }
}

/// Logs an error that no caller waits for; the next poll tries again.
fn log(what: &str, result: sqlx::Result<()>) {
    if let Err(error) = result {
        tracing::error!(%error, "embedded broker: {what}");
    }
}
