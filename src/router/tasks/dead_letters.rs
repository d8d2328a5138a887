//! Closes what the broker gave up: every message in `jobs.dead` becomes a dead letter in the
//! ledger, and its job, if it has not ended, ends with the reason.

use std::time::Duration;

use chrono::Utc;
use uuid::Uuid;

use crate::{
    broker::{
        Consumer, Delivery, HEADER_DEATH_QUEUE, HEADER_DEATH_REASON, Publication,
        wire::HEADER_ROUTED,
    },
    config::RouterConfig,
    job::{JobHead, JobState, Reason, RoutedJob},
    metrics::observe_end,
    router::{
        Router,
        intake::{self, IntakeContext},
        policy::Policy,
    },
    scoring::scorer::Scorer,
    shutdown::Shutdown,
    store::{DeadLetter, StoreError},
};

/// Dead letters held at once.
pub(in crate::router) const PREFETCH: u16 = 64;
/// Most closed in one go, and how long to wait for others to go with the first.
const BATCH_MAX: usize = 64;
const LINGER: Duration = Duration::from_millis(50);
/// How long to wait before a ledger that failed is asked again.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// Closes dead letters until asked to stop.
pub(in crate::router) async fn run(router: Router, mut consumer: Consumer, shutdown: Shutdown) {
    loop {
        let batch = tokio::select! {
            () = shutdown.requested() => break,
            batch = consumer.next_batch(BATCH_MAX, LINGER) => batch,
        };
        if batch.is_empty() {
            break;
        }
        let dead: Vec<_> = batch
            .iter()
            .map(|delivery| Dead::of(&router, delivery))
            .collect();
        match close(&router, &dead).await {
            Ok(replies) => {
                let finished = batch.into_iter().zip(replies);
                let finished = finished
                    .map(|(delivery, reply)| (delivery.acker, reply))
                    .collect();
                router.finish(finished, &shutdown).await;
            }
            Err(error) => {
                tracing::warn!(%error, letters = dead.len(), "dead letters wait for the ledger");
                router
                    .requeue(batch.into_iter().map(|delivery| delivery.acker))
                    .await;
                tokio::time::sleep(RETRY_WAIT).await;
            }
        }
    }
    consumer.close().await;
}

/// A dead message with what can be reported of its job.
struct Dead {
    ending: Option<(JobHead, JobState, Reason)>,
    letter: Option<DeadLetter>,
}

impl Dead {
    fn of(router: &Router, delivery: &Delivery) -> Self {
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
        let head = head_of(router, delivery);
        // A passed deadline is an ordinary end; nothing is left for a person to repair.
        let letter = (state != JobState::Expired).then(|| DeadLetter {
            id: letter_id(delivery, &queue),
            job: head.as_ref().map(|head| head.id),
            tenant: head.as_ref().map(|head| head.tenant.clone()),
            queue,
            reason: reason.clone(),
            body: delivery.body.clone(),
            died_at: Utc::now(),
        });
        Self {
            ending: head.map(|head| (head, state, reason)),
            letter,
        }
    }
}

/// The same dead message always gets the same id, so a redelivery keeps no second letter.
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

/// The head of the job that a dead message was; `None` for a foreign message on a tier's queue.
fn head_of(router: &Router, delivery: &Delivery) -> Option<JobHead> {
    if delivery.envelope.headers.contains_key(HEADER_ROUTED) {
        let routed: RoutedJob = serde_json::from_slice(&delivery.body).ok()?;
        return Some(routed.job.head);
    }
    let queue = delivery.envelope.headers.get(HEADER_DEATH_QUEUE)?;
    (queue == crate::broker::Queue::In.name()).then(|| {
        let context = IntakeContext {
            limits: router.limits(),
            policy: &Policy::new(&RouterConfig::default(), Scorer::bundled()),
            models: &crate::router::model_registry::ServedModels::default(),
            semantic: None,
            now: Utc::now(),
        };
        intake::read_body(&delivery.envelope, &delivery.body, context).head
    })
}

/// Writes endings and letters; returns the replies that each message calls for.
async fn close(router: &Router, dead: &[Dead]) -> Result<Vec<Vec<Publication>>, StoreError> {
    let letters: Vec<_> = dead.iter().filter_map(|dead| dead.letter.clone()).collect();
    if !letters.is_empty() {
        router.store.keep_dead_letters(&letters).await?;
        tracing::warn!(
            letters = letters.len(),
            "dead letters kept; see `promptyard dead list`"
        );
    }
    let endings: Vec<_> = dead.iter().filter_map(|dead| dead.ending.clone()).collect();
    let mut records = router.store.end(&endings).await?.into_iter();
    Ok(dead
        .iter()
        .map(|dead| {
            let record = dead.ending.as_ref().and_then(|_| records.next());
            record
                .iter()
                .inspect(|record| observe_end(record))
                .filter_map(Publication::reply)
                .collect()
        })
        .collect())
}
