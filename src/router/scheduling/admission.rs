//! Admission control: whether a new job goes to its tier's queue or is deferred.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use chrono::{DateTime, Utc};
use tokio::sync::Notify;

use crate::{
    job::{ChatRequest, JobHead, Tenant, Tier},
    prompt::estimate_tokens,
    store::{CancelledBatch, Deferral, DeferredQueue, TenantLimits},
};

use super::window::QueueWindow;

/// What a router knows of the tiers' queues and of tenants, updated several times a second.
#[derive(Debug)]
pub(crate) struct AdmissionControl {
    /// Smallest window; with 0 only jobs of tenants with limits are deferred.
    window_min: u64,
    state: Mutex<State>,
    /// Notified whenever a job is deferred.
    deferred: Notify,
    /// True while `router.deferred_max` jobs are deferred.
    is_full: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    tiers: [TierState; 2],
    limits: HashMap<Tenant, TenantLimits>,
    cancelled: Vec<CancelledBatch>,
}

#[derive(Debug)]
struct TierState {
    window: QueueWindow,
    /// Jobs that may still go to the queue before the next snapshot.
    credit: u64,
    /// Deferred jobs, up to the counting limit.
    deferred: u32,
    /// Tenants with deferred jobs: their next ones go behind these.
    tenants: HashSet<Tenant>,
}

impl Default for TierState {
    fn default() -> Self {
        Self {
            window: QueueWindow::new(0),
            credit: 0,
            deferred: 0,
            tenants: HashSet::new(),
        }
    }
}

/// The state of queues and tenants at one poll.
#[derive(Debug)]
pub(in crate::router) struct QueueSnapshot {
    /// Jobs that wait in each tier's queues.
    pub ready: [u64; 2],
    /// Deferred jobs of each tier, up to the counting limit.
    pub deferred: [u32; 2],
    /// Whether this router's last release filled each tier's queue.
    pub filled: [bool; 2],
    /// Tenants with deferred jobs.
    pub tenants: Vec<(DeferredQueue, Tenant)>,
    /// Limits of tenants that have any.
    pub limits: Vec<TenantLimits>,
    /// Submissions that were cancelled lately.
    pub cancelled: Vec<CancelledBatch>,
}

fn index(tier: Tier) -> usize {
    usize::from(tier == Tier::Large)
}

/// The tokens that a job counts for its tenant's share and limits: its prompt's estimated ones and its
/// answer's maximum.
fn tokens(request: &ChatRequest) -> u32 {
    let prompt: usize = request
        .messages
        .iter()
        .map(|message| estimate_tokens(&message.content))
        .sum();
    u32::try_from(prompt)
        .unwrap_or(u32::MAX)
        .saturating_add(request.sampling.max_completion_tokens)
}

impl AdmissionControl {
    /// Before the first snapshot jobs go to the queue as far as the smallest window allows.
    pub(crate) fn new(window_min: u64) -> Self {
        let tier = || TierState {
            window: QueueWindow::new(window_min),
            credit: window_min,
            ..TierState::default()
        };
        Self {
            window_min,
            state: Mutex::new(State {
                tiers: [tier(), tier()],
                ..State::default()
            }),
            deferred: Notify::new(),
            is_full: AtomicBool::new(false),
        }
    }

    /// True while `router.deferred_max` jobs are deferred.
    pub(in crate::router) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// Sets [`Self::is_full`]; true when it changed.
    pub(in crate::router) fn set_full(&self, is_full: bool) -> bool {
        self.is_full.swap(is_full, Ordering::Relaxed) != is_full
    }

    /// Waits until a job is deferred, or returns at once if one was since the last call.
    pub(in crate::router) async fn any_deferred(&self) {
        self.deferred.notified().await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The deferral of a job whose start time has not come.
    pub(in crate::router) fn until_start(
        head: &JobHead,
        request: &ChatRequest,
        now: DateTime<Utc>,
    ) -> Option<Deferral> {
        let start = head.not_before.filter(|start| *start > now)?;
        Some(Deferral::until(start, tokens(request)))
    }

    /// True for a job whose submission was cancelled before the job arrived.
    pub(in crate::router) fn is_cancelled(&self, head: &JobHead) -> bool {
        if head.batch.is_none() {
            return false;
        }
        self.state().cancelled.iter().any(|batch| batch.means(head))
    }

    /// The deferral of a job that must wait for its tenant's turn; `None` for one that goes to its
    /// tier's queue now.
    pub(in crate::router) fn deferral(
        &self,
        tier: Tier,
        head: &JobHead,
        request: &ChatRequest,
        now: DateTime<Utc>,
    ) -> Option<Deferral> {
        let mut state = self.state();
        let is_limited = state
            .limits
            .get(&head.tenant)
            .is_some_and(TenantLimits::is_limited);
        let queue = &mut state.tiers[index(tier)];
        let is_behind = queue.tenants.contains(&head.tenant);
        let is_full = self.window_min > 0 && queue.credit == 0;
        if !(is_limited || is_behind || is_full) {
            queue.credit = queue.credit.saturating_sub(1);
            return None;
        }
        if !is_behind {
            queue.tenants.insert(head.tenant.clone());
        }
        drop(state);
        self.deferred.notify_one();
        Some(Deferral::for_turn(now, head.priority, tokens(request)))
    }

    /// Takes a snapshot in; returns how many jobs fit into each tier's queue.
    pub(in crate::router) fn observe(&self, snapshot: QueueSnapshot) -> [u64; 2] {
        let mut state = self.state();
        let mut free = [0; 2];
        for (at, tier) in state.tiers.iter_mut().enumerate() {
            tier.deferred = snapshot.deferred[at];
            tier.tenants.clear();
            tier.window.observe(snapshot.ready[at], snapshot.filled[at]);
            free[at] = match self.window_min {
                0 => u64::MAX,
                _ => tier.window.size().saturating_sub(snapshot.ready[at]),
            };
            tier.credit = free[at];
        }
        for (queue, tenant) in snapshot.tenants {
            if let DeferredQueue::Tier(tier) = queue {
                state.tiers[index(tier)].tenants.insert(tenant);
            }
        }
        state.cancelled = snapshot.cancelled;
        state.limits = snapshot
            .limits
            .into_iter()
            .map(|limits| (limits.tenant.clone(), limits))
            .collect();
        free
    }

    /// The tenants' limits in the last snapshot.
    pub(in crate::router) fn limits(&self) -> HashMap<Tenant, TenantLimits> {
        self.state().limits.clone()
    }

    /// Deferred jobs of a tier, up to the counting limit.
    pub(in crate::router) fn deferred(&self, tier: Tier) -> u64 {
        self.state().tiers[index(tier)].deferred.into()
    }
}

#[cfg(test)]
mod tests {
    use crate::job::{Priority, RequestLimits, Submission};
    use crate::router::scheduling::admission::*;

