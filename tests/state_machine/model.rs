//! A reference model of the job database, written from its documentation only.

use std::collections::{BTreeMap, HashMap, HashSet};

use promptyard::{
    job::{AnswerSource, CacheKey, JobHead, JobId, JobState, Tier},
    store::{Admission, AdmissionDecision, Claim, Claimant, DeferredQueue},
};

use crate::{deferrals::Deferred, entries::Entry};

/// How long a claim, a lead or an answer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// Longer than any test.
    Long,
    /// Over as soon as its operation ends.
    None,
}

/// A job as the model knows it.
#[derive(Clone, Debug)]
pub struct Job {
    pub head: JobHead,
    /// The prompt; `None` for jobs that ended before they were parsed.
    pub digest: Option<[u8; 32]>,
    pub state: JobState,
    pub tier: Option<Tier>,
    pub cache_key: Option<CacheKey>,
    /// It waits for an identical job.
    pub waits: bool,
    pub attempts: Vec<Attempt>,
    /// The lease of the latest claim holds, whether or not its attempt is over.
    pub is_leased: bool,
    pub answer: Option<Given>,
    /// The code of the reason.
    pub reason: Option<String>,
    /// It left a dead letter.
    pub is_buried: bool,
}

/// An attempt as the model knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub tier: Tier,
    pub worker: String,
    pub outcome: &'static str,
    /// It counts against the attempt limit.
    pub counts: bool,
    /// Its text, unless that is the job's answer.
    pub wrote: Option<String>,
}

/// An answer and its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    pub text: String,
    pub source: AnswerSource,
    pub by: Option<JobId>,
}

/// The expected outcome of an admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admit {
    Queued,
    Routed,
    Deferred,
    Waiting,
    Ended(JobId),
    Known(JobId),
    KeyReused(JobId),
}

/// The expected outcome of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    Run {
        attempt: u32,
        poison_candidate: bool,
        last: bool,
    },
    Busy,
    Elsewhere(Tier),
    Ended(JobId),
    Unknown,
}

/// The expected state of the database.
#[derive(Debug, Default)]
pub struct Model {
    /// By id, oldest first.
    pub jobs: BTreeMap<JobId, Job>,
    keys: HashMap<(String, String), JobId>,
    pub entries: HashMap<CacheKey, Entry>,
    /// Workers whose last heartbeat holds.
    alive: HashSet<String>,
    /// Jobs that are deferred, or were.
    pub deferred: BTreeMap<JobId, Deferred>,
}

impl Job {
    pub fn new(head: &JobHead, digest: Option<[u8; 32]>) -> Self {
        Self {
            head: head.clone(),
            digest,
            state: JobState::Queued,
            tier: None,
            cache_key: None,
            waits: false,
            attempts: Vec::new(),
            is_leased: false,
            answer: None,
            reason: None,
            is_buried: false,
        }
    }

    pub fn is_open(&self) -> bool {
        !self.state.is_terminal()
    }

    pub fn is_running(&self) -> bool {
        self.state == JobState::Running
    }

    /// Its latest attempt is open, even if it was cancelled.
    pub fn has_attempt(&self) -> bool {
        let latest = self.attempts.last();
        latest.is_some_and(|attempt| attempt.outcome == "running")
    }

    /// Ends without an answer, unless an escalated one serves; the reason stays either way. Returns
    /// whether none does.
    pub fn end(&mut self, state: JobState, reason: &str) -> bool {
        self.waits = false;
        self.reason = Some(reason.to_owned());
        self.state = state;
        let kept = self
            .attempts
            .iter()
            .rev()
            .find(|attempt| attempt.outcome == "escalated" && attempt.wrote.is_some());
        let Some(attempt) = kept else {
            return true;
        };
        self.state = JobState::Succeeded;
        self.tier = Some(attempt.tier);
        self.answer = attempt.wrote.clone().map(|text| Given {
            text,
            source: AnswerSource::Computed,
            by: None,
        });
        false
    }

    pub fn answered(&mut self, text: &str, source: AnswerSource, by: Option<JobId>) {
        self.waits = false;
        self.state = JobState::Succeeded;
        self.answer = Some(Given {
            text: text.to_owned(),
            source,
            by,
        });
    }

    /// The running attempt, if any, is lost.
    pub fn lose(&mut self) {
        if self.state == JobState::Running {
            self.attempts.last_mut().unwrap().outcome = "lost";
        }
    }

    /// Attempts that count.
    pub fn counted(&self) -> usize {
        self.attempts
            .iter()
            .filter(|attempt| attempt.counts)
            .count()
    }

    /// Its attempt limit: the producer may lower that of the fleet.
    fn allowed(&self, claimant: &Claimant) -> usize {
        let asked = self.head.attempts_max.unwrap_or(u32::MAX);
        asked.min(claimant.attempts_max) as usize
    }
}

