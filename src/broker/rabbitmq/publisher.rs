//! Publishing with pipelined confirms.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{FutureExt, future::maybe_done, poll};
use lapin::{
    Channel, Confirmation, Connection, PublisherConfirm,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::ShortString,
};
use metrics::histogram;
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    broker::{BrokerError, Publication, PublishError, Target, counts::count_published},
    config::BrokerConfig,
    metrics::PUBLISH_SECONDS,
};

use super::{link::Link, properties, topology::Topology};

/// Channels kept for the next batch; more than this many batches at once open their own.
const IDLE_CHANNELS_MAX: usize = 16;
/// How often a connection that the broker has blocked is polled.
const BLOCKED_LOOK: Duration = Duration::from_millis(50);

type Outcome = Result<(), PublishError>;
/// Exchange and routing key.
type Address = (ShortString, ShortString);

/// Publishes batches, each on a channel of its own.
#[derive(Debug)]
pub(super) struct Publisher {
    link: Link,
    topology: Arc<Topology>,
    /// A channel serves one batch at a time, so that what the broker returns on it belongs to
    /// that batch: lapin gives a returned message to whichever confirm comes next.
    idle: Mutex<Vec<Channel>>,
    publish_timeout_ms: u64,
    connect_timeout: Duration,
}

/// The state of a batch.
struct Progress {
    outcomes: Vec<Option<Outcome>>,
    confirms: Vec<(usize, PublisherConfirm)>,
    returned: BTreeSet<Address>,
}

