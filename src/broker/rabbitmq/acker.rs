//! Settling deliveries.

use std::{fmt, sync::Arc, time::Duration};

use futures::future::join_all;
use lapin::{
    Channel,
    options::{BasicAckOptions, BasicNackOptions},
};
use tokio::time::timeout;

use crate::broker::Queue;

/// Most time for the frame of an acknowledgement to go out. lapin's promise for it can stay open
/// forever when the connection breaks in that instant; the message is then delivered again.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Settles one delivery of RabbitMQ.
pub struct RabbitAcker {
    inner: lapin::Acker,
    queue: Queue,
    /// Keeps the channel open until its last delivery is settled, also after the consumer ended.
    _channel: Arc<Channel>,
}

impl RabbitAcker {
    pub(super) fn new(inner: lapin::Acker, queue: Queue, channel: Arc<Channel>) -> Self {
        Self {
            inner,
            queue,
            _channel: channel,
        }
    }

    /// False once the channel that delivered it is gone.
    pub fn is_live(&self) -> bool {
        self.inner.usable()
    }
}

impl fmt::Debug for RabbitAcker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitAcker")
            .field("live", &self.is_live())
            .finish_non_exhaustive()
    }
}

/// Acknowledges deliveries; returns how many could not be.
pub(super) async fn ack(ackers: &[RabbitAcker]) -> usize {
    let acks = ackers
        .iter()
        .map(|acker| timeout(SETTLE_TIMEOUT, acker.inner.ack(BasicAckOptions::default())));
    let done = join_all(acks).await;
    done.iter()
        .filter(|ack| !matches!(ack, Ok(Ok(true))))
        .count()
}

/// Requeues or rejects deliveries. A dead letter is always requeued: rejecting it would discard it. A
/// nack that does not reach the server is not repeated: the message returns when the channel ends.
pub(super) async fn nack(ackers: &[RabbitAcker], requeue: bool) {
    let nacks = ackers.iter().map(|acker| {
        let options = BasicNackOptions {
            requeue: requeue || acker.queue == Queue::Dead,
            ..BasicNackOptions::default()
        };
        timeout(SETTLE_TIMEOUT, acker.inner.nack(options))
    });
    join_all(nacks).await;
}
