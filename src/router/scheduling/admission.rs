//! Whether a job that comes in goes to its tier's queue or is held.

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

use super::window::Window;

/// What a router knows of the tiers' queues and of tenants; looked at several times a second.
#[derive(Debug)]
pub(crate) struct AdmissionControl {
    /// Smallest window; 0 holds only jobs of tenants that are counted.
    window_min: u64,
    state: Mutex<State>,
    /// Reported whenever a job is held.
    first_held: Notify,
    /// True while as many jobs are held as may be.
    is_full: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    tiers: [TierState; 2],
    terms: HashMap<Tenant, TenantLimits>,
    cancelled: Vec<CancelledBatch>,
}

#[derive(Debug)]
struct TierState {
    window: Window,
    /// Jobs that may still go to the queue before the next look.
    credit: u64,
    /// Jobs that are held, as far as they were counted.
    held: u32,
    /// Whose they are: their next ones go behind them.
    tenants: HashSet<Tenant>,
}

impl Default for TierState {
    fn default() -> Self {
        Self {
            window: Window::new(0),
            credit: 0,
            held: 0,
            tenants: HashSet::new(),
        }
    }
}

/// What a look found.
#[derive(Debug)]
pub(in crate::router) struct QueueSnapshot {
    /// Jobs that wait in each tier's queues.
    pub ready: [u64; 2],
    /// Jobs that are held for each tier, as far as they were counted.
    pub held: [u32; 2],
    /// Whether this router's last release left no room in each tier's queue.
    pub filled: [bool; 2],
    pub tenants: Vec<(DeferredQueue, Tenant)>,
    pub terms: Vec<TenantLimits>,
    /// Submissions that were taken back lately.
    pub cancelled: Vec<CancelledBatch>,
}

fn place(tier: Tier) -> usize {
    usize::from(tier == Tier::Large)
}

/// What a job counts against its tenant's share and tokens: the prompt as estimated, and the answer as
/// asked for.
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
    /// Knows nothing yet: whatever fits the smallest window goes.
    pub(crate) fn new(window_min: u64) -> Self {
        let tier = || TierState {
            window: Window::new(window_min),
            credit: window_min,
            ..TierState::default()
        };
        Self {
            window_min,
            state: Mutex::new(State {
                tiers: [tier(), tier()],
                ..State::default()
            }),
            first_held: Notify::new(),
            is_full: AtomicBool::new(false),
        }
    }

    /// True while as many jobs are held as may be.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// Notes whether as many jobs are held as may be; true when that is news.
    pub(in crate::router) fn set_full(&self, is_full: bool) -> bool {
        self.is_full.swap(is_full, Ordering::Relaxed) != is_full
    }

    /// Waits until a job is held, or returns at once if one was since this was called last.
    pub(in crate::router) async fn any_held(&self) {
        self.first_held.notified().await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until when a job is held that is not to begin yet.
    pub(crate) fn until_start(
        head: &JobHead,
        request: &ChatRequest,
        now: DateTime<Utc>,
    ) -> Option<Deferral> {
        let start = head.not_before.filter(|start| *start > now)?;
        Some(Deferral::until(start, tokens(request)))
    }

    /// True for a job of a submission that was taken back before it came in.
    pub(crate) fn is_cancelled(&self, head: &JobHead) -> bool {
        if head.batch.is_none() {
            return false;
        }
        self.state().cancelled.iter().any(|batch| batch.means(head))
    }

    /// Whether a job is held until its tenant's turn.
    pub(crate) fn judge(
        &self,
        tier: Tier,
        head: &JobHead,
        request: &ChatRequest,
        now: DateTime<Utc>,
    ) -> Option<Deferral> {
        let mut state = self.state();
        let is_counted = state
            .terms
            .get(&head.tenant)
            .is_some_and(TenantLimits::is_limited);
        let open = &mut state.tiers[place(tier)];
        let is_behind = open.tenants.contains(&head.tenant);
        let is_full = self.window_min > 0 && open.credit == 0;
        if !(is_counted || is_behind || is_full) {
            open.credit = open.credit.saturating_sub(1);
            return None;
        }
        if !is_behind {
            open.tenants.insert(head.tenant.clone());
        }
        drop(state);
        self.first_held.notify_one();
        Some(Deferral::for_turn(now, head.priority, tokens(request)))
    }

    /// Takes in what a look found; returns the room in each tier's queue.
    pub(in crate::router) fn observe(&self, sight: QueueSnapshot) -> [u64; 2] {
        let mut state = self.state();
        let mut rooms = [0; 2];
        for (at, tier) in state.tiers.iter_mut().enumerate() {
            tier.held = sight.held[at];
            tier.tenants.clear();
            tier.window.observe(sight.ready[at], sight.filled[at]);
            rooms[at] = match self.window_min {
                0 => u64::MAX,
                _ => tier.window.size().saturating_sub(sight.ready[at]),
            };
            tier.credit = rooms[at];
        }
        for (queue, tenant) in sight.tenants {
            if let DeferredQueue::Tier(tier) = queue {
                state.tiers[place(tier)].tenants.insert(tenant);
            }
        }
        state.cancelled = sight.cancelled;
        state.terms = sight
            .terms
            .into_iter()
            .map(|terms| (terms.tenant.clone(), terms))
            .collect();
        rooms
    }

    /// What tenants are entitled to, as it was read last.
    pub(in crate::router) fn terms(&self) -> HashMap<Tenant, TenantLimits> {
        self.state().terms.clone()
    }

    /// Jobs that are held for a tier, as far as they were counted.
    pub(crate) fn deferred(&self, tier: Tier) -> u64 {
        self.state().tiers[place(tier)].held.into()
    }
}

