//! Actors besides routers and workers: dead-letter consumer and single-flight takeover, canceller,
//! releaser, rescuer.

use std::time::Duration;

use chrono::TimeDelta;
use promptyard::{
    job::{JobId, JobState},
    store::{CancelFilter, DeferredQueue, Released, RescueRules},
};
use rand::RngExt;
use tokio::time::interval;

use crate::{
    actors::{Actor, Observed, STEPS},
    support::store::reason,
};

/// Time between two calls of an actor, in which the others make progress.
const PAUSE: Duration = Duration::from_millis(1);

impl Actor {
    /// Ends jobs as the dead-letter consumer does, and takes over flights.
    pub async fn tend(mut self) -> Observed {
        for _ in 0..STEPS {
            let lease = self.lease();
            let limit = self.chance.random_range(1..6);
            let taken_over = self.store.take_over_flights(limit, lease).await.unwrap();
            self.observed
                .taken_over
                .extend(taken_over.iter().map(|routed| routed.job.head.id));
            if self.chance.random_bool(0.15) {
                let head = self.job().head.clone();
                let ending = (head, JobState::Failed, reason("delivery_limit"));
                let records = self.store.end(&[ending]).await.unwrap();
                self.see(&records[0]);
            }
        }
        self.observed
    }

    /// Cancels some jobs at intervals.
    pub async fn cancel_some(mut self) -> Observed {
        let mut turns = interval(PAUSE * 4);
        for _ in 0..STEPS / 6 {
            turns.tick().await;
            let mut ids = Vec::new();
            for _ in 0..self.chance.random_range(1..3) {
                ids.push(self.job().head.id);
            }
            let filter = CancelFilter::Jobs(None, ids);
            for record in self.store.cancel(&filter, 9).await.unwrap() {
                self.observed.cancelled.push(record.id);
                self.observed.ended.push(record.id);
                self.see(&record);
            }
        }
        self.observed
    }

    pub async fn release(&mut self, jobs: &[JobId]) -> Vec<Released> {
        let released = self.store.release(jobs, false).await.unwrap();
        self.observed.release_calls.extend(jobs);
        self.observed.released.extend(released.iter().map(id_of));
        released
    }

    /// Releases deferred jobs.
    pub async fn release_calls(mut self) -> Observed {
        let mut turns = interval(PAUSE);
        for _ in 0..STEPS {
            turns.tick().await;
            let mut jobs = Vec::new();
            for queue in DeferredQueue::ALL {
                let deferred = self.store.deferred(queue, 3).await.unwrap();
                jobs.extend(deferred.iter().map(|deferred| deferred.job));
            }
            jobs.push(self.job().head.id);
            self.release(&jobs).await;
        }
        self.observed
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
            self.observed.ended.push(record.id);
            self.see(record);
        }
        let to_tier = |lost: &&Released| matches!(lost, Released::Tier(_));
        let lost = rescued.stuck.iter().filter(to_tier).map(id_of);
        self.observed.lost.extend(lost);
        rescued.stuck
    }

    /// Rescues at intervals.
    pub async fn clean(mut self) -> Observed {
        let mut turns = interval(PAUSE);
        for _ in 0..STEPS {
            turns.tick().await;
            let limit = if self.chance.random_bool(0.5) { 2 } else { 100 };
            self.rescue(limit).await;
        }
        self.observed
    }
}

fn id_of(released: &Released) -> JobId {
    match released {
        Released::Router(job) => job.head.id,
        Released::Tier(routed) => routed.job.head.id,
    }
}
