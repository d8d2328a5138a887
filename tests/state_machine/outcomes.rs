//! How attempts and jobs end, as the model sees it.

use std::collections::BTreeSet;

use promptyard::{
    job::{AnswerSource, JobHead, JobId, JobState, Tenant},
    store::{AttemptOutcome, CancelFilter, Settlement},
};

use crate::model::{Job, Lease, Model};

impl Model {
    /// The jobs that are settled along with it; `None` where it is fenced.
    pub fn settle(&mut self, settlement: &Settlement, ttl: Lease) -> Option<BTreeSet<JobId>> {
        let (id, key) = (settlement.job, settlement.cache_key);
        let job = self.jobs.get_mut(&id)?;
        if job.state != JobState::Running || job.attempts.len() != settlement.attempt as usize {
            self.close(settlement);
            return None;
        }
        let attempt = job.attempts.last_mut()?;
        let mut settled = BTreeSet::new();
        match &settlement.outcome {
            AttemptOutcome::Succeeded(answer) => {
                attempt.outcome = "succeeded";
                job.answered(&answer.text, AnswerSource::Computed, None);
                if let Some(key) = key {
                    settled = self.share(key, id, &answer.text);
                    self.keep(key, settlement, &answer.text, ttl);
                }
            }
            AttemptOutcome::Failed(reason) => {
                attempt.outcome = "failed";
                job.end(JobState::Failed, &reason.code);
                self.give_up(key, id);
            }
            AttemptOutcome::AttemptsExhausted(reason) => {
                attempt.outcome = "failed";
                job.is_buried = job.end(JobState::Failed, &reason.code);
                self.give_up(key, id);
            }
            AttemptOutcome::Expired(reason, partial) => {
                attempt.outcome = "expired";
                attempt.wrote = partial.as_ref().map(|answer| answer.text.clone());
                job.end(JobState::Expired, &reason.code);
                self.give_up(key, id);
            }
            AttemptOutcome::Retry(_) => {
                attempt.outcome = "retried";
                job.state = JobState::Routed;
            }
            AttemptOutcome::Escalate { to, answer, .. } => {
                attempt.outcome = "escalated";
                attempt.wrote = answer.as_ref().map(|answer| answer.text.clone());
                job.state = JobState::Routed;
                job.tier = Some(*to);
                self.give_up(key, id);
            }
            AttemptOutcome::Returned => {
                attempt.outcome = "returned";
                attempt.counts = false;
                job.state = JobState::Routed;
            }
            AttemptOutcome::RetryIsolated(_) => {
                attempt.outcome = "retried";
                attempt.counts = false;
                job.state = JobState::Routed;
            }
            AttemptOutcome::Reused(_) => unreachable!("semantic reuse has a suite of its own"),
            AttemptOutcome::Cancelled(..) => unreachable!("only for cancelled jobs"),
        }
        Some(settled)
    }

    /// Any settlement closes the attempt of a cancelled job, once.
    fn close(&mut self, settlement: &Settlement) {
        let at = (settlement.attempt as usize).wrapping_sub(1);
        let job = self.jobs.get_mut(&settlement.job);
        let attempt = job.and_then(|job| job.attempts.get_mut(at));
        let Some(attempt) = attempt.filter(|attempt| attempt.outcome == "running") else {
            return;
        };
        attempt.outcome = "cancelled";
        attempt.wrote = match &settlement.outcome {
            AttemptOutcome::Succeeded(answer) => Some(answer.text.clone()),
            AttemptOutcome::Expired(_, written)
            | AttemptOutcome::Cancelled(_, written)
            | AttemptOutcome::Escalate {
                answer: written, ..
            } => written.as_ref().map(|answer| answer.text.clone()),
            _ => None,
        };
    }

    /// Cancels jobs, of one tenant if one is named; returns those that were open.
    pub fn cancel(&mut self, filter: &CancelFilter, limit: usize) -> BTreeSet<JobId> {
        let is_of = |job: &Job, tenant: &Option<Tenant>| {
            job.is_open() && tenant.as_ref().is_none_or(|of| *of == job.head.tenant)
        };
        let meant: BTreeSet<JobId> = match filter {
            CancelFilter::Jobs(tenant, ids) => ids
                .iter()
                .take(limit)
                .filter(|id| self.jobs.get(id).is_some_and(|job| is_of(job, tenant)))
                .copied()
                .collect(),
            CancelFilter::Batch(tenant, batch) => {
                let jobs = self.jobs.values();
                let jobs =
                    jobs.filter(|job| job.head.batch.as_ref() == Some(batch) && is_of(job, tenant));
                jobs.map(|job| job.head.id).take(limit).collect()
            }
        };
        for id in &meant {
            let is_alive = self.is_alive(&self.jobs[id]);
            let job = self.jobs.get_mut(id).unwrap();
            if !is_alive {
                job.lose();
            }
            // An escalated attempt's answer serves a job that fails, not a cancelled one.
            job.state = JobState::Cancelled;
            job.reason = Some("cancelled".to_owned());
            job.waits = false;
            let key = job.cache_key;
            self.give_up(key, *id);
        }
        meant
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
}
