//! Single flight as the model sees it: what a cache key leads to, who leads and who waits.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use promptyard::{
    job::{AnswerSource, CacheKey, JobId},
    store::Settlement,
};

use crate::model::{Admit, Job, Lease, Model};

/// What a key leads to.
#[derive(Clone, Debug)]
pub enum Entry {
    Led {
        leader: JobId,
        holds: Lead,
    },
    Ready {
        leader: JobId,
        text: String,
        is_fresh: bool,
    },
}

/// Whether a lead holds: one without a lease does within its own batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lead {
    Long,
    ThisBatch,
    Over,
}

impl Model {
    /// Leases that lasted no longer than the operation are over.
    pub fn end_operation(&mut self) {
        for entry in self.entries.values_mut() {
            if let Entry::Led { holds, .. } = entry
                && *holds == Lead::ThisBatch
            {
                *holds = Lead::Over;
            }
        }
    }

    /// A cache key leads to a hit, to waiting or to leading.
    pub fn ask(&mut self, job: &mut Job, lease: Lease) -> Admit {
        let Some(key) = job.cache_key else {
            return Admit::Routed;
        };
        match self.entries.get(&key) {
            Some(Entry::Ready {
                leader,
                text,
                is_fresh: true,
            }) => {
                job.answered(text, AnswerSource::Cache, Some(*leader));
                Admit::Ended(job.head.id)
            }
            Some(Entry::Led {
                holds: Lead::Long | Lead::ThisBatch,
                ..
            }) => {
                job.waits = true;
                Admit::Waiting
            }
            _ => {
                self.lead(key, job.head.id, lease);
                Admit::Routed
            }
        }
    }

    pub fn lead(&mut self, key: CacheKey, leader: JobId, lease: Lease) {
        let holds = match lease {
            Lease::Long => Lead::Long,
            Lease::None => Lead::ThisBatch,
        };
        self.entries.insert(key, Entry::Led { leader, holds });
    }

    pub fn give_up(&mut self, key: Option<CacheKey>, job: JobId) {
        let Some(key) = key else { return };
        if matches!(self.entries.get(&key), Some(Entry::Led { leader, .. }) if *leader == job) {
            self.entries.remove(&key);
        }
    }

    /// Gives an answer to the jobs that wait for it.
    pub fn share(&mut self, key: CacheKey, by: JobId, text: &str) -> BTreeSet<JobId> {
        let mut settled = BTreeSet::new();
        for (id, job) in &mut self.jobs {
            if job.waits && job.cache_key == Some(key) {
                job.answered(text, AnswerSource::Shared, Some(by));
                settled.insert(*id);
            }
        }
        settled
    }

    /// Fills an entry; an answer that may not serve later jobs leaves none that nobody computes.
    pub fn keep(&mut self, key: CacheKey, settlement: &Settlement, text: &str, ttl: Lease) {
        if settlement.reusable {
            let entry = Entry::Ready {
                leader: settlement.job,
                text: text.to_owned(),
                is_fresh: ttl == Lease::Long,
            };
            self.entries.insert(key, entry);
        } else if let Some(Entry::Led { leader, .. }) = self.entries.get(&key)
            && !self.jobs[leader].is_open()
        {
            self.entries.remove(&key);
        }
    }

    /// For each key that nobody leads and that has no answer, the oldest of the jobs that wait.
    pub fn promotable(&self) -> BTreeMap<JobId, CacheKey> {
        let mut oldest: HashMap<CacheKey, JobId> = HashMap::new();
        for (id, job) in self.jobs.iter().filter(|(_, job)| job.waits) {
            let key = job.cache_key.unwrap();
            let is_free = match self.entries.get(&key) {
                None => true,
                Some(Entry::Led { holds, .. }) => *holds == Lead::Over,
                Some(Entry::Ready { is_fresh, .. }) => !is_fresh,
            };
            if is_free {
                oldest.entry(key).or_insert(*id);
            }
        }
        oldest.into_iter().map(|(key, id)| (id, key)).collect()
    }

    pub fn promote(&mut self, job: JobId, key: CacheKey, lease: Lease) {
        self.lead(key, job, lease);
    }

    /// The job leads its entry: it was promoted if it waits all the same.
    pub fn leads(&self, job: &Job) -> bool {
        let entry = job.cache_key.and_then(|key| self.entries.get(&key));
        matches!(entry, Some(Entry::Led { leader, .. }) if *leader == job.head.id)
    }

    /// A job that waits for an answer which nobody computes and for which it cannot be promoted.
    pub fn forgotten(&self) -> Option<JobId> {
        let is_forgotten = |job: &&Job| match &self.entries.get(&job.cache_key.unwrap()) {
            Some(Entry::Led { leader, holds }) => {
                *holds == Lead::Long && !self.jobs[leader].is_open()
            }
            Some(Entry::Ready { is_fresh, .. }) => *is_fresh,
            None => false,
        };
        let mut waiting = self.jobs.values().filter(|job| job.waits);
        waiting.find(is_forgotten).map(|job| job.head.id)
    }
}