impl Publisher {
    pub(super) fn new(config: &BrokerConfig, link: Link, topology: Arc<Topology>) -> Self {
        Self {
            link,
            topology,
            idle: Mutex::new(Vec::new()),
            publish_timeout_ms: config.publish_timeout_ms,
            connect_timeout: Duration::from_millis(config.connect_timeout_ms),
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.link
            .current()
            .is_some_and(|connection| !connection.status().blocked())
    }

    pub(super) async fn ended(&self) {
        self.link.ended().await;
        self.lock_idle().clear();
    }

    pub(super) async fn publish(&self, messages: &[Publication]) -> Vec<Outcome> {
        if messages.is_empty() {
            return Vec::new();
        }
        let started = Instant::now();
        let addresses: Vec<_> = messages.iter().map(|m| self.address(&m.target)).collect();
        let mut progress = Progress {
            outcomes: vec![None; messages.len()],
            confirms: Vec::with_capacity(messages.len()),
            returned: BTreeSet::new(),
        };
        let connection = match self.link.connection(self.connect_timeout).await {
            Ok(connection) => connection,
            Err(error) => {
                let message = match error {
                    BrokerError::Unreachable { message, .. } => message,
                    other => other.to_string(),
                };
                let outcomes = vec![Err(PublishError::Unreachable(message)); messages.len()];
                count_published(messages, &outcomes);
                return outcomes;
            }
        };
        let deadline = Instant::now() + Duration::from_millis(self.publish_timeout_ms);
        let sending = self.send(&connection, messages, &addresses, &mut progress);
        let missing = match timeout_at(deadline, sending).await {
            Ok(Ok(channel)) => {
                self.give_back(channel);
                PublishError::TimedOut(self.publish_timeout_ms)
            }
            // The channel is dropped: its late confirms must not be taken for the next batch's.
            Ok(Err(error)) => PublishError::Unreachable(error.to_string()),
            Err(_) => PublishError::TimedOut(self.publish_timeout_ms),
        };
        histogram!(PUBLISH_SECONDS).record(started.elapsed().as_secs_f64());
        let outcomes = progress.finish(&addresses, &missing);
        count_published(messages, &outcomes);
        outcomes
    }

    /// Sends everything, then waits for every confirm. The error is of the channel as a whole.
    async fn send(
        &self,
        connection: &Connection,
        messages: &[Publication],
        addresses: &[Option<Address>],
        progress: &mut Progress,
    ) -> lapin::Result<Channel> {
        // A blocked connection would only buffer in memory.
        while connection.status().blocked() {
            sleep(BLOCKED_LOOK).await;
        }
        let channel = self.channel(connection).await?;
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let mut sends = Vec::with_capacity(messages.len());
        for (at, (message, address)) in messages.iter().zip(addresses).enumerate() {
            let queue = match message.target {
                Target::Queue(queue) => Some(queue),
                Target::Reply(_) => None,
            };
            let properties = properties::properties(&message.envelope, queue);
            let (Some((exchange, key)), Some(properties)) = (address.clone(), properties) else {
                progress.outcomes[at] = Some(Err(PublishError::Unroutable));
                continue;
            };
            let send = channel.basic_publish(exchange, key, options, &message.body, properties);
            let mut send = Box::pin(maybe_done(send));
            // The first poll queues the frames, so messages leave in their order without each
            // waiting for the socket.
            let _ = poll!(send.as_mut());
            sends.push((at, send));
        }
        for (at, mut send) in sends {
            send.as_mut().await;
            let confirm = send.as_mut().take_output();
            progress
                .confirms
                .push((at, confirm.expect("awaited just above")?));
        }
        progress.confirmed().await?;
        Ok(channel)
    }

    /// Exchange and routing key; `None` for a name that is too long for AMQP.
    fn address(&self, target: &Target) -> Option<Address> {
        match target {
            Target::Queue(queue) => Some((self.topology.exchange(), queue.name().into())),
            Target::Reply(name) => {
                let key = ShortString::try_new(name.as_str()).ok()?;
                Some((ShortString::default(), key))
            }
        }
    }

    async fn channel(&self, connection: &Connection) -> lapin::Result<Channel> {
        {
            let mut idle = self.lock_idle();
            // Channels of an older connection are not connected.
            idle.retain(|channel| channel.status().connected());
            if let Some(channel) = idle.pop() {
                return Ok(channel);
            }
        }
        let channel = connection.create_channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        Ok(channel)
    }

    fn give_back(&self, channel: Channel) {
        let mut idle = self.lock_idle();
        if idle.len() < IDLE_CHANNELS_MAX {
            idle.push(channel);
        }
    }

    fn lock_idle(&self) -> std::sync::MutexGuard<'_, Vec<Channel>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    async fn confirmed(&mut self) -> lapin::Result<()> {
        // In place, so that a time-out leaves the confirms that are still open.
        while let Some((at, confirm)) = self.confirms.last_mut() {
            let (at, confirmation) = (*at, confirm.await?);
            self.confirms.pop();
            self.settle(at, confirmation);
        }
        Ok(())
    }

    fn settle(&mut self, at: usize, confirmation: Confirmation) {
        let outcome = if confirmation.is_ack() {
            Ok(())
        } else {
            Err(PublishError::Refused)
        };
        self.outcomes[at] = Some(outcome);
        if let Some(returned) = confirmation.take_message() {
            let address = (returned.exchange.clone(), returned.routing_key.clone());
            self.returned.insert(address);
        }
    }

    /// The outcomes, `missing` for messages without a confirm.
    fn finish(mut self, addresses: &[Option<Address>], missing: &PublishError) -> Vec<Outcome> {
        for (at, confirm) in std::mem::take(&mut self.confirms) {
            if let Some(Ok(confirmation)) = confirm.now_or_never() {
                self.settle(at, confirmation);
            }
        }
        let outcomes = self.outcomes.into_iter().zip(addresses);
        outcomes
            .map(|(outcome, address)| {
                let returned = address.as_ref().is_some_and(|a| self.returned.contains(a));
                match outcome {
                    Some(Ok(())) if returned => Err(PublishError::Unroutable),
                    Some(outcome) => outcome,
                    None => Err(missing.clone()),
                }
            })
            .collect()
    }
}
