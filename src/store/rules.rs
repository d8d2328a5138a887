//! Decisions about jobs, made without I/O so that both backends agree.

use std::{collections::HashSet, time::Duration};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use uuid::Uuid;

use super::{
    Admission, AdmissionDecision, Admitted, CancelledBatch, Claimant, DeadLetter, Deferral,
    DeferredQueue, Lookup, NearOutcome, NearQuestion, Route, deferral::Extras, row::Row,
};
use crate::job::{
    Answer, AnswerSource, CacheKey, ChatRequest, JobHead, JobId, JobRecord, JobState, Reason, Tier,
};

/// The instant `span` after `now`, capped at a century.
pub(super) fn after(now: DateTime<Utc>, span: Duration) -> DateTime<Utc> {
    // Both databases can represent it.
    const SPAN_MAX: TimeDelta = TimeDelta::days(36_525);
    now + TimeDelta::from_std(span).map_or(SPAN_MAX, |span| span.min(SPAN_MAX))
}

/// The instant `span` before `now`.
pub(super) fn before(now: DateTime<Utc>, span: Duration) -> DateTime<Utc> {
    now - (after(now, span) - now)
}

/// The smallest UUIDv7 of an instant; ids compared with it are selected by time.
pub(super) fn id_floor(at: DateTime<Utc>) -> Uuid {
    let millis = u64::try_from(at.timestamp_millis()).unwrap_or(0);
    Uuid::from_u64_pair(millis << 16, 0)
}

/// Reads stored tags; unreadable ones count as none.
pub(super) fn tags_of(stored: Option<&str>) -> Vec<String> {
    stored
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default()
}

/// Encodes a request for storage.
pub(super) fn read_request(stored: &str) -> Result<ChatRequest, super::error::BackendError> {
    serde_json::from_str(stored).map_err(|error| {
        super::error::BackendError::Rule(format!("a request cannot be read: {error}"))
    })
}

/// The state of a cache entry for an incoming job.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    /// This job computes the answer.
    Led(JobId),
    /// The answer is ready.
    Ready(Hit),
}

/// An answer found in the cache.
#[derive(Clone, Debug)]
pub(super) struct Hit {
    pub answer: Answer,
    /// The job that computed it.
    pub leader: JobId,
    /// Whether the request was identical or a paraphrase.
    pub source: AnswerSource,
    /// Cosine similarity to the answered question, if it is another one.
    pub cosine: Option<f32>,
}

impl Hit {
    /// A hit for an identical request.
    pub(super) fn exact(answer: Answer, leader: JobId) -> Self {
        Self {
            answer,
            leader,
            source: AnswerSource::Cache,
            cosine: None,
        }
    }

    /// A hit for a paraphrase.
    pub(super) fn semantic(answer: Answer, leader: JobId, nearest: &NearQuestion) -> Self {
        Self {
            source: AnswerSource::Semantic,
            cosine: Some(nearest.cosine),
            ..Self::exact(answer, leader)
        }
    }
}

/// The stored outcome of a lookup that found a near question.
#[derive(Clone, Copy, Debug)]
pub(super) struct LookedUp<'a> {
    pub nearest: &'a NearQuestion,
    pub outcome: &'static str,
    pub veto: Option<&'static str>,
    /// Probability with which the hit was drawn for a recheck; `None` if it was not drawn.
    pub recheck: Option<f64>,
}

