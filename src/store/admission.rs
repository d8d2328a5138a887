//! Incoming jobs and the outcomes of their admission.

use serde_json::Value;

use super::{
    deferral::Deferral,
    learning::RouteReason,
    semantic::{Lookup, NearOutcome, NearQuestion},
};
use crate::job::{
    CacheKey, Candidate, ChatRequest, JobHead, JobId, JobRecord, JobState, ModelPair, Reason, Tier,
};

/// The router's decision about a job, kept for analysis and learning.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// 0 to 1, higher for large.
    pub score: f64,
    /// The score from which a job goes to large, adjusted for load.
    pub threshold: f64,
    /// The threshold that the target alone gave.
    pub threshold_base: f64,
    /// Name and version of the scorer.
    pub scorer: String,
    /// Version of the features.
    pub features_version: u32,
    /// The features it saw, by name. Never prompt text.
    pub features: Value,
    /// What was to be delivered, as [`crate::config::RouteTarget`] is written.
    pub target: String,
    /// Whose target it was: `all`, `tenant:NAME` or `tag:NAME`.
    pub target_scope: String,
    /// Why the tier.
    pub reason: RouteReason,
    /// Probability, 0 to 1, with which this decision was taken.
    pub propensity: f64,
    /// Set when the job was drawn for a shadow copy on large: the probability of the draw.
    pub shadow: Option<f64>,
    /// Set on a shadow copy: the job that it repeats.
    pub shadow_of: Option<JobId>,
}

/// A job that is to be routed.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// The chosen tier.
    pub tier: Tier,
    /// Why.
    pub decision: Decision,
    /// Under which an answer may be reused, if at all.
    pub cache_key: Option<CacheKey>,
    /// The models that the key covers, when the small one's answer may be escalated. Travels with
    /// the job's message; the database does not keep it.
    pub pair: Option<ModelPair>,
    /// Set when the request allows the answer to a similar question.
    pub lookup: Option<Box<Lookup>>,
    /// Set when the job is deferred until fair scheduling releases it, unless it needs no model.
    pub deferral: Option<Deferral>,
}

impl Route {
    /// The near question whose answer the job's model is to be asked about.
    pub fn candidate(&self) -> Option<Candidate> {
        let nearest = self.lookup.as_deref()?.nearest.as_ref()?;
        (nearest.outcome == NearOutcome::Candidate).then(|| Candidate {
            entry: nearest.entry,
            question: nearest.question.clone(),
            cosine: nearest.cosine,
        })
    }

    /// The near question whose answer is to be given, if it is there still.
    pub(super) fn hit(&self) -> Option<&NearQuestion> {
        let nearest = self.lookup.as_deref()?.nearest.as_ref()?;
        (nearest.outcome == NearOutcome::Hit).then_some(nearest)
    }
}

/// What to do with an incoming job.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every decision is a route: a box would cost an allocation for each job"
)]
pub enum AdmissionDecision {
    /// Recorded, not yet routed (HTTP producers).
    Queue,
    /// Deferred until its start time; then published to the router again.
    Schedule(Deferral),
    /// Routed, answered from the cache, or joined to an identical job.
    Route(Route),
    /// Terminal at once: [`JobState::Rejected`], [`JobState::Expired`] or [`JobState::Cancelled`].
    End {
        /// The terminal state.
        state: JobState,
        /// Why.
        reason: Reason,
    },
}

/// An incoming job.
#[derive(Clone, Debug, PartialEq)]
pub struct Admission {
    /// Identity and envelope; its key is unique within its tenant.
    pub head: JobHead,
    /// The request, unless it could not be read.
    pub request: Option<ChatRequest>,
    /// BLAKE3 of what was asked: tells a repeated submission from a reused key.
    pub digest: [u8; 32],
    /// What to do with it.
    pub decision: AdmissionDecision,
}

impl Admission {
    /// The admission of a job whose request could be read.
    pub fn new(head: JobHead, request: ChatRequest, decision: AdmissionDecision) -> Self {
        Self {
            head,
            digest: request.digest(),
            request: Some(request),
            decision,
        }
    }
}

/// What an admission came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Admitted {
    /// Written as queued.
    Queued,
    /// Written as routed (or moved from queued): publish it to its tier. With a cache key, this job
    /// now leads: its answer will fill the cache.
    Routed,
    /// Written and deferred: it is published on release.
    Deferred,
    /// An identical job is in flight; its settlement will settle this one. Repeating such a job
    /// comes to the same.
    Waiting,
    /// Terminal now: answered from the cache, rejected or expired.
    Ended(Box<JobRecord>),
    /// The id or the (tenant, key) is known with the same digest. The record says how far it is;
    /// if it is routed, publish it to its tier again: its message may have been lost.
    Known(Box<JobRecord>),
    /// The key is known with another digest; nothing was written.
    KeyReused {
        /// The job that owns the key.
        owner: JobId,
    },
}
