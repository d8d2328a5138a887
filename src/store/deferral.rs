//! Jobs that are held back from a queue, tenants and what they are entitled to.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::job::{
    Candidate, Job, JobHead, JobId, JobState, ModelPair, Priority, Reason, RoutedJob, Tenant, Tier,
};

/// How much earlier a job of high priority counts as having come: a normal one that has waited so long
/// goes before it, so none starves.
const HEAD_START: TimeDelta = TimeDelta::seconds(60);

/// How long after a submission was taken back its jobs may still be written as open: routers learn of it
/// within half a second.
pub const CANCEL_SETTLES: Duration = Duration::from_millis(1500);

/// The queue that a held job goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeferredQueue {
    /// The router's: the job is not to begin yet.
    In,
    /// A tier's: it is not its tenant's turn.
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

/// How a job is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deferral {
    /// Order within the tenant; before this instant the job does not go.
    pub rank: DateTime<Utc>,
    /// Prompt tokens (estimated) and answer tokens (as asked for).
    pub tokens: u32,
}

impl Deferral {
    /// A hold that lasts until an instant.
    pub fn until(at: DateTime<Utc>, tokens: u32) -> Self {
        Self { rank: at, tokens }
    }

    /// A hold that lasts until it is the tenant's turn.
    pub fn for_turn(now: DateTime<Utc>, priority: Priority, tokens: u32) -> Self {
        let rank = match priority {
            Priority::Normal => now,
            Priority::High => now - HEAD_START,
        };
        Self { rank, tokens }
    }
}

/// What a routed job's message carries beside the job, kept while it is held.
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

/// A job that could be released.
#[derive(Clone, Debug, PartialEq)]
pub struct DeferredJob {
    /// The job.
    pub job: JobId,
    /// Whose it is.
    pub tenant: Tenant,
    /// What it counts against its tenant's tokens.
    pub tokens: u32,
}

/// A job whose message is to be published.
#[derive(Clone, Debug, PartialEq)]
pub enum Released {
    /// To the router.
    Router(Job),
    /// To its tier.
    Tier(RoutedJob),
}

/// What a tenant is entitled to.
#[derive(Clone, Debug, PartialEq)]
pub struct TenantLimits {
    /// The tenant.
    pub tenant: Tenant,
    /// Share of the work beside other tenants' weights while several wait; above 0.
    pub weight: f64,
    /// Most tokens that go to the models within a minute.
    pub tokens_per_minute: Option<u32>,
    /// Most jobs that are with the workers at once.
    pub running_max: Option<u32>,
    /// Most requests that the HTTP interface accepts within a minute.
    pub requests_per_minute: Option<u32>,
}

impl TenantLimits {
    /// Those of a tenant that nothing is said of.
    pub fn of(tenant: Tenant) -> Self {
        Self {
            tenant,
            weight: 1.0,
            tokens_per_minute: None,
            running_max: None,
            requests_per_minute: None,
        }
    }

    /// Tells what cannot be: a weight or a limit that is not above 0.
    ///
    /// # Errors
    /// The first of them.
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

    /// The terms as the HTTP interface and the command line show them.
    pub fn to_json(&self) -> Value {
        json!({
            "tenant": self.tenant,
            "weight": self.weight,
            "tokens_per_minute": self.tokens_per_minute,
            "running_max": self.running_max,
            "requests_per_minute": self.requests_per_minute,
        })
    }

    /// True when its jobs must be counted, so that each of them is held until it may go.
    pub fn is_limited(&self) -> bool {
        self.tokens_per_minute.is_some() || self.running_max.is_some()
    }
}

/// What counts against a tenant's limits.
#[derive(Clone, Debug, PartialEq)]
pub struct TenantLoad {
    /// The tenant.
    pub tenant: Tenant,
    /// Jobs of it that were released and have not ended.
    pub running: u32,
    /// Tokens of the jobs that were released within the last minute.
    pub tokens_last_minute: u64,
}

/// What a sweep looks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RescueRules {
    /// How long nothing may have happened to a job before its message counts as lost, where the queue it
    /// would wait in is empty.
    pub stuck_after: TimeDelta,
    /// The same where that queue is not empty.
    pub stuck_after_busy: TimeDelta,
    /// The queues that are empty: the router's, small's, large's.
    pub is_empty: [bool; 3],
    /// Most jobs that are put right at once.
    pub limit: usize,
    /// The job at which to begin to look for lost ones; from the first if there is none.
    pub from: Option<JobId>,
    /// Most open jobs that are looked at: a million that are held cannot be at each sweep.
    pub looked_at_max: usize,
}

impl RescueRules {
    /// The id before which open jobs are looked at; no job has the last of all.
    pub(super) fn end(next: Option<Uuid>) -> Uuid {
        next.unwrap_or(Uuid::max())
    }

    /// The instants before which nothing more happened to a lost job: one for each queue.
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

/// What a sweep found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rescued {
    /// Jobs whose message seems lost: publish it again; a second one does no harm.
    pub stuck: Vec<Released>,
    /// Jobs that were ended because their deadline had passed.
    pub expired: Vec<crate::job::JobRecord>,
    /// Attempts that were closed because their jobs had ended without them.
    pub attempts: u64,
    /// Where the next sweep goes on; none when there is nothing beyond.
    pub next: Option<JobId>,
}

/// A submission that was taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelledBatch {
    /// Its name.
    pub batch: String,
    /// Whose jobs of it; everybody's, if none is named.
    pub tenant: Option<Tenant>,
    /// Jobs that were submitted by then are meant.
    pub cancelled_at: DateTime<Utc>,
}

impl CancelledBatch {
    /// True when a job is one of those that were taken back.
    pub fn means(&self, head: &JobHead) -> bool {
        head.batch.as_deref() == Some(&self.batch)
            && self
                .tenant
                .as_ref()
                .is_none_or(|tenant| *tenant == head.tenant)
            && head.submitted_at <= self.cancelled_at
    }
}

/// Which jobs to take back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CancelFilter {
    /// These jobs, of one tenant if one is named.
    Jobs(Option<Tenant>, Vec<JobId>),
    /// The unfinished jobs of a submission, of one tenant if one is named.
    Batch(Option<Tenant>, String),
}

/// The message that an open job which nobody runs needs: to the router while it is queued, to its tier
/// once it is routed. None for jobs that have ended, run, or wait for an identical one.
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
