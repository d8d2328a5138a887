//! Resolves the jobs that an operation names, and builds admissions.

use chrono::TimeDelta;
use promptyard::{
    job::{JobHead, JobId, JobState, Priority},
    store::{Admission, AdmissionDecision, Deferral},
};

use crate::{
    driver::{Case, NEAR},
    model::Job,
    operations::{Deadline, Entrant, Pick, Way, Who},
    support::store::{admission, cache_key, head, reason, route},
};

impl Case {
    /// The job that `pick` names; one that fits, if any.
    pub fn pick(&self, pick: Pick, fits: impl Fn(&Job) -> bool) -> JobId {
        let fitting: Vec<JobId> = match pick {
            Pick::Fitting(_) => {
                let jobs = self.model.jobs.values().filter(|job| fits(job));
                jobs.map(|job| job.head.id).collect()
            }
            Pick::Any(_) | Pick::Unknown => Vec::new(),
        };
        let all: Vec<JobId> = self.model.jobs.keys().copied().collect();
        let from = if fitting.is_empty() { &all } else { &fitting };
        match pick {
            Pick::Fitting(at) | Pick::Any(at) if !from.is_empty() => from[at as usize % from.len()],
            _ => JobId::now(),
        }
    }

    /// The head of a job to admit or to end, and its prompt if known.
    pub fn head_of(&self, who: Who, tenant: u8) -> (JobHead, Option<u8>) {
        let fresh = JobHead {
            tenant: self.tenants[usize::from(tenant)].clone(),
            ..head()
        };
        match who {
            Who::Keyed(key) => (
                JobHead {
                    key: Some(format!("k{key}")),
                    ..fresh
                },
                None,
            ),
            Who::Again(at) | Who::Other(at) | Who::Rekeyed(at, _)
                if !self.model.jobs.is_empty() =>
            {
                let pick = if at % 2 == 0 {
                    Pick::Fitting(at / 2)
                } else {
                    Pick::Any(at / 2)
                };
                let id = self.pick(pick, |job| job.state == JobState::Queued);
                let asked = self.prompts.get(&id).copied();
                let mut head = self.model.jobs[&id].head.clone();
                if let Who::Rekeyed(_, key) = who {
                    head.key = Some(format!("k{key}"));
                }
                (head, asked)
            }
            _ => (fresh, None),
        }
    }

    /// The name of a batch of this sequence.
    pub fn batch(&self, number: u8) -> String {
        format!("{number} of {}", self.tenants[0])
    }

    /// `before`: the previous admission of the batch.
    pub fn admission(
        &self,
        entrant: &Entrant,
        before: Option<&(Admission, u8)>,
    ) -> (Admission, u8) {
        let (mut head, asked) = match (entrant.who, before) {
            (Who::Before, Some((before, prompt))) => (before.head.clone(), Some(*prompt)),
            (who, _) => self.head_of(who, entrant.tenant),
        };
        let prompt = match (entrant.who, asked) {
            (Who::Other(_), Some(asked)) => (asked + 1) % 3,
            (_, Some(asked)) => asked,
            (_, None) => entrant.prompt,
        };
        if asked.is_none() {
            head.deadline = match entrant.deadline {
                Deadline::None => None,
                Deadline::Over => Some(self.now() - TimeDelta::seconds(1)),
                Deadline::Near => Some(self.now() + NEAR),
                Deadline::Far => Some(self.now() + TimeDelta::hours(1)),
            };
            head.batch = entrant.batch.map(|number| self.batch(number));
            head.attempts_max = entrant.attempts_max;
        }
        let course = match entrant.decision {
            Way::Queue => AdmissionDecision::Queue,
            Way::Route {
                tier,
                cached,
                deferred,
            } => {
                let key = cached.then(|| cache_key(&format!("{} {tier} {prompt}", head.tenant)));
                let mut course = route(tier, key);
                if let AdmissionDecision::Route(route) = &mut course {
                    let priority = Priority::from_amqp(entrant.prompt * 9);
                    route.deferral = deferred.then(|| Deferral::for_turn(self.now(), priority, 7));
                }
                course
            }
            Way::Schedule { later } => {
                let span = TimeDelta::hours(if later { 1 } else { -1 });
                AdmissionDecision::Schedule(Deferral::until(self.now() + span, 5))
            }
            Way::Reject => AdmissionDecision::End {
                state: JobState::Rejected,
                reason: reason("body_invalid"),
            },
        };
        (admission(head, &format!("prompt {prompt}"), course), prompt)
    }
}
