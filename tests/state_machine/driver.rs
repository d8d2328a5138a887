//! Does an operation to a ledger and to the model, and compares what came of it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use promptyard::{
    job::{JobHead, JobId, JobRecord, JobState, Tenant, Tier},
    store::{Admission, Admitted, Claim, Claimant, Claimed, Settled, Settlement, Store, Verdict},
};
use proptest::{
    prelude::*,
    test_runner::{TestCaseError, TestCaseResult},
};

use crate::{
    fixture::{LONG, answer, claimant, heartbeat, now, reason, settlement},
    model::{Admit, Lease, Model, Take},
    operations::{End, Entrant, Operation, Which, Who, Word},
};

/// How far ahead a near deadline is.
pub const NEAR: TimeDelta = TimeDelta::milliseconds(4);

/// One sequence of operations, with tenants of its own.
pub struct Case {
    pub store: Store,
    pub model: Model,
    pub tenants: [Tenant; 2],
    /// What each job asked.
    pub prompts: HashMap<JobId, u8>,
    /// All records as they were after the last operation.
    pub records: HashMap<JobId, JobRecord>,
    /// Answers given so far; their texts are numbered.
    answers: u32,
    /// What was come upon, and how often.
    pub seen: BTreeMap<&'static str, u64>,
}

fn span(lease: Lease) -> Duration {
    match lease {
        Lease::Long => LONG,
        Lease::None => Duration::ZERO,
    }
}

/// Takes the jobs that a failed sequence left waiting out of the way of the next one's promotions.
pub async fn clear_waiting(store: &Store) {
    for _ in 0..100 {
        let promoted = store.promote_waiting(1000, LONG).await.unwrap();
        let end = |job: JobHead| (job, JobState::Failed, reason("cleared"));
        let endings: Vec<_> = promoted
            .into_iter()
            .map(|routed| end(routed.job.head))
            .collect();
        if endings.is_empty() {
            return;
        }
        store.end(&endings).await.unwrap();
    }
}

impl Case {
    pub fn new(store: Store) -> Self {
        let name = JobId::now().0.simple().to_string();
        let tenants = ["a", "b"].map(|letter| format!("{letter}-{name}").parse().unwrap());
        Self {
            store,
            model: Model::default(),
            tenants,
            prompts: HashMap::new(),
            records: HashMap::new(),
            answers: 0,
            seen: BTreeMap::new(),
        }
    }

    /// A worker of this sequence alone: signs of life outlast it.
    pub fn worker(&self, number: u8, tier: Tier, lease: Duration) -> Claimant {
        Claimant {
            tier,
            lease,
            ..claimant(&format!("{}-{number}-{tier}", self.tenants[0]))
        }
    }