/// How to write an incoming job.
#[derive(Clone, Debug)]
pub(super) enum Fate<'a> {
    Queued,
    Scheduled(&'a Deferral),
    Routed(&'a Route),
    Waiting(&'a Route),
    Hit(&'a Route, Hit),
    Ended(JobState, &'a Reason),
}

/// A job to be written.
#[derive(Clone, Debug)]
pub(super) struct NewJob<'a> {
    pub head: &'a JobHead,
    pub request: Option<&'a ChatRequest>,
    pub digest: Option<&'a [u8; 32]>,
    pub fate: Fate<'a>,
}

impl<'a> NewJob<'a> {
    /// Decides how to write an admission; `entry` is the state of its cache entry.
    pub(super) fn of(admission: &'a Admission, entry: Option<&Entry>) -> Self {
        let fate = match &admission.decision {
            AdmissionDecision::Queue => Fate::Queued,
            AdmissionDecision::Schedule(hold) => Fate::Scheduled(hold),
            AdmissionDecision::End { state, reason } => Fate::Ended(*state, reason),
            AdmissionDecision::Route(route) => match entry {
                Some(Entry::Ready(hit)) => Fate::Hit(route, hit.clone()),
                Some(Entry::Led(leader)) if *leader != admission.head.id => Fate::Waiting(route),
                Some(Entry::Led(_)) | None => Fate::Routed(route),
            },
        };
        Self {
            head: &admission.head,
            request: admission.request.as_ref(),
            digest: Some(&admission.digest),
            fate,
        }
    }

    pub(super) fn state(&self) -> JobState {
        match self.fate {
            Fate::Queued | Fate::Scheduled(_) => JobState::Queued,
            Fate::Routed(_) | Fate::Waiting(_) => JobState::Routed,
            Fate::Hit(..) => JobState::Succeeded,
            Fate::Ended(state, _) => state,
        }
    }

    pub(super) fn route(&self) -> Option<&'a Route> {
        match self.fate {
            Fate::Routed(route) | Fate::Waiting(route) | Fate::Hit(route, _) => Some(route),
            Fate::Queued | Fate::Scheduled(_) | Fate::Ended(..) => None,
        }
    }

    /// The deferral of the job, if any.
    pub(super) fn hold(&self) -> Option<(DeferredQueue, &'a Deferral)> {
        match self.fate {
            Fate::Scheduled(hold) => Some((DeferredQueue::In, hold)),
            Fate::Routed(route) => {
                Some((DeferredQueue::Tier(route.tier), route.deferral.as_ref()?))
            }
            _ => None,
        }
    }

    /// Additional fields of its message as JSON, if any.
    pub(super) fn extras(&self) -> Option<String> {
        let route = self.route()?;
        let extras = Extras {
            pair: route.pair.clone(),
            candidate: route.candidate(),
        };
        (extras != Extras::default())
            .then(|| serde_json::to_string(&extras).expect("texts and numbers are JSON"))
    }

    /// The producer's tags as JSON, if any.
    pub(super) fn tags(&self) -> Option<serde_json::Value> {
        let tags = &self.request?.options.tags;
        (!tags.is_empty()).then(|| tags.as_slice().into())
    }

    /// Probability with which the job was drawn to run on large as well; `None` if it was not drawn or
    /// no model runs for it.
    pub(super) fn shadow(&self) -> Option<f64> {
        match self.fate {
            Fate::Routed(route) => route.decision.shadow,
            _ => None,
        }
    }

    /// The job that this one copies for learning.
    pub(super) fn shadow_of(&self) -> Option<JobId> {
        self.route()?.decision.shadow_of
    }

    pub(super) fn waits_for(&self) -> Option<&'a CacheKey> {
        match self.fate {
            Fate::Waiting(route) => route.cache_key.as_ref(),
            _ => None,
        }
    }

    pub(super) fn hit(&self) -> Option<&Hit> {
        match &self.fate {
            Fate::Hit(_, hit) => Some(hit),
            _ => None,
        }
    }

    pub(super) fn source(&self) -> Option<AnswerSource> {
        self.hit().map(|hit| hit.source)
    }

    /// The question to store for semantic reuse, under the key of its cache entry.
    pub(super) fn question(&self) -> Option<(&'a CacheKey, &'a Lookup)> {
        let (Fate::Routed(route) | Fate::Waiting(route)) = self.fate else {
            return None;
        };
        let lookup = route.lookup.as_deref()?;
        (!lookup.embedding.is_empty()).then_some((route.cache_key.as_ref()?, lookup))
    }

    /// The outcome of a lookup that found a near question.
    pub(super) fn looked_up(&self) -> Option<LookedUp<'a>> {
        let nearest = self.route()?.lookup.as_deref()?.nearest.as_ref()?;
        let source = self.source();
        let (outcome, veto) = match (nearest.outcome, source) {
            (_, Some(AnswerSource::Cache)) => ("miss", Some("exact")),
            (NearOutcome::Hit, Some(_)) => ("hit", None),
            (NearOutcome::Hit, None) => ("miss", Some("gone")),
            (NearOutcome::Candidate, _) => ("candidate", None),
            (NearOutcome::Miss(veto), _) => ("miss", Some(veto)),
        };
        Some(LookedUp {
            nearest,
            outcome,
            veto,
            recheck: nearest.recheck.filter(|_| outcome != "miss"),
        })
    }

    pub(super) fn reason(&self) -> Option<&'a Reason> {
        match self.fate {
            Fate::Ended(_, reason) => Some(reason),
            _ => None,
        }
    }

    /// When the job became terminal, if it is.
    pub(super) fn finished_at(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.state().is_terminal().then_some(now)
    }

    pub(super) fn admitted(&self, now: DateTime<Utc>) -> Admitted {
        match self.fate {
            Fate::Queued => Admitted::Queued,
            Fate::Scheduled(_) => Admitted::Deferred,
            Fate::Routed(route) if route.deferral.is_some() => Admitted::Deferred,
            Fate::Routed(_) => Admitted::Routed,
            Fate::Waiting(_) => Admitted::Waiting,
            Fate::Hit(..) | Fate::Ended(..) => Admitted::Ended(Box::new(self.record(now))),
        }
    }

    pub(super) fn record(&self, now: DateTime<Utc>) -> JobRecord {
        JobRecord {
            tier: self.route().map(|route| route.tier),
            score: self.route().map(|route| route.decision.score),
            answer: self.hit().map(|hit| hit.answer.clone()),
            source: self.source(),
            answered_by: self.hit().map(|hit| hit.leader),
            cosine: self.hit().and_then(|hit| hit.cosine),
            reason: self.reason().cloned(),
            submitted_at: self.head.submitted_at.trunc_subsecs(6),
            finished_at: self.finished_at(now),
            ..JobRecord::new(self.head, self.state())
        }
    }
}

