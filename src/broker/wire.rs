//! How jobs are written as messages: the envelope's fields and headers, in one place for every
//! producer and consumer of ours. Other producers need none of the headers.

use std::collections::BTreeMap;

use chrono::Utc;
use rand::RngExt;
use uuid::Uuid;

use crate::job::{Job, JobHead, JobId, JobRecord, RoutedJob};

use super::{AffinityQueue, Delay, Envelope, Publication, Queue, Target};

/// The job's id, when the producer has chosen it already (a UUIDv7).
pub const HEADER_JOB_ID: &str = "promptyard-job-id";
/// The submission that a job belongs to.
pub const HEADER_BATCH: &str = "promptyard-batch";
/// The line's own name, when the body does not carry it.
pub const HEADER_CUSTOM_ID: &str = "promptyard-custom-id";
/// Marks a body that is a routed job coming back from a delay queue.
pub const HEADER_ROUTED: &str = "promptyard-routed";
/// Marks a body that is a job which the ledger knows, on its way to the router.
pub const HEADER_ADMITTED: &str = "promptyard-admitted";
/// On replies: the job's terminal state.
pub const HEADER_STATE: &str = "promptyard-state";

/// Longest idempotency key in bytes: what an AMQP `message_id` can hold.
pub const KEY_BYTES_MAX: usize = 255;

/// A body on its way to the router, with what its producer says beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct WireMessage {
    /// The job's id.
    pub id: JobId,
    /// The producer's idempotency key.
    pub key: Option<String>,
    /// The line's own name.
    pub custom_id: Option<String>,
    /// The submission it belongs to.
    pub batch: Option<String>,
    /// The body as [`crate::job::Submission::parse`] reads it.
    pub body: Vec<u8>,
}

impl WireMessage {
    /// A letter with a fresh id and nothing but a body.
    pub fn new(body: Vec<u8>) -> Self {
        Self {
            id: JobId::now(),
            key: None,
            custom_id: None,
            batch: None,
            body,
        }
    }
}

impl From<WireMessage> for Publication {
    fn from(letter: WireMessage) -> Self {
        let mut headers = BTreeMap::from([(HEADER_JOB_ID.to_owned(), letter.id.to_string())]);
        let optional = [
            (HEADER_BATCH, letter.batch),
            (HEADER_CUSTOM_ID, letter.custom_id),
        ];
        for (name, value) in optional {
            headers.extend(value.map(|value| (name.to_owned(), value)));
        }
        Self {
            target: Target::Queue(Queue::In),
            envelope: Envelope {
                message_id: letter.key,
                headers,
                ..Envelope::default()
            },
            body: letter.body,
        }
    }
}

impl Publication {
    /// A routed job for its tier's workers.
    pub fn to_tier(routed: &RoutedJob) -> Self {
        Self::of_routed(routed, Queue::Tier(routed.tier))
    }

    /// A routed job for the worker that holds its beginning.
    pub fn to_affinity_queue(routed: &RoutedJob, affinity_queue: AffinityQueue) -> Self {
        Self::of_routed(routed, Queue::Affinity(routed.tier, affinity_queue))
    }

    /// A routed job that rests before it is tried again: between half of the delay and all of it, so that
    /// what failed together does not come back together.
    pub fn to_retry(routed: &RoutedJob, delay: Delay) -> Self {
        let most_ms = delay.as_millis();
        let mut retry = Self::of_routed(routed, Queue::Retry(delay));
        retry.envelope.rest_ms = Some(rand::rng().random_range(most_ms / 2..=most_ms));
        retry
    }

    /// A job that the ledger knows as queued, for the router: its time has come, or its first message
    /// was lost.
    pub fn to_router(job: &Job) -> Self {
        Self::of_job(&job.head, job, Queue::In, HEADER_ADMITTED)
    }

    fn of_routed(routed: &RoutedJob, queue: Queue) -> Self {
        Self::of_job(&routed.job.head, routed, queue, HEADER_ROUTED)
    }

    fn of_job(head: &JobHead, body: &impl serde::Serialize, queue: Queue, mark: &str) -> Self {
        Self {
            target: Target::Queue(queue),
            envelope: Envelope {
                message_id: Some(head.id.to_string()),
                priority: head.priority,
                expires_at: head.deadline,
                headers: BTreeMap::from([(mark.to_owned(), "1".to_owned())]),
                ..Envelope::default()
            },
            body: serde_json::to_vec(body).expect("a job has no map with non-text keys"),
        }
    }

    /// The answer for the producer's reply queue, if it wants one: an OpenAI batch output line.
    pub fn reply(record: &JobRecord) -> Option<Self> {
        let reply_to = record.reply_to.as_ref()?;
        let state = (HEADER_STATE.to_owned(), record.state.to_string());
        Some(Self {
            target: Target::Reply(reply_to.queue.clone()),
            envelope: Envelope {
                message_id: Some(record.id.to_string()),
                correlation_id: reply_to.correlation_id.clone(),
                headers: BTreeMap::from([state]),
                ..Envelope::default()
            },
            body: record.to_batch_line().to_string().into_bytes(),
        })
    }
}

/// A dead letter's body once more: its job's request as a new job, without deadline, start and reply
/// queue, or the message as it came. Its key keeps a second redrive of the same letter from running it
/// twice.
pub fn redriven(letter: Uuid, body: &[u8]) -> Publication {
    let key = Some(format!("redrive:{letter}"));
    match serde_json::from_slice::<RoutedJob>(body) {
        // Not as a body to be read again: written anew it may be longer than a body may be.
        Ok(RoutedJob { job, .. }) => Publication::to_router(&Job {
            head: JobHead {
                id: JobId::now(),
                key,
                redrive_of: Some(job.head.id),
                deadline: None,
                not_before: None,
                reply_to: None,
                submitted_at: Utc::now(),
                ..job.head
            },
            request: job.request,
        }),
        Err(_) => Publication::from(WireMessage {
            key,
            ..WireMessage::new(body.to_vec())
        }),
    }
}
