//! Actors on shared jobs: routers, workers, and one that ends the rest; [`crate::maintenance`] has the others.

use std::{collections::HashMap, time::Duration};

use promptyard::{
    job::{CacheKey, JobId, JobRecord, Tier},
    store::{
        Admission, AdmissionDecision, Admitted, AttemptOutcome, Claim, Claimant, Claimed, Released,
        Settled, Settlement, Store,
    },
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::support::store::{LONG, answer, claimant, heartbeat, reason, settlement};

/// Calls of each actor.
pub const STEPS: usize = 30;
pub const ATTEMPTS_MAX: u32 = 4;

/// What an actor saw in the outcomes of its calls.
#[derive(Debug, Default)]
pub struct Observed {
    pub runs: Vec<Run>,
    pub words: Vec<Said>,
    /// Jobs that this actor's calls ended.
    pub ended: Vec<JobId>,
    /// Terminal records of any actor.
    pub terminal: Vec<JobRecord>,
    /// Jobs that took over: they have a message, although they may still wait.
    pub taken_over: Vec<JobId>,
    /// Cancelled jobs, each once.
    pub cancelled: Vec<JobId>,
    /// Jobs that a router deferred.
    pub deferred: Vec<JobId>,
    /// Jobs named in release calls, and those released.
    pub release_calls: Vec<JobId>,
    pub released: Vec<JobId>,
    /// Jobs of a tier that were rescued as stuck.
    pub lost: Vec<JobId>,
}

impl Observed {
    pub fn hear(&mut self, part: Self) {
        self.runs.extend(part.runs);
        self.words.extend(part.words);
        self.ended.extend(part.ended);
        self.terminal.extend(part.terminal);
        self.taken_over.extend(part.taken_over);
        self.cancelled.extend(part.cancelled);
        self.deferred.extend(part.deferred);
        self.release_calls.extend(part.release_calls);
        self.released.extend(part.released);
        self.lost.extend(part.lost);
    }
}

#[derive(Clone, Debug)]
pub struct Run {
    pub job: JobId,
    pub attempt: u32,
    pub poison_candidate: bool,
    pub last: bool,
    pub worker: String,
}

/// A settlement and whether it was committed.
#[derive(Debug)]
pub struct Said {
    pub job: JobId,
    pub attempt: u32,
    pub outcome: &'static str,
    pub text: String,
    pub is_committed: bool,
}

/// One actor, with its own random numbers.
pub struct Actor {
    pub store: Store,
    pub chance: StdRng,
    name: String,
    pub jobs: Vec<Admission>,
    pub observed: Observed,
}

impl Actor {
    pub fn new(store: &Store, name: String, seed: u64, jobs: &[Admission]) -> Self {
        Self {
            store: store.clone(),
            chance: StdRng::seed_from_u64(seed),
            name,
            jobs: jobs.to_vec(),
            observed: Observed::default(),
        }
    }

    pub fn lease(&mut self) -> Duration {
        if self.chance.random_bool(0.5) {
            LONG
        } else {
            Duration::ZERO
        }
    }

    pub fn job(&mut self) -> &Admission {
        let at = self.chance.random_range(0..self.jobs.len());
        &self.jobs[at]
    }

    pub fn see(&mut self, record: &JobRecord) {
        if record.state.is_terminal() {
            self.observed.terminal.push(record.clone());
        }
    }

    async fn admit(&mut self, batch: &[Admission], lease: Duration) -> Vec<Admitted> {
        let outcomes = self.store.admit(batch, lease).await.unwrap();
        for (admission, outcome) in batch.iter().zip(&outcomes) {
            match outcome {
                Admitted::Deferred => self.observed.deferred.push(admission.head.id),
                Admitted::Ended(record) => {
                    self.observed.ended.push(record.id);
                    self.see(record);
                }
                Admitted::Known(record) => self.see(record),
                _ => {}
            }
        }
        outcomes
    }

    async fn claim(&mut self, claimant: &Claimant, claims: &[Claim]) -> Vec<Run> {
        let outcomes = self.store.claim(claimant, claims).await.unwrap();
        let mut runs = Vec::new();
        for (claim, outcome) in claims.iter().zip(outcomes) {
            match outcome {
                Claimed::Run {
                    attempt,
                    poison_candidate,
                    last,
                } => runs.push(Run {
                    job: claim.job,
                    attempt,
                    poison_candidate,
                    last,
                    worker: claimant.worker.clone(),
                }),
                Claimed::Ended(record) => self.see(&record),
                Claimed::Busy | Claimed::Elsewhere(_) | Claimed::Unknown => {}
            }
        }
        self.observed.runs.extend(runs.iter().cloned());
        runs
    }

    /// Settles attempts, with answers or at random.
    async fn settle(&mut self, runs: &[Run], all_succeed: bool) {
        // A worker has one attempt of a job: the latest.
        let deferred: HashMap<JobId, u32> = runs.iter().map(|run| (run.job, run.attempt)).collect();
        let asked: Vec<(JobId, u32)> = deferred
            .iter()
            .map(|(job, attempt)| (*job, *attempt))
            .collect();
        let gone = self.store.superseded(&asked).await.unwrap();
        let mut settlements = Vec::new();
        for run in runs {
            let text = format!("{} of {} by {}", run.attempt, run.job, self.name);
            let kind = if all_succeed {
                0
            } else {
                self.chance.random_range(0..12)
            };
            let outcome = match kind {
                // Some learn of the cancellation, some run to their end.
                _ if gone.contains(&run.job)
                    && deferred[&run.job] == run.attempt
                    && kind % 2 == 0 =>
                {
                    AttemptOutcome::superseded(Some(&answer(&text)))
                }
                0..=3 => AttemptOutcome::Succeeded(answer(&text)),
                4..=5 if !run.last => AttemptOutcome::Retry(reason("engine_unavailable")),
                6 => AttemptOutcome::Returned,
                7 => AttemptOutcome::Escalate {
                    to: Tier::Large,
                    reason: reason("low_confidence"),
                    answer: self
                        .chance
                        .random_bool(0.5)
                        .then(|| Box::new(answer(&text))),
                },
                8 => {
                    let written = self.chance.random_bool(0.5);
                    let written = written.then(|| Box::new(answer(&text)));
                    AttemptOutcome::Expired(reason("deadline_passed"), written)
                }
                9..=10 => AttemptOutcome::RetryIsolated(reason("engine_crashed")),
                _ => AttemptOutcome::AttemptsExhausted(reason("engine_crashed")),
            };
            let of_job = self
                .jobs
                .iter()
                .find(|admission| admission.head.id == run.job);
            settlements.push(Settlement {
                cache_key: of_job.and_then(key_of),
                reusable: self.chance.random_bool(0.7),
                ..settlement(run.job, run.attempt, outcome)
            });
        }
        let outcomes = self.store.settle(&settlements, LONG).await.unwrap();
        for (settlement, outcome) in settlements.iter().zip(outcomes) {
            let text = format!(
                "{} of {} by {}",
                settlement.attempt, settlement.job, self.name
            );
            self.observed.words.push(Said {
                job: settlement.job,
                attempt: settlement.attempt,
                outcome: outcome_of(&settlement.outcome),
                text,
                is_committed: matches!(outcome, Settled::Committed { .. }),
            });
            if let Settled::Committed { record, shared } = outcome {
                for record in shared.iter().chain([&*record]) {
                    if record.state.is_terminal() {
                        self.observed.ended.push(record.id);
                    }
                    self.see(record);
                }
            }
        }
    }

    /// Admits random jobs repeatedly.
    pub async fn route(mut self) -> Observed {
        for _ in 0..STEPS {
            let mut batch = Vec::new();
            for _ in 0..self.chance.random_range(1..8) {
                let mut admission = self.job().clone();
                if self.chance.random_bool(0.2) {
                    admission.decision = AdmissionDecision::Queue;
                }
                batch.push(admission);
            }
            let lease = self.lease();
            self.admit(&batch, lease).await;
        }
        self.observed
    }

    /// Claims and settles; sometimes loses an attempt, settles twice or stops its heartbeats.
    pub async fn work(mut self) -> Observed {
        let mut running: Vec<Run> = Vec::new();
        for _ in 0..STEPS {
            let tier = if self.chance.random_bool(0.3) {
                Tier::Large
            } else {
                Tier::Small
            };
            let claimant = Claimant {
                tier,
                lease: self.lease(),
                attempts_max: ATTEMPTS_MAX,
                ..claimant(&format!("{}-{tier}", self.name))
            };
            if self.chance.random_bool(0.2) {
                let beat = Claimant {
                    lease: self.lease(),
                    ..claimant.clone()
                };
                self.store.heartbeat(&heartbeat(beat)).await.unwrap();
            }
            let mut claims = Vec::new();
            for _ in 0..self.chance.random_range(1..8) {
                claims.push(Claim {
                    job: self.job().head.id,
                    redelivered: self.chance.random_bool(0.3),
                });
            }
            let runs = self.claim(&claimant, &claims).await;
            running.extend(runs);
            let until = self.chance.random_range(0..=running.len());
            let settled: Vec<Run> = running.drain(..until).collect();
            self.settle(&settled, false).await;
            // Some are settled a second time, much later.
            running.extend(settled.into_iter().filter(|_| self.chance.random_bool(0.1)));
            running.retain(|_| !self.chance.random_bool(0.05));
        }
        self.observed
    }

    /// Ends all jobs: runs those that do not wait; those that wait take over.
    pub async fn drain(mut self, taken_over: &[JobId]) -> Observed {
        let jobs = self.jobs.clone();
        for _ in 0..jobs.len() {
            let mut free: HashMap<JobId, Tier> = HashMap::new();
            let all: Vec<JobId> = jobs.iter().map(|admission| admission.head.id).collect();
            let mut messages = self.release(&all).await;
            messages.extend(self.rescue(1000).await);
            for message in &messages {
                if let Released::Tier(routed) = message {
                    free.insert(routed.job.head.id, routed.tier);
                }
            }
            let known = self.admit(&jobs, Duration::ZERO).await;
            for (admission, outcome) in jobs.iter().zip(known) {
                match outcome {
                    Admitted::Known(record) if !record.state.is_terminal() => {
                        free.insert(record.id, record.tier.unwrap_or(Tier::Small));
                    }
                    Admitted::Routed => {
                        free.insert(admission.head.id, Tier::Small);
                    }
                    Admitted::Waiting if taken_over.contains(&admission.head.id) => {
                        free.insert(admission.head.id, Tier::Small);
                    }
                    _ => {}
                }
            }
            for routed in self
                .store
                .take_over_flights(100, Duration::ZERO)
                .await
                .unwrap()
            {
                free.insert(routed.job.head.id, routed.tier);
            }
            if free.is_empty() {
                return self.observed;
            }
            for tier in Tier::ALL {
                let claimant = Claimant {
                    tier,
                    attempts_max: ATTEMPTS_MAX,
                    ..claimant(&format!("{}-{tier}", self.name))
                };
                let of_tier = free.iter().filter(|(_, of)| **of == tier);
                let claims: Vec<Claim> = of_tier
                    .map(|(job, _)| Claim {
                        job: *job,
                        redelivered: true,
                    })
                    .collect();
                let runs = self.claim(&claimant, &claims).await;
                self.settle(&runs, true).await;
            }
        }
        self.observed
    }
}

pub fn key_of(admission: &Admission) -> Option<CacheKey> {
    match &admission.decision {
        AdmissionDecision::Route(route) => route.cache_key,
        _ => None,
    }
}

fn outcome_of(outcome: &AttemptOutcome) -> &'static str {
    match outcome {
        AttemptOutcome::Succeeded(_) | AttemptOutcome::Reused(_) => "succeeded",
        AttemptOutcome::Failed(_) | AttemptOutcome::AttemptsExhausted(_) => "failed",
        AttemptOutcome::Expired(..) => "expired",
        AttemptOutcome::Cancelled(..) => "cancelled",
        AttemptOutcome::Retry(_) => "retried",
        AttemptOutcome::RetryIsolated(_) => "retry isolated",
        AttemptOutcome::Escalate { .. } => "escalated",
        AttemptOutcome::Returned => "returned",
    }
}