/// How an admission relates to a known job.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meeting {
    /// Another request under the same id or key.
    Reused,
    /// The queued job is routed.
    Moves,
    /// A repeated request whose job waits for an identical one.
    Waits,
    /// A repeated request.
    Known,
}

/// Compares an admission with the row that owns its id or key.
pub(super) fn meet(admission: &Admission, owner: &Row) -> Meeting {
    let is_same = owner
        .digest
        .as_ref()
        // Jobs dead-lettered before they were read have no digest.
        .is_none_or(|digest| *digest == admission.digest);
    if !is_same {
        Meeting::Reused
    } else if owner.id == admission.head.id.0
        && owner.state == JobState::Queued
        && admission.decision != AdmissionDecision::Queue
    {
        Meeting::Moves
    } else if owner.state == JobState::Routed && owner.waits_for.is_some() {
        Meeting::Waits
    } else {
        Meeting::Known
    }
}

/// Splits a batch's positions into first appearances and those whose id or key appeared before.
pub(super) fn split_repeats(admissions: &[Admission]) -> (Vec<usize>, Vec<usize>) {
    let mut ids = HashSet::with_capacity(admissions.len());
    let mut keys = HashSet::with_capacity(admissions.len());
    (0..admissions.len()).partition(|&at| {
        let head = &admissions[at].head;
        let is_new_id = ids.insert(head.id);
        let is_new_key = head
            .key
            .as_deref()
            .is_none_or(|key| keys.insert((&head.tenant, key)));
        is_new_id && is_new_key
    })
}

