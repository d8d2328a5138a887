//! Deferred, stuck and overdue jobs in the model.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use promptyard::{
    job::{JobHead, JobId, JobState, Tenant, Tier},
    store::{Deferral, DeferredQueue},
};

use crate::model::{Job, Model};

/// A job that is deferred, or was.
#[derive(Clone, Debug)]
pub struct Deferred {
    tenant: Tenant,
    queue: DeferredQueue,
    rank: DateTime<Utc>,
    tokens: u32,
    is_released: bool,
    /// The broker is known to have its message.
    is_published: bool,
}

/// A place in a tenant's fair queue: rank, job and its tokens.
type Place = (DateTime<Utc>, JobId, u32);

/// Where the message of a job goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    Router,
    Tier(Tier),
}

impl Model {
    pub fn hold(&mut self, head: &JobHead, queue: DeferredQueue, hold: &Deferral) {
        let deferred = Deferred {
            tenant: head.tenant.clone(),
            queue,
            rank: hold.rank,
            tokens: hold.tokens,
            is_released: false,
            is_published: false,
        };
        self.deferred.insert(head.id, deferred);
    }

    pub fn is_unreleased(&self, id: JobId) -> bool {
        self.deferred
            .get(&id)
            .is_some_and(|deferred| !deferred.is_released)
    }

    /// Its message is published on release.
    pub fn is_deferred(&self, job: &Job) -> bool {
        job.is_open() && job.state != JobState::Running && self.is_unreleased(job.head.id)
    }

    /// The message that takes an open job without a worker to its next stage.
    fn message(&self, job: &Job) -> Option<Message> {
        match job.state {
            JobState::Queued => Some(Message::Router),
            JobState::Routed if !job.waits => job.tier.map(Message::Tier),
            _ => None,
        }
    }

    /// The jobs to publish, in order; with `again` also those released before.
    pub fn release(&mut self, jobs: &[JobId], again: bool) -> Vec<(JobId, Message)> {
        let mut released = Vec::new();
        for id in jobs.iter().copied() {
            let Some(deferred) = self.deferred.get_mut(&id) else {
                continue;
            };
            if deferred.is_released && !again {
                continue;
            }
            deferred.is_released = true;
            let job = &self.jobs[&id];
            match self.message(job) {
                Some(message) => released.push((id, message)),
                None if job.state == JobState::Running => {}
                None => drop(self.deferred.remove(&id)),
            }
        }
        released
    }

    pub fn note_published(&mut self, jobs: &[JobId]) {
        for id in jobs {
            if let Some(deferred) = self
                .deferred
                .get_mut(id)
                .filter(|deferred| deferred.is_released)
            {
                deferred.is_published = true;
            }
        }
    }

    /// Released jobs that are not known to be published and that their next stage has not seen.
    pub fn unpublished(&self) -> BTreeSet<JobId> {
        let is_unpublished = |(id, deferred): &(&JobId, &Deferred)| {
            let job = &self.jobs[id];
            let message = match deferred.queue {
                DeferredQueue::In => Some(Message::Router),
                DeferredQueue::Tier(_) => job.tier.map(Message::Tier),
            };
            deferred.is_released
                && !deferred.is_published
                && job.attempts.is_empty()
                && message.is_some()
                && self.message(job) == message
        };
        let deferred = self.deferred.iter().filter(is_unpublished);
        deferred.map(|(id, _)| *id).collect()
    }

    /// For each tenant the first `each` by rank that could go at `now`.
    pub fn could_go(
        &self,
        queue: DeferredQueue,
        each: usize,
        now: DateTime<Utc>,
    ) -> Vec<(Tenant, JobId, u32)> {
        let mut of: BTreeMap<&Tenant, BTreeSet<Place>> = BTreeMap::new();
        for (id, deferred) in &self.deferred {
            if deferred.queue == queue && !deferred.is_released && deferred.rank <= now {
                let line = of.entry(&deferred.tenant).or_default();
                line.insert((deferred.rank, *id, deferred.tokens));
            }
        }
        let first = |(tenant, line): (&Tenant, BTreeSet<Place>)| {
            let tenant = tenant.clone();
            let named = move |(_, id, tokens)| (tenant.clone(), id, tokens);
            line.into_iter().take(each).map(named).collect::<Vec<_>>()
        };
        of.into_iter().flat_map(first).collect()
    }

    /// Deferred jobs of each queue, including those that have ended since.
    pub fn deferred_counts(&self) -> [u32; 3] {
        DeferredQueue::ALL.map(|queue| {
            let deferred = self.deferred.values();
            let of = deferred.filter(|deferred| deferred.queue == queue && !deferred.is_released);
            u32::try_from(of.count()).unwrap()
        })
    }

    pub fn deferred_tenants(&self) -> BTreeSet<(DeferredQueue, Tenant)> {
        let deferred = self.deferred.values();
        let deferred = deferred
            .filter(|deferred| deferred.queue != DeferredQueue::In && !deferred.is_released);
        deferred
            .map(|deferred| (deferred.queue, deferred.tenant.clone()))
            .collect()
    }

    /// For each tenant its released open jobs and their tokens; tokens of ended jobs count where the
    /// tenant has a quota. Forgets the rest.
    pub fn loads(&mut self, with_quota: &Tenant) -> BTreeMap<Tenant, (u32, u64)> {
        let jobs = &self.jobs;
        self.deferred.retain(|id, deferred| {
            let job = &jobs[id];
            let counts = match deferred.queue {
                DeferredQueue::In => job.state == JobState::Queued,
                DeferredQueue::Tier(_) => job.is_open() || deferred.tenant == *with_quota,
            };
            !deferred.is_released || counts
        });
        let mut loads: BTreeMap<Tenant, (u32, u64)> = BTreeMap::new();
        for (id, deferred) in &self.deferred {
            let is_open = self.jobs[id].is_open();
            if deferred.is_released && deferred.queue != DeferredQueue::In {
                let load = loads.entry(deferred.tenant.clone()).or_default();
                load.0 += u32::from(is_open);
                load.1 += u64::from(deferred.tokens);
            }
        }
        loads
    }

    /// Jobs that may be stuck: open, not deferred, not waiting and without a live worker. `true` where an
    /// earlier lease still holds, so that the database may wait for its end.
    pub fn unattended(&self) -> BTreeMap<JobId, (Message, bool)> {
        let mut found = BTreeMap::new();
        for (id, job) in &self.jobs {
            let message = match job.state {
                JobState::Running if !self.is_alive(job) => job.tier.map(Message::Tier),
                _ => self.message(job),
            };
            if let Some(message) = message.filter(|_| job.is_open() && !self.is_unreleased(*id)) {
                found.insert(*id, (message, job.is_leased));
            }
        }
        found
    }

    /// Expires an overdue job that no worker runs.
    pub fn expire(&mut self, id: JobId) {
        let job = self.jobs.get_mut(&id).unwrap();
        job.lose();
        job.end(JobState::Expired, "deadline_passed");
        let key = job.cache_key;
        self.give_up(key, id);
    }
}