impl Model {
    pub fn owner(&self, head: &JobHead) -> Option<JobId> {
        let key = (head.tenant.to_string(), head.key.clone()?);
        self.keys.get(&key).copied()
    }

    pub fn own(&mut self, head: &JobHead) {
        if let Some(key) = &head.key {
            self.keys
                .insert((head.tenant.to_string(), key.clone()), head.id);
        }
    }

    pub fn admit(&mut self, admission: &Admission, lease: Lease) -> Admit {
        let head = &admission.head;
        let known = self
            .owner(head)
            .or(self.jobs.contains_key(&head.id).then_some(head.id));
        if let Some(job) = known.map(|id| &self.jobs[&id]) {
            let id = job.head.id;
            if job.digest.is_some_and(|digest| digest != admission.digest) {
                return Admit::KeyReused(id);
            }
            if job.waits {
                return Admit::Waiting;
            }
            let is_queued = id == head.id && job.state == JobState::Queued;
            let is_repeat = admission.decision == AdmissionDecision::Queue;
            if !is_queued || is_repeat {
                let is_known = is_repeat || !self.is_deferred(job);
                return if is_known {
                    Admit::Known(id)
                } else {
                    Admit::Deferred
                };
            }
        }
        self.own(head);
        // A job that moves on keeps its first envelope.
        let known = self.jobs.get(&head.id).map(|job| job.head.clone());
        let mut job = Job::new(known.as_ref().unwrap_or(head), Some(admission.digest));
        let outcome = match &admission.decision {
            AdmissionDecision::Queue => Admit::Queued,
            AdmissionDecision::Schedule(hold) => {
                self.hold(head, DeferredQueue::In, hold);
                Admit::Deferred
            }
            AdmissionDecision::End { state, reason } => {
                job.end(*state, &reason.code);
                Admit::Ended(head.id)
            }
            AdmissionDecision::Route(route) => {
                job.tier = Some(route.tier);
                job.cache_key = route.cache_key;
                job.state = JobState::Routed;
                match (self.ask(&mut job, lease), &route.deferral) {
                    (Admit::Routed, Some(hold)) => {
                        self.hold(head, DeferredQueue::Tier(route.tier), hold);
                        Admit::Deferred
                    }
                    (asked, _) => asked,
                }
            }
        };
        self.jobs.insert(head.id, job);
        outcome
    }

    pub fn is_alive(&self, job: &Job) -> bool {
        let worker = job.attempts.last().map(|attempt| &attempt.worker);
        job.state == JobState::Running
            && (job.is_leased || worker.is_some_and(|worker| self.alive.contains(worker)))
    }

    /// `is_repeat`: the batch claimed the job before. `is_overdue`: its deadline has passed.
    pub fn claim(
        &mut self,
        claimant: &Claimant,
        claim: Claim,
        lease: Lease,
        (is_repeat, is_overdue): (bool, bool),
    ) -> Take {
        let Some(job) = self.jobs.get(&claim.job) else {
            return Take::Unknown;
        };
        let is_alive = self.is_alive(job);
        let job = self.jobs.get_mut(&claim.job).unwrap();
        if !job.is_open() {
            return Take::Ended(claim.job);
        }
        if is_repeat {
            return Take::Busy;
        }
        if let Some(tier) = job.tier.filter(|tier| *tier != claimant.tier) {
            return Take::Elsewhere(tier);
        }
        if is_alive && !claim.redelivered {
            return Take::Busy;
        }
        let poison_candidate = job.state == JobState::Running;
        job.lose();
        let is_spent = job.counted() >= job.allowed(claimant);
        if is_overdue || is_spent {
            if is_overdue {
                job.end(JobState::Expired, "deadline_passed");
            } else {
                job.is_buried = job.end(JobState::Failed, "attempts_spent");
            }
            let key = job.cache_key;
            self.give_up(key, claim.job);
            return Take::Ended(claim.job);
        }
        job.state = JobState::Running;
        // The worker chooses the tier of a job that was never routed.
        job.tier = job.tier.or(Some(claimant.tier));
        job.waits = false;
        job.is_leased = lease == Lease::Long;
        job.attempts.push(Attempt {
            tier: claimant.tier,
            worker: claimant.worker.clone(),
            outcome: "running",
            counts: true,
            wrote: None,
        });
        Take::Run {
            attempt: u32::try_from(job.attempts.len()).unwrap(),
            poison_candidate,
            last: job.counted() >= job.allowed(claimant),
        }
    }

    pub fn heartbeat(&mut self, worker: &str, lease: Lease) {
        match lease {
            Lease::Long => self.alive.insert(worker.to_owned()),
            Lease::None => self.alive.remove(worker),
        };
    }
}
