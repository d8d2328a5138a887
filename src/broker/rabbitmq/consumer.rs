//! Consuming: one channel for each queue, subscribed again whenever it ends.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::StreamExt;
use lapin::{
    Channel,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions},
    types::FieldTable,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::broker::{Acker, BrokerError, Delivery, Queue, counts::count_delivered};

use super::{
    acker::{RabbitAcker, nack},
    link::{self, Link},
    properties,
    topology::{Topology, is_not_found},
};

/// Most time for the broker to end a subscription.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// What subscriptions of one broker share.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) topology: Arc<Topology>,
    pub(super) link: Link,
    pub(super) connect_timeout: Duration,
    pub(super) closed: CancellationToken,
    /// Ends the tasks that keep the connections when the last clone of the broker and the last
    /// consumer are dropped without a close.
    pub(super) _close_with_last_clone: DropGuard,
}

/// A subscription to queues of RabbitMQ.
#[derive(Debug)]
pub struct RabbitConsumer {
    /// Messages that the broker has sent: at most the prefetch of every queue.
    arrived: mpsc::Receiver<Delivery>,
    /// Messages of an incomplete batch; kept when a call is dropped half way.
    pending: VecDeque<Delivery>,
    stop: CancellationToken,
    tasks: TaskTracker,
    _stop_with_handle: DropGuard,
}

impl RabbitConsumer {
    pub(super) async fn open(
        source: Arc<Source>,
        queues: &[Queue],
        prefetch: u16,
    ) -> Result<Self, BrokerError> {
        // To AMQP 0 means without limit.
        let prefetch = prefetch.max(1);
        let capacity = usize::from(prefetch) * queues.len();
        let (sender, arrived) = mpsc::channel(capacity.max(1));
        let stop = source.closed.child_token();
        let tasks = TaskTracker::new();
        let mut subscriptions = Vec::with_capacity(queues.len());
        for &queue in queues {
            let subscription = Subscription {
                source: source.clone(),
                queue,
                prefetch,
                sender: sender.clone(),
                stop: stop.clone(),
            };
            let session = subscription.session().await?;
            subscriptions.push((subscription, session));
        }
        for (subscription, session) in subscriptions {
            tasks.spawn(subscription.run(session));
        }
        tasks.close();
        Ok(Self {
            arrived,
            pending: VecDeque::new(),
            _stop_with_handle: stop.clone().drop_guard(),
            stop,
            tasks,
        })
    }

    /// See [`super::super::Consumer::next_batch`].
    pub async fn next_batch(&mut self, max: usize, linger: Duration) -> Vec<Delivery> {
        let max = max.max(1);
        loop {
            if self.pending.is_empty() {
                match self.arrived.recv().await {
                    Some(delivery) => self.pending.push_back(delivery),
                    None => return Vec::new(),
                }
            }
            let deadline = Instant::now() + linger;
            while self.pending.len() < max {
                match timeout_at(deadline, self.arrived.recv()).await {
                    Ok(Some(delivery)) => self.pending.push_back(delivery),
                    Ok(None) | Err(_) => break,
                }
            }
            // Messages of a connection that broke are delivered again.
            self.pending.retain(|delivery| delivery.acker.is_live());
            let taken = self.pending.len().min(max);
            if taken > 0 {
                let batch: Vec<_> = self.pending.drain(..taken).collect();
                count_delivered(&batch);
                return batch;
            }
        }
    }

    /// See [`super::super::Consumer::close`].
    pub async fn close(mut self) {
        self.stop.cancel();
        self.tasks.wait().await;
        self.arrived.close();
        let mut unseen: Vec<_> = self.pending.drain(..).collect();
        while let Some(delivery) = self.arrived.recv().await {
            unseen.push(delivery);
        }
        put_back(unseen).await;
    }
}

/// A channel with its stream of messages.
struct Session {
    channel: Arc<Channel>,
    messages: lapin::Consumer,
}

/// One queue's subscription.
struct Subscription {
    source: Arc<Source>,
    queue: Queue,
    prefetch: u16,
    sender: mpsc::Sender<Delivery>,
    stop: CancellationToken,
}