    fn job(tenant: &str) -> (JobHead, ChatRequest) {
        let body = br#"{"prompt":"one two three","max_tokens":20}"#;
        let head = JobHead::new(tenant.parse().expect("a name"));
        let request = Submission::parse(body, &RequestLimits::default()).expect("valid");
        (head, request.request)
    }

    fn is_deferred(admission: &AdmissionControl, tenant: &str) -> bool {
        let (head, request) = job(tenant);
        admission
            .deferral(Tier::Small, &head, &request, Utc::now())
            .is_some()
    }

    fn nothing() -> QueueSnapshot {
        QueueSnapshot {
            ready: [0; 2],
            deferred: [0; 2],
            filled: [false; 2],
            tenants: Vec::new(),
            limits: Vec::new(),
            cancelled: Vec::new(),
        }
    }

    #[test]
    fn jobs_are_deferred_while_the_window_is_full_and_behind_their_tenants_own() {
        let admission = AdmissionControl::new(4);
        let deferred = (0..6).filter(|_| is_deferred(&admission, "flood")).count();
        assert_eq!(deferred, 2);
        let small = (
            DeferredQueue::Tier(Tier::Small),
            "flood".parse().expect("a name"),
        );
        let free = admission.observe(QueueSnapshot {
            ready: [1, 0],
            deferred: [2, 0],
            tenants: vec![small],
            ..nothing()
        });
        assert_eq!(free, [3, 4]);
        assert!(is_deferred(&admission, "flood"), "behind its deferred jobs");
        assert!(!is_deferred(&admission, "trickle"), "the window has places");
        admission.observe(nothing());
        assert!(!is_deferred(&admission, "flood"));
    }

    #[test]
    fn without_a_window_only_tenants_with_limits_are_deferred() {
        let admission = AdmissionControl::new(0);
        let mut limited = TenantLimits::of("limited".parse().expect("a name"));
        limited.running_max = Some(1);
        admission.observe(QueueSnapshot {
            ready: [1_000_000; 2],
            limits: vec![limited],
            ..nothing()
        });
        assert!(is_deferred(&admission, "limited"));
        assert!(!is_deferred(&admission, "free"));
    }

    #[test]
    fn a_cancelled_submission_covers_jobs_submitted_before_its_cancellation() {
        let admission = AdmissionControl::new(4);
        let (mut head, _) = job("a");
        admission.observe(QueueSnapshot {
            cancelled: vec![CancelledBatch {
                batch: "b".to_owned(),
                tenant: Some("a".parse().expect("a name")),
                cancelled_at: head.submitted_at,
            }],
            ..nothing()
        });
        assert!(
            !admission.is_cancelled(&head),
            "it belongs to no submission"
        );
        head.batch = Some("b".to_owned());
        assert!(admission.is_cancelled(&head));
        let other = JobHead {
            tenant: "other".parse().expect("a name"),
            ..head.clone()
        };
        let later = JobHead {
            submitted_at: head.submitted_at + chrono::TimeDelta::seconds(1),
            ..head
        };
        assert!(!admission.is_cancelled(&other) && !admission.is_cancelled(&later));
    }

    #[test]
    fn high_priority_counts_as_a_minute_earlier() {
        let admission = AdmissionControl::new(1);
        assert!(!is_deferred(&admission, "a"));
        let (mut head, request) = job("a");
        let now = Utc::now();
        let rank = |head: &JobHead| {
            let deferral = admission.deferral(Tier::Small, head, &request, now);
            let deferral = deferral.expect("deferred");
            assert_eq!(deferral.tokens, 23);
            deferral.rank
        };
        let normal = rank(&head);
        head.priority = Priority::High;
        assert_eq!((normal - rank(&head)).num_seconds(), 60);
    }
}
