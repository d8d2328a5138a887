//! Those who look after jobs that others run: an undertaker, one who takes jobs back, one who releases
//! them, and a sweeper.

use std::time::Duration;

use chrono::TimeDelta;
use promptyard::{
    job::{JobId, JobState},
    store::{CancelFilter, DeferredQueue, Released, RescueRules},
};
use rand::RngExt;

use crate::{
    actors::{Actor, STEPS, Told},
    support::store::reason,
};

/// How long each of these waits between two calls, so that there is something for them to find.
const PAUSE: Duration = Duration::from_millis(1);

impl Actor {
    /// Gives jobs up and promotes.
    pub async fn tend(mut self) -> Told {
        for _ in 0..STEPS {
            let lease = self.lease();
            let limit = self.chance.random_range(1..6);
            let promoted = self.store.take_over_flights(limit, lease).await.unwrap();
            self.told
                .promoted
                .extend(promoted.iter().map(|routed| routed.job.head.id));
            if self.chance.random_bool(0.15) {
                let head = self.job().head.clone();
                let ending = (head, JobState::Failed, reason("delivery_limit"));
                let records = self.store.end(&[ending]).await.unwrap();
                self.see(&records[0]);
            }
        }
        self.told
    }

    /// Takes jobs back now and then.
    pub async fn take_back(mut self) -> Told {
        for _ in 0..STEPS / 6 {
            tokio::time::sleep(PAUSE * 4).await;
            let mut ids = Vec::new();
            for _ in 0..self.chance.random_range(1..3) {
                ids.push(self.job().head.id);
            }
            let filter = CancelFilter::Jobs(None, ids);
            for record in self.store.cancel(&filter, 9).await.unwrap() {
                self.told.cancelled.push(record.id);
                self.told.ended.push(record.id);
                self.see(&record);
            }
        }
        self.told
    }

    pub async fn release(&mut self, jobs: &[JobId]) -> Vec<Released> {
        let released = self.store.release(jobs, false).await.unwrap();
        self.told.let_go.extend(jobs);
        self.told.released.extend(released.iter().map(id_of));
        released
    }

    /// Releases what is held.
    pub async fn let_go(mut self) -> Told {
        for _ in 0..STEPS {
            tokio::time::sleep(PAUSE).await;
            let mut jobs = Vec::new();
            for queue in DeferredQueue::ALL {
                let held = self.store.deferred(queue, 3).await.unwrap();
                jobs.extend(held.iter().map(|held| held.job));
            }
            jobs.push(self.job().head.id);
            self.release(&jobs).await;
        }
        self.told
    }

    pub async fn rescue(&mut self, limit: usize) -> Vec<Released> {
        let rules = RescueRules {
            stuck_after: TimeDelta::zero(),
            stuck_after_busy: TimeDelta::zero(),
            is_empty: [true; 3],
            limit,
            from: None,
            looked_at_max: 1000,
        };
        let rescued = self.store.rescue(rules).await.unwrap();
        for record in &rescued.expired {
            self.told.ended.push(record.id);
            self.see(record);
        }
        let to_tier = |lost: &&Released| matches!(lost, Released::Tier(_));
        let lost = rescued.stuck.iter().filter(to_tier).map(id_of);
        self.told.lost.extend(lost);
        rescued.stuck
    }

    /// Sweeps again and again.
    pub async fn clean(mut self) -> Told {
        for _ in 0..STEPS {
            tokio::time::sleep(PAUSE).await;
            let limit = if self.chance.random_bool(0.5) { 2 } else { 100 };
            self.rescue(limit).await;
        }
        self.told
    }
}

fn id_of(released: &Released) -> JobId {
    match released {
        Released::Router(job) => job.head.id,
        Released::Tier(routed) => routed.job.head.id,
    }
}
