//! Applies each operation to a database and to the model, and compares the outcomes.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use promptyard::{
    job::{JobId, JobRecord, JobState, Tenant, Tier},
    store::{Admission, Admitted, CancelFilter, Claim, Claimant, Claimed, Store, TenantLimits},
};
use proptest::{
    prelude::*,
    test_runner::{TestCaseError, TestCaseResult},
};

use crate::{
    model::{Admit, Lease, Model, Take},
    operations::{Cancelled, Entrant, Operation, Who},
    support::store::{LONG, claimant, heartbeat, reason},
};

/// How far ahead a near deadline is.
pub const NEAR: TimeDelta = TimeDelta::milliseconds(4);
/// Roles with one leader at a time, and the candidates.
pub const ROLES: [&str; 2] = ["rescue", "release"];
pub const HOLDERS: [&str; 2] = ["a", "b"];

/// One sequence of operations, with tenants of its own.
pub struct Case {
    pub store: Store,
    pub model: Model,
    pub tenants: [Tenant; 2],
    /// The prompt of each job.
    pub prompts: HashMap<JobId, u8>,
    /// All records as they were after the last operation.
    pub records: HashMap<JobId, JobRecord>,
    /// Answers given so far; their texts are numbered.
    pub answers: u32,
    /// Jobs that other sequences left deferred, for each queue.
    pub deferred_before: [u32; 3],
    /// The leader of each role, and whether its lease holds.
    pub leaders: HashMap<&'static str, (&'static str, Lease)>,
    /// How often each kind of outcome was seen.
    pub seen: BTreeMap<&'static str, u64>,
}

pub fn span(lease: Lease) -> Duration {
    match lease {
        Lease::Long => LONG,
        Lease::None => Duration::ZERO,
    }
}

/// Cancels waiting jobs and ends leaderships that a failed sequence left.
pub async fn clear(store: &Store) {
    for role in ROLES {
        for holder in HOLDERS {
            store
                .acquire_leadership(role, holder, Duration::ZERO)
                .await
                .unwrap();
        }
    }
    for _ in 0..100 {
        let taken_over = store.take_over_flights(1000, LONG).await.unwrap();
        let ids: Vec<JobId> = taken_over.iter().map(|routed| routed.job.head.id).collect();
        if ids.is_empty() {
            return;
        }
        let filter = CancelFilter::Jobs(None, ids);
        store.cancel(&filter, 1000).await.unwrap();
    }
}

impl Case {
    /// The second tenant has a quota.
    pub async fn new(store: Store) -> Self {
        let name = JobId::now().0.simple().to_string();
        let tenants = ["a", "b"].map(|letter| format!("{letter}-{name}").parse().unwrap());
        let [_, with_quota]: &[Tenant; 2] = &tenants;
        let quota = TenantLimits {
            tokens_per_minute: Some(100),
            ..TenantLimits::of(with_quota.clone())
        };
        store.set_tenant(&quota).await.unwrap();
        let deferred_before = store.deferred_counts(u32::MAX).await.unwrap();
        Self {
            deferred_before,
            leaders: HashMap::new(),
            store,
            model: Model::default(),
            tenants,
            prompts: HashMap::new(),
            records: HashMap::new(),
            answers: 0,
            seen: BTreeMap::new(),
        }
    }

    /// A worker of this sequence only, since heartbeats outlast it.
    pub fn worker(&self, number: u8, tier: Tier, lease: Duration) -> Claimant {
        Claimant {
            tier,
            lease,
            ..claimant(&format!("{}-{number}-{tier}", self.tenants[0]))
        }
    }

