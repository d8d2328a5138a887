//! Single flight in the model: hit, leader or waiting job for each cache key.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use promptyard::{
    job::{AnswerSource, CacheKey, JobId},
    store::Settlement,
};

use crate::model::{Admit, Job, Lease, Model};

/// The state of a cache key.
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

/// Whether a lead holds: one without a lease holds within its own batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lead {
    Long,
    ThisBatch,
    Over,
}

impl Model {
    /// Ends leases that last for one operation.
    pub fn end_operation(&mut self) {
        for entry in self.entries.values_mut() {
            if let Entry::Led { holds, .. } = entry
                && *holds == Lead::ThisBatch
            {
                *holds = Lead::Over;
            }
        }
    }

    /// Decides between hit, wait and lead for a cache key.
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

    /// Fills an entry; an answer that later jobs may not reuse removes it.
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

    /// The oldest waiting job of each key without leader and answer.
    pub fn takeover_candidates(&self) -> BTreeMap<JobId, CacheKey> {
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

    pub fn take_over(&mut self, job: JobId, key: CacheKey, lease: Lease) {
        self.lead(key, job, lease);
    }

    /// Whether the job leads its entry: a waiting one has taken over.
    pub fn leads(&self, job: &Job) -> bool {
        let entry = job.cache_key.and_then(|key| self.entries.get(&key));
        matches!(entry, Some(Entry::Led { leader, .. }) if *leader == job.head.id)
    }

    /// A job that waits although no job computes its answer and it cannot take over.
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
