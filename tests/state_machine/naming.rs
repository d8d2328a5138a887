//! Which jobs an operation means, and what comes in.

use chrono::TimeDelta;
use promptyard::{
    job::{JobHead, JobId, JobState},
    store::{Admission, Course},
};

use crate::{
    driver::{Case, NEAR},
    fixture::{admission, cache_key, head, now, reason, route},
    operations::{Deadline, Entrant, Pick, Way, Who},
};

impl Case {
    /// The job that `pick` means; one that fits, where there is one.
    pub fn pick(&self, pick: Pick, fits: impl Fn(JobState) -> bool) -> JobId {
        let fitting: Vec<JobId> = match pick {
            Pick::Fitting(_) => {
                let jobs = self.model.jobs.values().filter(|job| fits(job.state));
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

    /// The head of a job that comes in or is given up, and what it asked if it is known.
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
            Who::Again(at) | Who::Other(at) if !self.model.jobs.is_empty() => {
                let pick = if at % 2 == 0 {
                    Pick::Fitting(at / 2)
                } else {
                    Pick::Any(at / 2)
                };
                let id = self.pick(pick, |state| state == JobState::Queued);
                let asked = self.prompts.get(&id).copied();
                (self.model.jobs[&id].head.clone(), asked)
            }
            _ => (fresh, None),
        }
    }

    pub fn admission(&self, entrant: &Entrant) -> (Admission, u8) {
        let (mut head, asked) = self.head_of(entrant.who, entrant.tenant);
        let prompt = match (entrant.who, asked) {
            (Who::Other(_), Some(asked)) => (asked + 1) % 3,
            (_, Some(asked)) => asked,
            (_, None) => entrant.prompt,
        };
        if asked.is_none() {
            head.deadline = match entrant.deadline {
                Deadline::None => None,
                Deadline::Over => Some(now() - TimeDelta::seconds(1)),
                Deadline::Near => Some(now() + NEAR),
                Deadline::Far => Some(now() + TimeDelta::hours(1)),
            };
        }
        let course = match entrant.course {
            Way::Queue => Course::Queue,
            Way::Route { tier, cached } => {
                let key = cached.then(|| cache_key(&format!("{} {tier} {prompt}", head.tenant)));
                route(tier, key)
            }
            Way::Reject => Course::End {
                state: JobState::Rejected,
                reason: reason("body_invalid"),
            },
        };
        (admission(head, &format!("prompt {prompt}"), course), prompt)
    }
}