    /// The time as the store reads it.
    pub fn now(&self) -> DateTime<Utc> {
        self.store.clock().now()
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
                        job: self.pick(*pick, |job| job.is_open()),
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
            Operation::Heartbeat {
                worker,
                tier,
                lease,
            } => {
                let claimant = self.worker(*worker, *tier, span(*lease));
                self.model.heartbeat(&claimant.worker, *lease);
                self.store.heartbeat(&heartbeat(claimant)).await.unwrap();
                false
            }
            Operation::TakeOver { limit, lease } => {
                self.take_over(*limit, *lease).await?;
                false
            }
            Operation::Cancel { of, tenant, limit } => {
                let tenant = tenant.map(|at| self.tenants[usize::from(at)].clone());
                let filter = match of {
                    Cancelled::Batch(number) => CancelFilter::Batch(tenant, self.batch(*number)),
                    Cancelled::Jobs(picks) => {
                        let ids = picks
                            .iter()
                            .map(|pick| self.pick(*pick, |job| job.is_open()));
                        CancelFilter::Jobs(tenant, ids.collect())
                    }
                };
                self.cancel(&filter, *limit).await?
            }
            Operation::Release { jobs, again } => {
                let is_deferred = |id| match again {
                    true => self.model.deferred.contains_key(&id),
                    false => self.model.is_unreleased(id),
                };
                let ids = jobs
                    .iter()
                    .map(|pick| self.pick(*pick, |job| is_deferred(job.head.id)));
                let (mut seen, mut ids) = (HashSet::new(), ids.collect::<Vec<JobId>>());
                // A repeated release names each job once.
                ids.retain(|id| seen.insert(*id) || !*again);
                self.release(&ids, *again).await?;
                false
            }
            Operation::Rescue { is_empty, most } => self.rescue(*is_empty, *most).await?.1,
            Operation::Lead {
                role,
                holder,
                lease,
            } => {
                self.acquire_leadership(usize::from(*role), usize::from(*holder), *lease)
                    .await?;
                false
            }
            Operation::StealRound { each } => {
                self.look(*each).await?;
                false
            }
            Operation::Pass => {
                self.pass();
                false
            }
        };
        self.model.end_operation();
        self.check(is_changed).await
    }

    async fn admit(&mut self, entrants: &[Entrant], lease: Lease) -> Result<bool, TestCaseError> {
        let mut named: Vec<(Admission, u8)> = Vec::new();
        for entrant in entrants {
            named.push(self.admission(entrant, named.last()));
        }
        // Postgres admits repeats within a batch after all other jobs: a repeat that moves its job then
        // waits for an identical job behind it instead of leading it.
        let mut ids = HashSet::new();
        let (mut named, repeats): (Vec<_>, Vec<_>) = named
            .into_iter()
            .partition(|(one, _)| ids.insert(one.head.id));
        named.extend(repeats);
        let (batch, prompts): (Vec<Admission>, Vec<u8>) = named.into_iter().unzip();
        let outcomes = self.store.admit(&batch, span(lease)).await.unwrap();
        prop_assert_eq!(outcomes.len(), batch.len());
        let mut is_changed = false;
        for ((admission, outcome), prompt) in batch.iter().zip(&outcomes).zip(prompts) {
            let was_queued = self.model.jobs.contains_key(&admission.head.id);
            let was_held = self.model.is_unreleased(admission.head.id);
            let expected = self.model.admit(admission, lease);
            let found = match outcome {
                Admitted::Queued => Admit::Queued,
                Admitted::Routed => Admit::Routed,
                Admitted::Deferred => Admit::Deferred,
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
                Admitted::Deferred if was_held => "admit: still deferred",
                Admitted::Deferred if was_queued => "admit: moved and deferred",
                Admitted::Deferred => "admit: deferred",
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
        let before = self.now();
        let outcomes = self.store.claim(claimant, claims).await.unwrap();
        let after = self.now();
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
                    poison_candidate,
                    last,
                } => Take::Run {
                    attempt: *attempt,
                    poison_candidate: *poison_candidate,
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
                (
                    Claimed::Run {
                        poison_candidate: true,
                        ..
                    },
                    _,
                ) => "claim: poison candidate",
                (Claimed::Run { .. }, _) => "claim: run",
                (Claimed::Busy, _) => "claim: busy",
                (Claimed::Elsewhere(_), _) => "claim: elsewhere",
                (Claimed::Ended(_), "deadline_passed") if was_open => "claim: expired",
                (Claimed::Ended(_), "attempts_spent") if was_open => "claim: attempts exhausted",
                (Claimed::Ended(_), _) => "claim: ended before",
                (Claimed::Unknown, _) => "claim: unknown",
            });
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
            (true, false) => "end: unchanged",
        });
        Ok(is_ended)
    }

    /// Moves the store's clock past every deadline that is near.
    fn pass(&self) {
        let now = self.now();
        let deadlines = self.model.jobs.values().filter_map(|job| job.head.deadline);
        let near = deadlines
            .map(|deadline| deadline - now)
            .filter(|left| *left <= NEAR)
            .max();
        if let Some(left) = near.and_then(|left| left.to_std().ok()) {
            self.store.clock().advance(left + Duration::from_millis(1));
        }
    }
}

/// Whether a deadline had passed when the database checked it, between two instants; if it lies between
/// them, the outcome decides.
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