    pub fn note(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    pub async fn apply(&mut self, operation: &Operation) -> TestCaseResult {
        let is_changed = match operation {
            Operation::Admit(entrants, lease) => self.admit(entrants, *lease).await?,
            Operation::Claim {
                worker,
                tier,
                jobs,
                lease,
            } => {
                let jobs: Vec<Claim> = jobs
                    .iter()
                    .map(|(pick, redelivered)| Claim {
                        job: self.pick(*pick, |state| !state.is_terminal()),
                        redelivered: *redelivered,
                    })
                    .collect();
                let first = self.model.jobs.get(&jobs[0].job).and_then(|job| job.tier);
                let tier = tier.or(first).unwrap_or(Tier::Small);
                self.claim(&self.worker(*worker, tier, span(*lease)), &jobs, *lease)
                    .await?
            }
            Operation::Settle(word) => self.settle(word).await?,
            Operation::End { who, expired } => self.end(*who, *expired).await?,
            Operation::Beat {
                worker,
                tier,
                lease,
            } => {
                let claimant = self.worker(*worker, *tier, span(*lease));
                self.model.beat(&claimant.worker, *lease);
                self.store.beat(&heartbeat(claimant)).await.unwrap();
                false
            }
            Operation::Promote { limit, lease } => {
                self.promote(*limit, *lease).await?;
                false
            }
            Operation::Pass => {
                self.pass().await;
                false
            }
        };
        self.model.end_operation();
        self.check(is_changed).await
    }

    async fn admit(&mut self, entrants: &[Entrant], lease: Lease) -> Result<bool, TestCaseError> {
        let (batch, prompts): (Vec<Admission>, Vec<u8>) = entrants
            .iter()
            .map(|entrant| self.admission(entrant))
            .unzip();
        let outcomes = self.store.admit(&batch, span(lease)).await.unwrap();
        prop_assert_eq!(outcomes.len(), batch.len());
        let mut is_changed = false;
        for ((admission, outcome), prompt) in batch.iter().zip(&outcomes).zip(prompts) {
            let was_queued = self.model.jobs.contains_key(&admission.head.id);
            let expected = self.model.admit(admission, lease);
            let found = match outcome {
                Admitted::Queued => Admit::Queued,
                Admitted::Routed => Admit::Routed,
                Admitted::Held => unreachable!("no admission here asks for it"),
                Admitted::Waiting => Admit::Waiting,
                Admitted::Ended(record) => Admit::Ended(record.id),
                Admitted::Known(record) => Admit::Known(record.id),
                Admitted::KeyReused { owner } => Admit::KeyReused(*owner),
            };
            prop_assert_eq!(found, expected, "{:?} in {:?}", admission, batch);
            if let Admitted::Ended(record) | Admitted::Known(record) = outcome {
                self.agrees(record)?;
            }
            if self.model.jobs.contains_key(&admission.head.id) {
                self.prompts.entry(admission.head.id).or_insert(prompt);
            }
            let is_written = !matches!(expected, Admit::Known(_) | Admit::KeyReused(_));
            is_changed |= is_written;
            self.note(match outcome {
                Admitted::Queued => "admit: queued",
                Admitted::Routed if was_queued => "admit: moved",
                Admitted::Routed => "admit: routed",
                Admitted::Held => "admit: held",
                Admitted::Waiting => "admit: waiting",
                Admitted::Ended(record) if record.answer.is_some() => "admit: hit",
                Admitted::Ended(_) => "admit: ended",
                Admitted::Known(_) => "admit: known",
                Admitted::KeyReused { .. } => "admit: key reused",
            });
        }
        Ok(is_changed)
    }

    pub async fn claim(
        &mut self,
        claimant: &Claimant,
        claims: &[Claim],
        lease: Lease,
    ) -> Result<bool, TestCaseError> {
        let before = now();
        let outcomes = self.store.claim(claimant, claims).await.unwrap();
        let after = Utc::now();
        prop_assert_eq!(outcomes.len(), claims.len());
        let (mut seen, mut is_changed) = (HashSet::new(), false);
        for (claim, outcome) in claims.iter().zip(&outcomes) {
            let known = self.model.jobs.get(&claim.job);
            let was_open = known.is_some_and(|job| job.is_open());
            let deadline = known.and_then(|job| job.head.deadline);
            let flags = (
                !seen.insert(claim.job),
                is_overdue(deadline, before, after, outcome),
            );
            let expected = self.model.claim(claimant, *claim, lease, flags);
            let found = match outcome {
                Claimed::Run {
                    attempt,
                    suspect,
                    last,
                } => Take::Run {
                    attempt: *attempt,
                    suspect: *suspect,
                    last: *last,
                },
                Claimed::Busy => Take::Busy,
                Claimed::Elsewhere(tier) => Take::Elsewhere(*tier),
                Claimed::Ended(record) => Take::Ended(record.id),
                Claimed::Unknown => Take::Unknown,
            };
            prop_assert_eq!(found, expected, "{:?} in {:?}", claim, claims);
            let code = match outcome {
                Claimed::Ended(record) => {
                    self.agrees(record)?;
                    record
                        .reason
                        .as_ref()
                        .map_or("", |reason| reason.code.as_str())
                }
                _ => "",
            };
            is_changed |= was_open && matches!(found, Take::Run { .. } | Take::Ended(_));
            self.note(match (outcome, code) {
                (Claimed::Run { last: true, .. }, _) => "claim: last",
                (Claimed::Run { suspect: true, .. }, _) => "claim: suspect",
                (Claimed::Run { .. }, _) => "claim: run",
                (Claimed::Busy, _) => "claim: busy",
                (Claimed::Elsewhere(_), _) => "claim: elsewhere",
                (Claimed::Ended(_), "deadline_passed") if was_open => "claim: expired",
                (Claimed::Ended(_), "attempts_spent") if was_open => "claim: spent",
                (Claimed::Ended(_), _) => "claim: ended before",
                (Claimed::Unknown, _) => "claim: unknown",
            });
        }
        Ok(is_changed)
    }

    pub async fn settle(&mut self, word: &Word) -> Result<bool, TestCaseError> {
        let id = self.pick(word.pick, |state| state == JobState::Running);
        let job = self.model.jobs.get(&id);
        let latest = job.map_or(1, |job| u32::try_from(job.attempts.len()).unwrap());
        let attempt = match word.attempt {
            Which::Latest => latest,
            Which::Older => latest.saturating_sub(1),
            Which::Newer => latest + 1,
        };
        self.answers += 1;
        let generated = answer(&format!("answer {}", self.answers));
        let (verdict, keeps_lead) = match word.end {
            End::Succeeded => (Verdict::Succeeded(generated), false),
            End::Failed => (Verdict::Failed(reason("unservable")), false),
            End::Spent => (Verdict::Spent(reason("engine_crashed")), false),
            End::Expired => (Verdict::Expired(reason("deadline_passed"), None), false),
            End::Retry => (Verdict::Retry(reason("engine_unavailable")), false),
            End::Escalate {
                answered,
                keeps_lead,
            } => {
                let answer = answered.then(|| Box::new(generated));
                let reason = reason("unsure");
                (
                    Verdict::Escalate {
                        to: Tier::Large,
                        reason,
                        answer,
                    },
                    keeps_lead,
                )
            }
            End::Returned => (Verdict::Returned, false),
        };
        let settlement = Settlement {
            // An escalated job that goes on leading its entry leaves the cache alone.
            cache_key: job.and_then(|job| job.cache_key).filter(|_| !keeps_lead),
            reusable: word.reusable,
            ..settlement(id, attempt, verdict)
        };
        let batch = vec![settlement; 1 + usize::from(word.twice)];
        let outcomes = self.store.settle(&batch, span(word.ttl)).await.unwrap();
        prop_assert_eq!(outcomes.len(), batch.len());
        let mut is_changed = false;
        for (settlement, outcome) in batch.iter().zip(&outcomes) {
            let expected = self.model.settle(settlement, word.ttl);
            is_changed |= expected.is_some();
            match (outcome, expected) {
                (Settled::Committed { record, shared }, Some(expected)) => {
                    prop_assert_eq!(record.id, id);
                    let settled: BTreeSet<JobId> = shared.iter().map(|record| record.id).collect();
                    prop_assert_eq!(settled, expected);
                    for record in shared.iter().chain([&**record]) {
                        self.agrees(record)?;
                    }
                    if !shared.is_empty() {
                        self.note("settle: shared");
                    }
                    if record.answer.is_some() && record.reason.is_some() {
                        self.note("settle: fell back");
                    }
                }
                (Settled::Fenced, None) => self.note("settle: fenced"),
                (found, expected) => prop_assert!(
                    false,
                    "{:?} came to {:?} instead of {:?}",
                    settlement,
                    found,
                    expected
                ),
            }
        }
        Ok(is_changed)
    }

    async fn end(&mut self, who: Who, expired: bool) -> Result<bool, TestCaseError> {
        let (head, _) = self.head_of(who, 0);
        let state = if expired {
            JobState::Expired
        } else {
            JobState::Failed
        };
        let was_open = |model: &Model, id| model.jobs.get(&id).is_none_or(|job| job.is_open());
        let open: HashSet<JobId> = self
            .model
            .jobs
            .keys()
            .copied()
            .filter(|id| was_open(&self.model, *id))
            .collect();
        let ending = (head.clone(), state, reason("delivery_limit"));
        let records = self.store.end(&[ending]).await.unwrap();
        let (id, is_known) = self.model.end(&head, state, "delivery_limit");
        prop_assert_eq!(records.len(), 1);
        prop_assert_eq!(records[0].id, id);
        self.agrees(&records[0])?;
        let is_ended = !is_known || open.contains(&id) && !self.model.jobs[&id].is_open();
        self.note(match (is_known, is_ended) {
            (false, _) => "end: unknown",
            (true, true) => "end: ended",
            (true, false) => "end: let be",
        });
        Ok(is_ended)
    }

    pub async fn promote(&mut self, limit: usize, lease: Lease) -> Result<usize, TestCaseError> {
        let free = self.model.promotable();
        let promoted = self
            .store
            .promote_waiting(limit, span(lease))
            .await
            .unwrap();
        prop_assert_eq!(
            promoted.len(),
            limit.min(free.len()),
            "{:?} of {:?}",
            promoted,
            free
        );
        let mut keys = HashSet::new();
        for routed in &promoted {
            let id = routed.job.head.id;
            let key = free.get(&id).copied();
            prop_assert!(key.is_some(), "{} does not wait first: {:?}", id, free);
            prop_assert_eq!(routed.cache_key, key);
            prop_assert_eq!(Some(routed.tier), self.model.jobs[&id].tier);
            prop_assert_eq!(&routed.job.head, &self.model.jobs[&id].head);
            prop_assert!(keys.insert(key), "two for one key");
            self.model.promote(id, key.unwrap(), lease);
            self.note("promote: one");
        }
        Ok(promoted.len())
    }

    /// Sleeps until every deadline that is near is over.
    async fn pass(&self) {
        let now = Utc::now();
        let deadlines = self.model.jobs.values().filter_map(|job| job.head.deadline);
        let near = deadlines
            .map(|deadline| deadline - now)
            .filter(|left| *left <= NEAR)
            .max();
        if let Some(left) = near.and_then(|left| left.to_std().ok()) {
            tokio::time::sleep(left + Duration::from_millis(1)).await;
        }
    }
}

/// Whether a deadline had passed when the ledger looked at it, between two instants; where that cannot
/// be told, the outcome tells.
fn is_overdue(
    deadline: Option<DateTime<Utc>>,
    before: DateTime<Utc>,
    after: DateTime<Utc>,
    outcome: &Claimed,
) -> bool {
    let Some(deadline) = deadline else {
        return false;
    };
    if deadline > before && deadline <= after {
        let expired = |record: &JobRecord| {
            record
                .reason
                .as_ref()
                .is_some_and(|reason| reason.code == "deadline_passed")
        };
        return matches!(outcome, Claimed::Ended(record) if expired(record));
    }
    deadline <= before
}
