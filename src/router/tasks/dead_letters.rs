//! The dead-letter consumer: every message in `jobs.dead` becomes a dead letter in the job database,
//! and its job, if it has not ended, ends with the reason.

use std::time::Duration;

use chrono::Utc;
use uuid::Uuid;

use crate::{
    broker::{
        Consumer, Delivery, HEADER_DEATH_QUEUE, HEADER_DEATH_REASON, Publication, Queue,
        publisher::{Handled, publish_and_settle, requeue},
        wire::Incoming,
    },
    job::{JobHead, JobState, Reason, RequestLimits},
    metrics::observe_end,
    router::role::{Router, TaskContext},
    store::{DeadLetter, StoreError},
};

/// Unsettled dead letters.
pub(in crate::router) const PREFETCH: u16 = 64;
/// Most dead letters written at once, and the time to wait for others after the first.
const BATCH_MAX: usize = 64;
const LINGER: Duration = Duration::from_millis(50);
/// Pause after a batch that could not be written.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// Consumes dead letters.
pub(in crate::router) async fn run(
    TaskContext {
        router, shutdown, ..
    }: TaskContext,
    mut consumer: Consumer,
) {
    loop {
        let batch = tokio::select! {
            () = shutdown.requested() => break,
            batch = consumer.next_batch(BATCH_MAX, LINGER) => batch,
        };
        if batch.is_empty() {
            break;
        }
        match write(&router, &batch).await {
            Ok(replies) => {
                let handled = batch.into_iter().zip(replies);
                let handled = handled.map(|(delivery, reply)| Handled::new(delivery.acker, reply));
                publish_and_settle(&router.broker, handled.collect(), &shutdown).await;
            }
            Err(error) => {
                tracing::warn!(%error, letters = batch.len(), "dead letters wait for the job database");
                let ackers = batch.into_iter().map(|delivery| delivery.acker);
                requeue(&router.broker, ackers.collect()).await;
                shutdown.sleep(RETRY_WAIT).await;
            }
        }
    }
    consumer.close().await;
}

/// Writes dead letters and the ends of their jobs; returns the reply that each message calls for.
async fn write(
    router: &Router,
    batch: &[Delivery],
) -> Result<Vec<Option<Publication>>, StoreError> {
    let (mut letters, mut endings) = (Vec::new(), Vec::new());
    let mut has_ending = Vec::with_capacity(batch.len());
    for delivery in batch {
        let (state, reason, queue) = death(delivery);
        let head = head_of(delivery, &router.limits);
        has_ending.push(head.is_some());
        // A passed deadline is an ordinary end; it leaves nothing to repair.
        if state != JobState::Expired {
            letters.push(DeadLetter {
                id: letter_id(delivery, &queue),
                job: head.as_ref().map(|head| head.id),
                tenant: head.as_ref().map(|head| head.tenant.clone()),
                queue,
                reason: reason.clone(),
                body: delivery.body.clone(),
                died_at: Utc::now(),
            });
        }
        endings.extend(head.map(|head| (head, state, reason)));
    }
    if !letters.is_empty() {
        router.store.keep_dead_letters(&letters).await?;
        tracing::warn!(
            letters = letters.len(),
            "dead letters kept; see `promptyard dead list`"
        );
    }
    let mut records = router.store.end(&endings).await?.into_iter();
    let reply = |has_ending: bool| {
        let record = has_ending.then(|| records.next()).flatten()?;
        observe_end(&record);
        Publication::reply(&record)
    };
    Ok(has_ending.into_iter().map(reply).collect())
}

/// The state and reason in which a dead message's job ends, and the queue it died in.
fn death(delivery: &Delivery) -> (JobState, Reason, String) {
    let header = |name: &str| {
        delivery
            .envelope
            .headers
            .get(name)
            .map_or("", String::as_str)
    };
    let queue = header(HEADER_DEATH_QUEUE).to_owned();
    let cause = header(HEADER_DEATH_REASON);
    let (state, reason) = match cause {
        "expired" => (
            JobState::Expired,
            Reason::new(
                "deadline_passed",
                format!("the deadline passed while the job waited in {queue}"),
            ),
        ),
        "delivery_limit" => (
            JobState::Failed,
            Reason::new(
                "delivery_limit",
                format!("{queue} delivered the job too often without an acknowledgement"),
            ),
        ),
        _ => (
            JobState::Rejected,
            Reason::new(
                "unreadable",
                format!("the message in {queue} was rejected ({cause})"),
            ),
        ),
    };
    (state, reason, queue)
}

/// A hash of the message, so that a redelivery keeps no second letter.
fn letter_id(delivery: &Delivery, queue: &str) -> Uuid {
    let mut hasher = blake3::Hasher::new();
    hasher.update(queue.as_bytes());
    hasher.update(
        delivery
            .envelope
            .message_id
            .as_deref()
            .unwrap_or_default()
            .as_bytes(),
    );
    for (name, value) in &delivery.envelope.headers {
        hasher.update(name.as_bytes()).update(value.as_bytes());
    }
    hasher.update(&delivery.body);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// The head of a dead message's job; `None` for a foreign message on another queue than the router's.
fn head_of(delivery: &Delivery, limits: &RequestLimits) -> Option<JobHead> {
    let Delivery { envelope, body, .. } = delivery;
    let died_in = envelope.headers.get(HEADER_DEATH_QUEUE)?;
    match Incoming::read(envelope, body, limits, Utc::now()) {
        Incoming::Submitted(..) if died_in != Queue::In.name() => None,
        incoming => Some(incoming.into_head()),
    }
}
