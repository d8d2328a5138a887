//! What the ledger must do, told from its documents alone: jobs in a map and rules in plain sight.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use promptyard::{
    job::{AnswerSource, CacheKey, JobHead, JobId, JobState, Tier},
    store::{Admission, Claim, Claimant, Course, Settlement, Verdict},
};

use crate::entries::Entry;

/// How long a claim, a lead or an answer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// Longer than any test.
    Long,
    /// Over when the operation that gave it is.
    None,
}

/// A job as the model knows it.
#[derive(Clone, Debug)]
pub struct Job {
    pub head: JobHead,
    /// What was asked; `None` for jobs that were given up before they were read.
    pub digest: Option<[u8; 32]>,
    pub state: JobState,
    pub tier: Option<Tier>,
    pub cache_key: Option<CacheKey>,
    /// It waits for an identical job.
    pub waits: bool,
    pub attempts: Vec<Attempt>,
    /// The claim of the latest attempt holds by itself.
    pub is_held: bool,
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
    /// An answer that was not sure enough, and the tier that gave it.
    pub kept: Option<String>,
}

/// An answer and how the job came by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    pub text: String,
    pub source: AnswerSource,
    pub by: Option<JobId>,
}

/// What an admission must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admit {
    Queued,
    Routed,
    Waiting,
    Ended(JobId),
    Known(JobId),
    KeyReused(JobId),
}

/// What a claim must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    Run {
        attempt: u32,
        suspect: bool,
        last: bool,
    },
    Busy,
    Elsewhere(Tier),
    Ended(JobId),
    Unknown,
}

/// All that the ledger must know.
#[derive(Debug, Default)]
pub struct Model {
    /// By id, so the oldest first.
    pub jobs: BTreeMap<JobId, Job>,
    keys: HashMap<(String, String), JobId>,
    pub entries: HashMap<CacheKey, Entry>,
    /// Workers whose last sign of life holds.
    alive: HashSet<String>,
}

impl Job {
    fn new(head: &JobHead, digest: Option<[u8; 32]>) -> Self {
        Self {
            head: head.clone(),
            digest,
            state: JobState::Queued,
            tier: None,
            cache_key: None,
            waits: false,
            attempts: Vec::new(),
            is_held: false,
            answer: None,
            reason: None,
            is_buried: false,
        }
    }

    pub fn is_open(&self) -> bool {
        !self.state.is_terminal()
    }

