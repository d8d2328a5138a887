//! Jobs that are held, lost or overdue, as the model sees it.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use promptyard::{
    job::{JobHead, JobId, JobState, Tenant, Tier},
    store::{Deferral, DeferredQueue},
};

use crate::model::{Job, Model};

/// A job that is held, or was.
#[derive(Clone, Debug)]
pub struct Held {
    tenant: Tenant,
    queue: DeferredQueue,
    rank: DateTime<Utc>,
    tokens: u32,
    is_released: bool,
    /// The broker is known to have its message.
    is_published: bool,
}

/// A place in a tenant's line: rank, job and its tokens.
type Place = (DateTime<Utc>, JobId, u32);

/// Where the message of a job goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    Router,
    Tier(Tier),
}

impl Model {
    pub fn hold(&mut self, head: &JobHead, queue: DeferredQueue, hold: &Deferral) {
        let held = Held {
            tenant: head.tenant.clone(),
            queue,
            rank: hold.rank,
            tokens: hold.tokens,
            is_released: false,
            is_published: false,
        };
        self.held.insert(head.id, held);
    }

    pub fn is_unreleased(&self, id: JobId) -> bool {
        self.held.get(&id).is_some_and(|held| !held.is_released)
    }

    /// It is to be published when it is released; nobody has it.
    pub fn is_deferred(&self, job: &Job) -> bool {
        job.is_open() && job.state != JobState::Running && self.is_unreleased(job.head.id)
    }

    /// The message that brings an open job on which nobody works to its next stage.
    fn message(&self, job: &Job) -> Option<Message> {
        match job.state {
            JobState::Queued => Some(Message::Router),
            JobState::Routed if !job.waits => job.tier.map(Message::Tier),
            _ => None,
        }
    }

    /// The jobs that are to be published, in this order; `again` those too that were released before.
    pub fn release(&mut self, jobs: &[JobId], again: bool) -> Vec<(JobId, Message)> {
        let mut released = Vec::new();
        for id in jobs.iter().copied() {
            let Some(held) = self.held.get_mut(&id) else {
                continue;
            };
            if held.is_released && !again {
                continue;
            }
            held.is_released = true;
            let job = &self.jobs[&id];
            match self.message(job) {
                Some(message) => released.push((id, message)),
                None if job.state == JobState::Running => {}
                None => drop(self.held.remove(&id)),
            }
        }
        released
    }

    pub fn note_published(&mut self, jobs: &[JobId]) {
        for id in jobs {
            if let Some(held) = self.held.get_mut(id).filter(|held| held.is_released) {
                held.is_published = true;
            }
        }
    }

    /// Released jobs that nobody is known to have published and that their next stage has not seen.
    pub fn unpublished(&self) -> BTreeSet<JobId> {
        let is_unpublished = |(id, held): &(&JobId, &Held)| {
            let job = &self.jobs[id];
            let message = match held.queue {
                DeferredQueue::In => Some(Message::Router),
                DeferredQueue::Tier(_) => job.tier.map(Message::Tier),
            };
            held.is_released
                && !held.is_published
                && job.attempts.is_empty()
                && message.is_some()
                && self.message(job) == message
        };
        let held = self.held.iter().filter(is_unpublished);
        held.map(|(id, _)| *id).collect()
    }

    /// For each tenant the first `each` by rank that could go now.
    pub fn could_go(&self, queue: DeferredQueue, each: usize) -> Vec<(Tenant, JobId, u32)> {
        let mut of: BTreeMap<&Tenant, BTreeSet<Place>> = BTreeMap::new();
        for (id, held) in &self.held {
            if held.queue == queue && !held.is_released && held.rank <= Utc::now() {
                let line = of.entry(&held.tenant).or_default();
                line.insert((held.rank, *id, held.tokens));
            }
        }
        let first = |(tenant, line): (&Tenant, BTreeSet<Place>)| {
            let tenant = tenant.clone();
            let named = move |(_, id, tokens)| (tenant.clone(), id, tokens);
            line.into_iter().take(each).map(named).collect::<Vec<_>>()
        };
        of.into_iter().flat_map(first).collect()
    }

    /// How many are held for each queue; those count that have ended since.
    pub fn deferred_counts(&self) -> [u32; 3] {
        DeferredQueue::ALL.map(|queue| {
            let held = self.held.values();
            let of = held.filter(|held| held.queue == queue && !held.is_released);
            u32::try_from(of.count()).unwrap()
        })
    }

    pub fn deferred_tenants(&self) -> BTreeSet<(DeferredQueue, Tenant)> {
        let held = self.held.values();
        let held = held.filter(|held| held.queue != DeferredQueue::In && !held.is_released);
        held.map(|held| (held.queue, held.tenant.clone())).collect()
    }

    /// For each tenant its released jobs that have not ended and the tokens that count; those of jobs
    /// that have ended count where the tenant has a quota. What does not count is forgotten.
    pub fn loads(&mut self, with_quota: &Tenant) -> BTreeMap<Tenant, (u32, u64)> {
        let jobs = &self.jobs;
        self.held.retain(|id, held| {
            let job = &jobs[id];
            let counts = match held.queue {
                DeferredQueue::In => job.state == JobState::Queued,
                DeferredQueue::Tier(_) => job.is_open() || held.tenant == *with_quota,
            };
            !held.is_released || counts
        });
        let mut loads: BTreeMap<Tenant, (u32, u64)> = BTreeMap::new();
        for (id, held) in &self.held {
            let is_open = self.jobs[id].is_open();
            if held.is_released && held.queue != DeferredQueue::In {
                let load = loads.entry(held.tenant.clone()).or_default();
                load.0 += u32::from(is_open);
                load.1 += u64::from(held.tokens);
            }
        }
        loads
    }

    /// Jobs whose message may be lost: open, not held, not waiting and not in living hands. `true` where
    /// a former claim still holds, so that the ledger may wait for its end.
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

    /// Ends an overdue job that nobody runs.
    pub fn expire(&mut self, id: JobId) {
        let job = self.jobs.get_mut(&id).unwrap();
        job.lose();
        job.end(JobState::Expired, "deadline_passed");
        let key = job.cache_key;
        self.give_up(key, id);
    }
}
