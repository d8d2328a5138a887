//! Deferred, cancelled and stuck jobs, and the limits of tenants.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::job::{
    Candidate, Job, JobHead, JobId, JobState, ModelPair, Priority, Reason, RoutedJob, Tenant, Tier,
};

/// How much earlier a job of high priority ranks. A normal job that has waited longer still goes first,
/// so none starves.
const HEAD_START: TimeDelta = TimeDelta::seconds(60);

/// How long after the cancellation of a submission its jobs may still be written as open: routers learn
/// of it within half a second.
pub const CANCEL_SETTLES: Duration = Duration::from_millis(1500);

/// The queue that a deferred job goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeferredQueue {
    /// The router's: the job is scheduled for later.
    In,
    /// A tier's: other tenants' jobs go first.
    Tier(Tier),
}

impl DeferredQueue {
    /// The queues, the router's first.
    pub const ALL: [Self; 3] = [Self::In, Self::Tier(Tier::Small), Self::Tier(Tier::Large)];

    /// The name used in SQL and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Tier(tier) => tier.as_str(),
        }
    }
}

impl std::str::FromStr for DeferredQueue {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "in" => Ok(Self::In),
            tier => tier.parse().map(Self::Tier),
        }
    }
}

/// How a job is deferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deferral {
    /// Order within the tenant, and the earliest instant of release.
    pub rank: DateTime<Utc>,
    /// Prompt tokens (estimated) and answer tokens (requested).
    pub tokens: u32,
}

impl Deferral {
    /// Defers until an instant.
    pub fn until(at: DateTime<Utc>, tokens: u32) -> Self {
        Self { rank: at, tokens }
    }

    /// Defers until fair scheduling releases the job.
    pub fn for_turn(now: DateTime<Utc>, priority: Priority, tokens: u32) -> Self {
        let rank = match priority {
            Priority::Normal => now,
            Priority::High => now - HEAD_START,
        };
        Self { rank, tokens }
    }
}

/// What a routed job's message carries besides the job, kept while the job is deferred.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Extras {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pair: Option<ModelPair>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Candidate>,
}

impl Extras {
    pub(super) fn restore(stored: Option<&str>, routed: &mut RoutedJob) {
        let extras: Self = stored
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default();
        routed.pair = extras.pair;
        routed.candidate = extras.candidate;
    }
}

/// A deferred job that is due.
#[derive(Clone, Debug, PartialEq)]
pub struct DeferredJob {
    /// The job.
    pub job: JobId,
    /// Whose it is.
    pub tenant: Tenant,
    /// Tokens it counts against its tenant's limit.
    pub tokens: u32,
}

/// A message to publish.
#[derive(Clone, Debug, PartialEq)]
pub enum Released {
    /// To the router.
    Router(Job),
    /// To its tier.
    Tier(RoutedJob),
}

/// The limits of a tenant.
#[derive(Clone, Debug, PartialEq)]
pub struct TenantLimits {
    /// The tenant.
    pub tenant: Tenant,
    /// Share of the work relative to other waiting tenants; above 0.
    pub weight: f64,
    /// Most tokens per minute that go to the models.
    pub tokens_per_minute: Option<u32>,
    /// Most jobs with the workers at once.
    pub running_max: Option<u32>,
    /// Most HTTP requests per minute.
    pub requests_per_minute: Option<u32>,
}

impl TenantLimits {
    /// The defaults.
    pub fn of(tenant: Tenant) -> Self {
        Self {
            tenant,
            weight: 1.0,
            tokens_per_minute: None,
            running_max: None,
            requests_per_minute: None,
        }
    }

    /// Rejects a weight or limit that is not above 0.
    ///
    /// # Errors
    /// The first invalid field.
    pub fn check(&self) -> Result<(), Reason> {
        let error = |field: &str| {
            let message = format!("{field}: expected a number above 0");
            Err(Reason::new("invalid_value", message))
        };
        if !(self.weight > 0.0 && self.weight.is_finite()) {
            return error("weight");
        }
        let limits = [
            ("tokens_per_minute", self.tokens_per_minute),
            ("running_max", self.running_max),
            ("requests_per_minute", self.requests_per_minute),
        ];
        match limits.into_iter().find(|(_, limit)| *limit == Some(0)) {
            Some((field, _)) => error(field),
            None => Ok(()),
        }
    }