impl Subscription {
    async fn session(&self) -> Result<Session, BrokerError> {
        let Source {
            topology,
            link,
            connect_timeout,
            ..
        } = &*self.source;
        let connection = link.connection(*connect_timeout).await?;
        let subscribe = async {
            let channel = connection.create_channel().await?;
            channel
                .basic_qos(self.prefetch, BasicQosOptions::default())
                .await?;
            let messages = channel
                .basic_consume(
                    topology.queue(self.queue),
                    "".into(),
                    BasicConsumeOptions::default(),
                    FieldTable::default(),
                )
                .await?;
            Ok(Session {
                channel: Arc::new(channel),
                messages,
            })
        };
        let error: lapin::Error = match timeout(*connect_timeout, subscribe).await {
            Ok(Ok(session)) => return Ok(session),
            Ok(Err(error)) => error,
            Err(_) => std::io::Error::from(std::io::ErrorKind::TimedOut).into(),
        };
        if is_not_found(&error) && !topology.is_deleted() {
            // The queue was deleted under a running fleet: declare it for the next attempt.
            let declared = topology.declare(&connection).await;
            if let Err(error) = declared {
                return Err(error.into_broker_error(&|message| link.unreachable(message)));
            }
        }
        Err(link.error(&error))
    }

    /// Forwards messages, and subscribes again when they end, until the stop.
    async fn run(self, mut session: Session) {
        loop {
            if !self.forward(&mut session).await {
                return self.end(session).await;
            }
            drop(session);
            let name = self.queue.name();
            tracing::warn!(queue = name, "the subscription ended; subscribing again");
            let mut waits = link::backoff();
            session = loop {
                let wait = waits.next().unwrap_or(Duration::from_secs(10));
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    () = sleep(wait) => {}
                }
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    opened = self.session() => match opened {
                        Ok(session) => break session,
                        Err(BrokerError::Closed) => return,
                        Err(error) => tracing::warn!(queue = name, %error, "cannot subscribe; trying again"),
                    }
                }
            };
        }
    }

    /// Forwards messages until they end (true) or this subscription must stop (false).
    async fn forward(&self, session: &mut Session) -> bool {
        loop {
            let next = tokio::select! {
                biased;
                () = self.stop.cancelled() => return false,
                next = session.messages.next() => next,
            };
            let Some(Ok(message)) = next else {
                return true;
            };
            let delivery = self.delivery(message, &session.channel);
            tokio::select! {
                biased;
                room = self.sender.reserve() => match room {
                    Ok(room) => room.send(delivery),
                    Err(_) => return false,
                },
                () = self.stop.cancelled() => {
                    put_back([delivery]).await;
                    return false;
                }
            }
        }
    }

    fn delivery(&self, message: lapin::message::Delivery, channel: &Arc<Channel>) -> Delivery {
        let topology = &self.source.topology;
        Delivery {
            queue: self.queue,
            envelope: properties::envelope(&message.properties, self.queue, |name| {
                topology.strip(name)
            }),
            body: message.data,
            redelivered: message.redelivered,
            acker: Acker::Rabbit(RabbitAcker::new(message.acker, self.queue, channel.clone())),
        }
    }

    /// Cancels the subscription and requeues the messages that arrive until the broker confirms that.
    async fn end(&self, mut session: Session) {
        let tag = session.messages.tag();
        let cancel = session
            .channel
            .basic_cancel(tag, BasicCancelOptions::default());
        let requeue = BasicNackOptions {
            requeue: true,
            ..BasicNackOptions::default()
        };
        let drain = async {
            cancel.await?;
            while let Some(message) = session.messages.next().await {
                // A message that cannot be requeued returns when the channel closes.
                let _ = message?.acker.nack(requeue).await;
            }
            Ok::<_, lapin::Error>(())
        };
        // After a reconnection lapin may leave the stream open for good; its messages return when
        // the channel closes.
        let _ = timeout(CANCEL_TIMEOUT, drain).await;
    }
}

/// Requeues deliveries that no caller has seen.
async fn put_back(deliveries: impl IntoIterator<Item = Delivery>) {
    let ackers = deliveries
        .into_iter()
        .filter_map(|delivery| match delivery.acker {
            Acker::Rabbit(acker) => Some(acker),
            Acker::Embedded(_) => None,
        });
    nack(&ackers.collect::<Vec<_>>(), true).await;
}
