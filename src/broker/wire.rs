//! The wire format: how jobs are written as messages and read again. Producers other than promptyard
//! need none of the headers.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use rand::RngExt;
use uuid::Uuid;

use crate::job::{
    ChatRequest, Job, JobHead, JobId, JobRecord, Reason, Rejection, ReplyTo, RequestLimits,
    RoutedJob, Submission, Tenant,
};

use super::{AffinityQueue, Delay, Envelope, Publication, Queue, Target};

/// The job's id, where the producer has chosen it (a UUIDv7).
pub const HEADER_JOB_ID: &str = "promptyard-job-id";
/// The submission that the job belongs to.
pub const HEADER_BATCH: &str = "promptyard-batch";
/// The line's own name, when the body does not carry it.
pub const HEADER_CUSTOM_ID: &str = "promptyard-custom-id";
/// Marks a body that is a [`RoutedJob`].
const HEADER_ROUTED: &str = "promptyard-routed";
/// Marks a body that is a [`Job`] which the job database knows.
const HEADER_ADMITTED: &str = "promptyard-admitted";
/// On replies: the job's terminal state.
pub const HEADER_STATE: &str = "promptyard-state";

/// Longest idempotency key in bytes: what an AMQP `message_id` can hold.
pub const KEY_BYTES_MAX: usize = 255;

/// What a message says, by its headers.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// A routed job: on a tier's queue, or back from a delay queue.
    Routed(RoutedJob),
    /// A job that the job database knows, on its way to the router.
    Admitted(Job),
    /// A producer's message: the head of its job, and the request or why it is refused.
    Submitted(JobHead, Result<ChatRequest, Reason>),
}

impl Incoming {
    /// Reads a message. A marked body that is no job is read as a producer's message, which refuses it.
    pub fn read(
        envelope: &Envelope,
        body: &[u8],
        limits: &RequestLimits,
        now: DateTime<Utc>,
    ) -> Self {
        let is_marked = |header: &str| envelope.headers.contains_key(header);
        if is_marked(HEADER_ROUTED)
            && let Ok(routed) = serde_json::from_slice(body)
        {
            return Self::Routed(routed);
        }
        if is_marked(HEADER_ADMITTED)
            && let Ok(job) = serde_json::from_slice(body)
        {
            return Self::Admitted(job);
        }
        let (head, request) = read_submission(envelope, body, limits, now);
        Self::Submitted(head, request)
    }

    /// The head of the job.
    pub fn into_head(self) -> JobHead {
        match self {
            Self::Routed(routed) => routed.job.head,
            Self::Admitted(job) => job.head,
            Self::Submitted(head, _) => head,
        }
    }
}

/// Reads a producer's message: the body's fields go before the envelope's, and the nearer deadline
/// counts.
fn read_submission(
    envelope: &Envelope,
    body: &[u8],
    limits: &RequestLimits,
    now: DateTime<Utc>,
) -> (JobHead, Result<ChatRequest, Reason>) {
    let mut head = head_of(envelope, now);
    let long_key = head.key.take_if(|key| key.len() > KEY_BYTES_MAX);
    let mut adopt = |custom_id: Option<String>, tenant: Option<Tenant>| {
        head.custom_id = custom_id.or(head.custom_id.take());
        head.tenant = tenant.unwrap_or_default();
    };
    let submission = match Submission::parse(body, limits) {
        Ok(submission) => submission,
        Err(Rejection {
            reason,
            custom_id,
            tenant,
        }) => {
            adopt(custom_id, tenant);
            return (head, Err(reason));
        }
    };
    adopt(submission.custom_id, submission.tenant);
    let allowed = submission.schedule.deadline(head.submitted_at);
    head.deadline = [head.deadline, allowed].into_iter().flatten().min();
    head.not_before = submission.schedule.not_before;
    head.attempts_max = submission.schedule.attempts_max;
    if let Some(key) = long_key {
        let reason = format!(
            "the idempotency key has {} bytes; at most {KEY_BYTES_MAX} are accepted",
            key.len()
        );
        return (head, Err(Reason::new("invalid_value", reason)));
    }
    (head, Ok(submission.request))
}

/// The head of a producer's message, without what its body says.
fn head_of(envelope: &Envelope, now: DateTime<Utc>) -> JobHead {
    let header = |name: &str| envelope.headers.get(name).cloned();
    let chosen: Option<JobId> = header(HEADER_JOB_ID)
        .and_then(|id| id.parse().ok())
        .filter(|id: &JobId| id.0.get_version_num() == 7);
    let sent_at = chosen.and_then(|id| id.created_at()).or(envelope.timestamp);
    let reply_queue = envelope.reply_to.clone().filter(|queue| !queue.is_empty());
    let head = JobHead::new(Tenant::default());
    JobHead {
        id: chosen.unwrap_or(head.id),
        key: envelope.message_id.clone().filter(|key| !key.is_empty()),
        custom_id: header(HEADER_CUSTOM_ID),
        batch: header(HEADER_BATCH),
        deadline: envelope.expires_at,
        reply_to: reply_queue.map(|queue| ReplyTo {
            queue,
            correlation_id: envelope.correlation_id.clone(),
        }),
        priority: envelope.priority,
        // A producer's clock may run ahead; nothing is submitted in the future.
        submitted_at: sent_at.filter(|at| *at <= now).unwrap_or(now),
        ..head
    }
}