/// How to handle a claim.
#[derive(Debug, PartialEq)]
pub(super) enum ClaimStep {
    /// Start this attempt, the job's `last` one or not; an earlier running attempt is lost.
    Run {
        attempt: i32,
        lost: bool,
        last: bool,
    },
    /// Leave the job alone.
    Busy,
    /// The job was escalated to another tier than the message's.
    Elsewhere(Tier),
    /// The job is already terminal.
    Ended,
    /// End the job without an answer.
    End {
        state: JobState,
        reason: Reason,
        lost: bool,
        /// True if a dead letter is kept.
        keep_dead_letters: bool,
    },
}

/// Decides how to handle a claim. `is_alive` is true while the lease of a running attempt holds.
pub(super) fn claim_step(
    row: &Row,
    redelivered: bool,
    is_alive: bool,
    claimant: &Claimant,
    now: DateTime<Utc>,
) -> ClaimStep {
    if !row.is_open() {
        return ClaimStep::Ended;
    }
    if let Some(tier) = row.tier.filter(|tier| *tier != claimant.tier) {
        return ClaimStep::Elsewhere(tier);
    }
    let lost = row.state == JobState::Running;
    if lost && is_alive && !redelivered {
        return ClaimStep::Busy;
    }
    if let Some(deadline) = row.deadline.filter(|deadline| *deadline <= now) {
        return ClaimStep::End {
            state: JobState::Expired,
            reason: Reason::new(
                "deadline_passed",
                format!("the deadline {deadline} passed before the job was run"),
            ),
            lost,
            keep_dead_letters: false,
        };
    }
    let counted = row.attempts - row.attempts_returned;
    let allowed = row
        .attempts_max
        .map_or(i64::from(claimant.attempts_max), |asked| {
            i64::from(asked).min(claimant.attempts_max.into())
        });
    if i64::from(counted) >= allowed {
        return ClaimStep::End {
            state: JobState::Failed,
            reason: Reason::new(
                "attempts_spent",
                format!("{counted} attempts ended without an answer; the job is quarantined"),
            ),
            lost,
            keep_dead_letters: true,
        };
    }
    ClaimStep::Run {
        attempt: row.attempts + 1,
        lost,
        last: i64::from(counted) + 1 >= allowed,
    }
}

/// How far back ended jobs are searched for unclosed attempts.
pub(super) const SWEPT_BACK: TimeDelta = TimeDelta::days(1);
/// Time for the worker of a cancelled job to close its attempt.
pub(super) const ATTEMPT_LOST_AFTER: TimeDelta = TimeDelta::minutes(5);

/// Why a cancelled job has no answer.
pub(super) fn cancelled() -> Reason {
    Reason::new("cancelled", "the job was cancelled before it had an answer")
}

/// A cancelled submission from its columns.
pub(super) fn cancelled_batch(
    batch: String,
    tenant: &str,
    cancelled_at: DateTime<Utc>,
) -> Result<CancelledBatch, super::error::BackendError> {
    let tenant = match tenant {
        "" => None,
        name => Some(name.parse().map_err(super::error::BackendError::Rule)?),
    };
    Ok(CancelledBatch {
        batch,
        tenant,
        cancelled_at,
    })
}

/// Why a job whose deadline has passed has no answer.
pub(super) fn overdue(row: &Row) -> Reason {
    let at = row.deadline.map(|at| format!(" {at}")).unwrap_or_default();
    Reason::new(
        "deadline_passed",
        format!("the deadline{at} passed before the job had an answer"),
    )
}

/// The dead letter of a job without attempts left; it carries the job itself, ready to be redriven.
pub(super) fn letter_of(
    row: &Row,
    request: Option<&str>,
    reason: &Reason,
    now: DateTime<Utc>,
) -> Result<DeadLetter, super::row::BadRow> {
    let body = match request {
        Some(request) => serde_json::to_vec(&row.routed_job(request)?),
        None => serde_json::to_vec(&row.head()),
    };
    let tier = row.tier.map_or("in", Tier::as_str);
    Ok(DeadLetter {
        id: Uuid::now_v7(),
        job: Some(JobId(row.id)),
        tenant: Some(row.tenant.clone()),
        queue: format!("jobs.{tier}"),
        reason: reason.clone(),
        body: body.expect("a job's fields are all representable in JSON"),
        died_at: now,
    })
}