    /// Ends without an answer, unless an escalated one serves; the reason stays either way. Returns
    /// whether none does.
    fn end(&mut self, state: JobState, reason: &str) -> bool {
        self.waits = false;
        self.reason = Some(reason.to_owned());
        self.state = state;
        let kept = self
            .attempts
            .iter()
            .rev()
            .find(|attempt| attempt.kept.is_some());
        let Some(attempt) = kept else {
            return true;
        };
        self.state = JobState::Succeeded;
        self.tier = Some(attempt.tier);
        self.answer = attempt.kept.clone().map(|text| Given {
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

    /// The running attempt, if there is one, vanished.
    fn lose(&mut self) {
        if self.state == JobState::Running {
            self.attempts.last_mut().unwrap().outcome = "lost";
        }
    }

    /// Attempts that count.
    fn counted(&self) -> usize {
        let counts = |attempt: &&Attempt| attempt.outcome != "returned";
        self.attempts.iter().filter(counts).count()
    }
}

impl Model {
    fn owner(&self, head: &JobHead) -> Option<JobId> {
        let key = (head.tenant.to_string(), head.key.clone()?);
        self.keys.get(&key).copied()
    }

    fn own(&mut self, head: &JobHead) {
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
            if !is_queued || admission.course == Course::Queue {
                return Admit::Known(id);
            }
        }
        self.own(head);
        let mut job = Job::new(head, Some(admission.digest));
        let outcome = match &admission.course {
            Course::Queue => Admit::Queued,
            Course::Schedule(_) => unreachable!("no admission here asks for it"),
            Course::End { state, reason } => {
                job.end(*state, &reason.code);
                Admit::Ended(head.id)
            }
            Course::Route(route) => {
                job.tier = Some(route.tier);
                job.cache_key = route.cache_key;
                job.state = JobState::Routed;
                self.ask(&mut job, lease)
            }
        };
        self.jobs.insert(head.id, job);
        outcome
    }

    fn is_alive(&self, job: &Job) -> bool {
        let worker = job.attempts.last().map(|attempt| &attempt.worker);
        job.state == JobState::Running
            && (job.is_held || worker.is_some_and(|worker| self.alive.contains(worker)))
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
        let suspect = job.state == JobState::Running;
        job.lose();
        let is_spent = job.counted() >= claimant.attempts_max as usize;
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
        // Of a job that was never routed, the worker chose the tier.
        job.tier = job.tier.or(Some(claimant.tier));
        job.waits = false;
        job.is_held = lease == Lease::Long;
        job.attempts.push(Attempt {
            tier: claimant.tier,
            worker: claimant.worker.clone(),
            outcome: "running",
            kept: None,
        });
        Take::Run {
            attempt: u32::try_from(job.attempts.len()).unwrap(),
            suspect,
            last: job.counted() >= claimant.attempts_max as usize,
        }
    }

    /// The jobs that are settled along with it; `None` where it is fenced.
    pub fn settle(&mut self, settlement: &Settlement, ttl: Lease) -> Option<BTreeSet<JobId>> {
        let (id, key) = (settlement.job, settlement.cache_key);
        let job = self.jobs.get_mut(&id)?;
        if job.state != JobState::Running || job.attempts.len() != settlement.attempt as usize {
            return None;
        }
        let attempt = job.attempts.last_mut()?;
        let mut settled = BTreeSet::new();
        match &settlement.verdict {
            Verdict::Succeeded(answer) => {
                attempt.outcome = "succeeded";
                job.answered(&answer.text, AnswerSource::Computed, None);
                if let Some(key) = key {
                    settled = self.share(key, id, &answer.text);
                    self.keep(key, settlement, &answer.text, ttl);
                }
            }
            Verdict::Failed(reason) => {
                attempt.outcome = "failed";
                job.end(JobState::Failed, &reason.code);
                self.give_up(key, id);
            }
            Verdict::Spent(reason) => {
                attempt.outcome = "failed";
                job.is_buried = job.end(JobState::Failed, &reason.code);
                self.give_up(key, id);
            }
            Verdict::Expired(reason, _) => {
                attempt.outcome = "expired";
                job.end(JobState::Expired, &reason.code);
                self.give_up(key, id);
            }
            Verdict::Retry(_) => {
                attempt.outcome = "retried";
                job.state = JobState::Routed;
            }
            Verdict::Escalate { to, answer, .. } => {
                attempt.outcome = "escalated";
                attempt.kept = answer.as_ref().map(|answer| answer.text.clone());
                job.state = JobState::Routed;
                job.tier = Some(*to);
                self.give_up(key, id);
            }
            Verdict::Returned => {
                attempt.outcome = "returned";
                job.state = JobState::Routed;
            }
            Verdict::Reused(_) => unreachable!("semantic reuse has a suite of its own"),
            Verdict::Apart(_) | Verdict::Cancelled(..) => {
                unreachable!("no settlement here says so")
            }
        }
        Some(settled)
    }

    /// The job that ends, or stays as it is, and whether it was known.
    pub fn end(&mut self, head: &JobHead, state: JobState, reason: &str) -> (JobId, bool) {
        let is_known = self.jobs.contains_key(&head.id);
        let id = if is_known {
            Some(head.id)
        } else {
            self.owner(head)
        };
        let Some(id) = id else {
            self.own(head);
            let mut job = Job::new(head, None);
            job.end(state, reason);
            self.jobs.insert(head.id, job);
            return (head.id, false);
        };
        let job = &self.jobs[&id];
        if job.is_open() && !self.is_alive(job) {
            let job = self.jobs.get_mut(&id).unwrap();
            job.lose();
            job.end(state, reason);
            let key = job.cache_key;
            self.give_up(key, id);
        }
        (id, true)
    }

    pub fn beat(&mut self, worker: &str, lease: Lease) {
        match lease {
            Lease::Long => self.alive.insert(worker.to_owned()),
            Lease::None => self.alive.remove(worker),
        };
    }
}