/// A message for a producer to publish.
#[derive(Clone, Debug, PartialEq)]
pub struct WireMessage {
    /// The job's id.
    pub id: JobId,
    /// The producer's idempotency key.
    pub key: Option<String>,
    /// The line's own name.
    pub custom_id: Option<String>,
    /// The submission that the job belongs to.
    pub batch: Option<String>,
    /// The body as [`Submission::parse`] reads it.
    pub body: Vec<u8>,
}

impl WireMessage {
    /// A message with a fresh id and nothing but a body.
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
    fn from(message: WireMessage) -> Self {
        let mut headers = BTreeMap::from([(HEADER_JOB_ID.to_owned(), message.id.to_string())]);
        let optional = [
            (HEADER_BATCH, message.batch),
            (HEADER_CUSTOM_ID, message.custom_id),
        ];
        for (name, value) in optional {
            headers.extend(value.map(|value| (name.to_owned(), value)));
        }
        Self {
            target: Target::Queue(Queue::In),
            envelope: Envelope {
                message_id: message.key,
                headers,
                ..Envelope::default()
            },
            body: message.body,
        }
    }
}

impl Publication {
    /// A routed job for its tier's workers.
    pub fn to_tier(routed: &RoutedJob) -> Self {
        Self::of_routed(routed, Queue::Tier(routed.tier))
    }

    /// A routed job for the worker that has its prompt prefix in its cache.
    pub fn to_affinity_queue(routed: &RoutedJob, queue: AffinityQueue) -> Self {
        Self::of_routed(routed, Queue::Affinity(routed.tier, queue))
    }

    /// A routed job that is tried again after half to all of the delay, at random, so that jobs which
    /// failed together do not return together.
    pub fn to_retry(routed: &RoutedJob, delay: Delay) -> Self {
        let most_ms = delay.as_millis();
        let mut retry = Self::of_routed(routed, Queue::Retry(delay));
        retry.envelope.rest_ms = Some(rand::rng().random_range(most_ms / 2..=most_ms));
        retry
    }

    /// A job that the job database knows as queued, for the router: it is new, its start time has
    /// come, or its first message was lost.
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

    /// The answer for the producer's reply queue, if it named one: an OpenAI batch output line.
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

/// Redrives a dead letter: its request as a new job, without deadline, start time and reply queue, or
/// its body as a producer's message. The key makes a second redrive of the letter a repetition.
pub fn redriven(letter: Uuid, body: &[u8]) -> Publication {
    let key = Some(format!("redrive:{letter}"));
    match serde_json::from_slice::<RoutedJob>(body) {
        // Not as a producer's body: written anew it may exceed the limit of one.
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

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use crate::{broker::wire::*, job::Tier};

    fn read(envelope: &Envelope, body: &[u8]) -> Incoming {
        Incoming::read(envelope, body, &RequestLimits::default(), Utc::now())
    }

    fn request() -> ChatRequest {
        let submission = Submission::parse(br#"{"prompt":"hi"}"#, &RequestLimits::default());
        submission.expect("valid").request
    }

    #[test]
    fn jobs_are_read_as_they_were_written() {
        let head = JobHead {
            key: Some("k".to_owned()),
            deadline: Some(Utc::now()),
            ..JobHead::new("acme".parse().expect("a name"))
        };
        let job = Job {
            head,
            request: request(),
        };
        let sent = Publication::to_router(&job);
        assert_eq!(
            read(&sent.envelope, &sent.body),
            Incoming::Admitted(job.clone())
        );
        let routed = RoutedJob {
            job,
            tier: Tier::Small,
            cache_key: None,
            pair: None,
            candidate: None,
            poison_candidate: false,
        };
        let sent = Publication::to_retry(&routed, Delay::S1);
        assert_eq!(read(&sent.envelope, &sent.body), Incoming::Routed(routed));
    }

    #[test]
    fn a_marked_body_that_is_no_job_is_refused() {
        let headers = BTreeMap::from([(HEADER_ADMITTED.to_owned(), "1".to_owned())]);
        let envelope = Envelope {
            headers,
            ..Envelope::default()
        };
        let Incoming::Submitted(_, request) = read(&envelope, b"no job") else {
            panic!("not a job")
        };
        assert_eq!(request.expect_err("refused").code, "invalid_json");
    }

    #[test]
    fn the_envelope_gives_key_reply_queue_and_a_deadline() {
        let envelope = Envelope {
            message_id: Some("order-7".into()),
            reply_to: Some("answers".into()),
            correlation_id: Some("c1".into()),
            expires_at: Some(Utc::now() + TimeDelta::hours(1)),
            ..Envelope::default()
        };
        let body = br#"{"prompt":"hi","promptyard":{"deadline_ms":60000}}"#;
        let head = read(&envelope, body).into_head();
        assert_eq!(head.key.as_deref(), Some("order-7"));
        let reply_to = head.reply_to.expect("a reply queue");
        assert_eq!(reply_to.correlation_id.as_deref(), Some("c1"));
        let deadline = head.deadline.expect("a deadline");
        assert!(
            deadline < Utc::now() + TimeDelta::minutes(2),
            "the nearer one"
        );
    }
}