#[cfg(test)]
mod tests {
    use crate::job::{JobId, Priority, RequestLimits, Submission};
    use crate::router::scheduling::admission::*;

    fn job(tenant: &str) -> (JobHead, ChatRequest) {
        let body = br#"{"prompt":"one two three","max_tokens":20}"#;
        let head = JobHead {
            id: JobId::now(),
            tenant: tenant.parse().expect("a name"),
            key: None,
            custom_id: None,
            batch: None,
            deadline: None,
            not_before: None,
            attempts_max: None,
            reply_to: None,
            priority: Priority::Normal,
            redrive_of: None,
            submitted_at: Utc::now(),
        };
        let request = Submission::parse(body, &RequestLimits::default()).expect("valid");
        (head, request.request)
    }

    fn is_deferred(holding: &AdmissionControl, tenant: &str) -> bool {
        let (head, request) = job(tenant);
        holding
            .judge(Tier::Small, &head, &request, Utc::now())
            .is_some()
    }

    fn nothing() -> QueueSnapshot {
        QueueSnapshot {
            ready: [0; 2],
            held: [0; 2],
            filled: [false; 2],
            tenants: Vec::new(),
            terms: Vec::new(),
            cancelled: Vec::new(),
        }
    }

    #[test]
    fn jobs_are_held_once_the_window_is_full_and_behind_their_own() {
        let holding = AdmissionControl::new(4);
        let held = (0..6).filter(|_| is_deferred(&holding, "flood")).count();
        assert_eq!(held, 2);
        let small = (
            DeferredQueue::Tier(Tier::Small),
            "flood".parse().expect("a name"),
        );
        let rooms = holding.observe(QueueSnapshot {
            ready: [1, 0],
            held: [2, 0],
            tenants: vec![small],
            ..nothing()
        });
        assert_eq!(rooms, [3, 4]);
        assert!(is_deferred(&holding, "flood"), "behind those that are held");
        assert!(!is_deferred(&holding, "trickle"), "there is room");
        holding.observe(nothing());
        assert!(!is_deferred(&holding, "flood"));
    }

    #[test]
    fn jobs_of_counted_tenants_are_always_held_and_others_never_without_a_window() {
        let holding = AdmissionControl::new(0);
        let mut counted = TenantLimits::of("counted".parse().expect("a name"));
        counted.running_max = Some(1);
        holding.observe(QueueSnapshot {
            ready: [1_000_000; 2],
            terms: vec![counted],
            ..nothing()
        });
        assert!(is_deferred(&holding, "counted"));
        assert!(!is_deferred(&holding, "free"));
    }

    #[test]
    fn what_was_taken_back_before_it_came_in_is_known() {
        let holding = AdmissionControl::new(4);
        let (mut head, _) = job("a");
        holding.observe(QueueSnapshot {
            cancelled: vec![CancelledBatch {
                batch: "b".to_owned(),
                tenant: Some("a".parse().expect("a name")),
                cancelled_at: head.submitted_at,
            }],
            ..nothing()
        });
        assert!(!holding.is_cancelled(&head), "it is of no submission");
        head.batch = Some("b".to_owned());
        assert!(holding.is_cancelled(&head));
        let other = JobHead {
            tenant: "other".parse().expect("a name"),
            ..head.clone()
        };
        let later = JobHead {
            submitted_at: head.submitted_at + chrono::TimeDelta::seconds(1),
            ..head
        };
        assert!(!holding.is_cancelled(&other) && !holding.is_cancelled(&later));
    }

    #[test]
    fn high_priority_counts_as_a_minute_earlier() {
        let holding = AdmissionControl::new(1);
        assert!(!is_deferred(&holding, "a"));
        let (mut head, request) = job("a");
        let now = Utc::now();
        let rank = |head: &JobHead| {
            let hold = holding.judge(Tier::Small, head, &request, now);
            let hold = hold.expect("held");
            assert_eq!(hold.tokens, 23);
            hold.rank
        };
        let normal = rank(&head);
        head.priority = Priority::High;
        assert_eq!((normal - rank(&head)).num_seconds(), 60);
    }
}