    /// The limits as HTTP and the command line show them.
    pub fn to_json(&self) -> Value {
        json!({
            "tenant": self.tenant,
            "weight": self.weight,
            "tokens_per_minute": self.tokens_per_minute,
            "running_max": self.running_max,
            "requests_per_minute": self.requests_per_minute,
        })
    }

    /// True when its jobs count against limits, so that each is deferred until released.
    pub fn is_limited(&self) -> bool {
        self.tokens_per_minute.is_some() || self.running_max.is_some()
    }
}

/// A tenant's load, as its limits count it.
#[derive(Clone, Debug, PartialEq)]
pub struct TenantLoad {
    /// The tenant.
    pub tenant: Tenant,
    /// Released jobs that have not ended.
    pub running: u32,
    /// Tokens of the jobs released within the last minute.
    pub tokens_last_minute: u64,
}

/// What the rescuer looks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RescueRules {
    /// Idle time after which a job counts as stuck while the queue it would wait in is empty.
    pub stuck_after: TimeDelta,
    /// The same while that queue is not empty.
    pub stuck_after_busy: TimeDelta,
    /// Which queues are empty: the router's, small's, large's.
    pub is_empty: [bool; 3],
    /// Most jobs rescued in one call.
    pub limit: usize,
    /// The first job to examine; from the oldest if `None`.
    pub from: Option<JobId>,
    /// Most open jobs examined in one call; there may be millions.
    pub looked_at_max: usize,
}

impl RescueRules {
    /// The id before which open jobs are examined; no job has the largest id.
    pub(super) fn end(next: Option<Uuid>) -> Uuid {
        next.unwrap_or(Uuid::max())
    }

    /// For each queue, the instant since which a stuck job was idle.
    pub(super) fn since(&self, now: DateTime<Utc>) -> [DateTime<Utc>; 3] {
        let span = |is_empty: bool| -> TimeDelta {
            if is_empty {
                self.stuck_after
            } else {
                self.stuck_after_busy
            }
        };
        self.is_empty.map(|is_empty| now - span(is_empty))
    }
}

/// What the rescuer found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rescued {
    /// Stuck jobs: publish their messages again; duplicates do no harm.
    pub stuck: Vec<Released>,
    /// Jobs expired because their deadline passed.
    pub expired: Vec<crate::job::JobRecord>,
    /// Attempts closed because their jobs ended without them.
    pub attempts: u64,
    /// Where the next call continues; `None` at the end.
    pub next: Option<JobId>,
}

/// A cancelled submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelledBatch {
    /// Its name.
    pub batch: String,
    /// Only this tenant's jobs; all jobs if `None`.
    pub tenant: Option<Tenant>,
    /// Jobs submitted until then are cancelled.
    pub cancelled_at: DateTime<Utc>,
}

impl CancelledBatch {
    /// True when it cancels this job.
    pub fn means(&self, head: &JobHead) -> bool {
        head.batch.as_deref() == Some(&self.batch)
            && self
                .tenant
                .as_ref()
                .is_none_or(|tenant| *tenant == head.tenant)
            && head.submitted_at <= self.cancelled_at
    }
}

/// Which jobs to cancel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CancelFilter {
    /// These jobs, of one tenant if one is named.
    Jobs(Option<Tenant>, Vec<JobId>),
    /// The unfinished jobs of a submission, of one tenant if one is named.
    Batch(Option<Tenant>, String),
}

/// The message of an open job that nobody runs: to the router while queued, to its tier once routed.
/// `None` for jobs that have ended, are running or wait for an identical one.
pub(super) fn message(
    row: &super::row::Row,
    request: &str,
) -> Result<Option<Released>, super::row::BadRow> {
    Ok(match row.state {
        JobState::Queued => Some(Released::Router(row.job(request)?)),
        JobState::Routed if row.waits_for.is_none() => {
            Some(Released::Tier(row.routed_job(request)?))
        }
        _ => None,
    })
}
