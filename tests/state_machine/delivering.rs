//! Cancels, releases, takes over and rescues, in a database and in the model.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Duration,
};

use chrono::TimeDelta;
use promptyard::{
    job::{JobId, Tier},
    store::{CancelFilter, DeferredQueue, Released, RescueRules, Rescued},
};
use proptest::{prelude::*, test_runner::TestCaseError, test_runner::TestCaseResult};

use crate::{
    deferrals::Message,
    driver::{Case, HOLDERS, ROLES, span},
    model::Lease,
};

impl Case {
    pub async fn cancel(
        &mut self,
        filter: &CancelFilter,
        limit: usize,
    ) -> Result<bool, TestCaseError> {
        let records = self.store.cancel(filter, limit).await.unwrap();
        let running = self.model.jobs.values().filter(|job| job.has_attempt());
        let running: HashSet<JobId> = running.map(|job| job.head.id).collect();
        let expected = self.model.cancel(filter, limit);
        let found: BTreeSet<JobId> = records.iter().map(|record| record.id).collect();
        prop_assert_eq!(found.len(), records.len(), "a job is cancelled twice");
        prop_assert_eq!(&found, &expected, "{:?}", filter);
        for record in &records {
            self.agrees(record)?;
        }
        for id in &found {
            let job = &self.model.jobs[id];
            let what = match (running.contains(id), job.has_attempt()) {
                (true, true) => "cancel: running",
                (true, false) => "cancel: lost",
                _ if self.model.is_unreleased(*id) => "cancel: deferred",
                _ if job.attempts.is_empty() => "cancel: never run",
                _ => "cancel: between attempts",
            };
            self.note(what);
        }
        if found.is_empty() {
            self.note("cancel: none");
        }
        Ok(!found.is_empty())
    }

    /// A message matches the model of its job.
    fn names(&self, released: &Released) -> Result<(JobId, Message), TestCaseError> {
        let (head, message) = match released {
            Released::Router(job) => (&job.head, Message::Router),
            Released::Tier(routed) => (&routed.job.head, Message::Tier(routed.tier)),
        };
        let known = &self.model.jobs[&head.id];
        prop_assert_eq!(head, &known.head);
        if let Released::Tier(routed) = released {
            prop_assert_eq!(routed.cache_key, known.cache_key);
        }
        Ok((head.id, message))
    }

    /// Returns the jobs to publish.
    pub async fn release(
        &mut self,
        jobs: &[JobId],
        again: bool,
    ) -> Result<Vec<JobId>, TestCaseError> {
        let released = self.store.release(jobs, again).await.unwrap();
        let was_held = |id: &JobId| self.model.is_unreleased(*id);
        let deferred: HashSet<JobId> = jobs.iter().copied().filter(was_held).collect();
        let expected = self.model.release(jobs, again);
        let mut found = Vec::new();
        for one in &released {
            found.push(self.names(one)?);
        }
        prop_assert_eq!(&found, &expected, "{:?} of {:?}", again, jobs);
        for (id, message) in &found {
            self.note(match message {
                _ if !deferred.contains(id) => "release: again",
                Message::Router => "release: to the router",
                Message::Tier(_) => "release: to a tier",
            });
        }
        self.look_for_unpublished().await?;
        // Every other one is noted as published.
        let known = found.iter().map(|(id, _)| *id).skip(1).step_by(2);
        let known: Vec<JobId> = known.collect();
        self.store.note_published(&known).await.unwrap();
        self.model.note_published(&known);
        let in_vain = deferred.len() > found.iter().filter(|(id, _)| deferred.contains(id)).count();
        if in_vain {
            self.note("release: ended or running");
        }
        Ok(found.into_iter().map(|(id, _)| id).collect())
    }

    async fn look_for_unpublished(&mut self) -> TestCaseResult {
        let unpublished = self
            .store
            .unpublished(Duration::ZERO, 10_000)
            .await
            .unwrap();
        let mine = unpublished
            .into_iter()
            .filter(|id| self.model.jobs.contains_key(id));
        let found: BTreeSet<JobId> = mine.collect();
        prop_assert_eq!(&found, &self.model.unpublished());
        if !found.is_empty() {
            self.note("scan: unpublished");
        }
        Ok(())
    }

    /// Returns the stuck jobs, and whether a job was ended.
    pub async fn rescue(
        &mut self,
        is_empty: [bool; 3],
        (limit, looked_at_max): (usize, usize),
    ) -> Result<(Vec<JobId>, bool), TestCaseError> {
        let mut rules = RescueRules {
            stuck_after: TimeDelta::zero(),
            stuck_after_busy: TimeDelta::hours(1),
            is_empty,
            limit,
            from: None,
            looked_at_max,
        };
        let before = self.now();
        let mut rescued = Rescued::default();
        loop {
            let part = self.store.rescue(rules).await.unwrap();
            prop_assert!(part.expired.len() <= limit && part.stuck.len() <= limit);
            rescued.expired.extend(part.expired);
            rescued.stuck.extend(part.stuck);
            rescued.attempts += part.attempts;
            rules.from = part.next;
            if part.next.is_none() {
                break;
            }
        }
        let after = self.now();
        prop_assert_eq!(rescued.attempts, 0, "their workers have minutes");
        // Other sequences, if they failed, left jobs.
        let is_mine = |id: &JobId| self.model.jobs.contains_key(id);
        let expired: BTreeSet<JobId> = rescued.expired.iter().map(|record| record.id).collect();
        let expired: BTreeSet<JobId> = expired.into_iter().filter(is_mine).collect();
        for (id, job) in &self.model.jobs {
            let deadline = job
                .head
                .deadline
                .filter(|_| job.is_open() && !self.model.is_alive(job));
            let (must, may) = (
                deadline.is_some_and(|at| at <= before) && limit > 1,
                deadline.is_some_and(|at| at <= after),
            );
            let is_swept = expired.contains(id);
            prop_assert!(is_swept || !must, "overdue {:?} is unchanged", job);
            prop_assert!(may || !is_swept, "{:?} was ended", job);
        }
        for id in &expired {
            self.model.expire(*id);
            self.note("rescue: expired");
        }
        for record in &rescued.expired {
            if expired.contains(&record.id) {
                self.agrees(record)?;
            }
        }
        let is_of_empty = |message: &Message| match message {
            Message::Router => is_empty[0],
            Message::Tier(tier) => is_empty[1 + usize::from(*tier == Tier::Large)],
        };
        let mut found = BTreeMap::new();
        for lost in &rescued.stuck {
            let id = match lost {
                Released::Router(job) => job.head.id,
                Released::Tier(routed) => routed.job.head.id,
            };
            // A job may become overdue between two steps.
            if self.model.jobs.contains_key(&id) && !expired.contains(&id) {
                let (id, message) = self.names(lost)?;
                prop_assert!(found.insert(id, message).is_none(), "twice at once");
            }
        }
        let unattended = self.model.unattended();
        for (id, message) in &found {
            let expected = unattended.get(id).map(|(message, _)| message);
            prop_assert_eq!(Some(message), expected, "{:?}", self.model.jobs[id]);
            prop_assert!(is_of_empty(message), "its queue has jobs yet");
            self.note(match message {
                Message::Router => "rescue: stuck before the router",
                Message::Tier(_) if self.model.jobs[id].attempts.is_empty() => "rescue: stuck",
                Message::Tier(_) => "rescue: stuck in a dead worker",
            });
        }
        for (id, (message, may_wait)) in &unattended {
            let is_found = found.contains_key(id) || *may_wait || limit == 1;
            prop_assert!(is_found || !is_of_empty(message), "{:?} is lost", id);
        }
        let is_changed = !expired.is_empty();
        Ok((found.into_keys().collect(), is_changed))
    }

    pub async fn take_over(
        &mut self,
        limit: usize,
        lease: Lease,
    ) -> Result<Vec<JobId>, TestCaseError> {
        let free = self.model.takeover_candidates();
        let taken_over = self
            .store
            .take_over_flights(limit, span(lease))
            .await
            .unwrap();
        prop_assert_eq!(
            taken_over.len(),
            limit.min(free.len()),
            "{:?} of {:?}",
            taken_over,
            free
        );
        let mut keys = HashSet::new();
        for routed in &taken_over {
            let id = routed.job.head.id;
            let key = free.get(&id).copied();
            prop_assert!(key.is_some(), "{} does not wait first: {:?}", id, free);
            prop_assert_eq!(routed.cache_key, key);
            prop_assert_eq!(Some(routed.tier), self.model.jobs[&id].tier);
            prop_assert_eq!(&routed.job.head, &self.model.jobs[&id].head);
            prop_assert!(keys.insert(key), "two for one key");
            self.model.take_over(id, key.unwrap(), lease);
            self.note("takeover: one");
        }
        Ok(taken_over.iter().map(|routed| routed.job.head.id).collect())
    }

    pub async fn acquire_leadership(
        &mut self,
        role: usize,
        holder: usize,
        lease: Lease,
    ) -> TestCaseResult {
        let (role, holder) = (ROLES[role], HOLDERS[holder]);
        let leads = self
            .store
            .acquire_leadership(role, holder, span(lease))
            .await
            .unwrap();
        let led = self.leaders.get(role);
        let is_free = led.is_none_or(|(by, lease)| *by == holder || *lease == Lease::None);
        prop_assert_eq!(leads, is_free, "{} under {:?}", holder, led);
        if leads {
            self.leaders.insert(role, (holder, lease));
        }
        self.note(if leads {
            "leadership: taken"
        } else {
            "leadership: refused"
        });
        Ok(())
    }

    /// Compares deferred jobs, tenant loads and superseded attempts.
    pub async fn look(&mut self, each: usize) -> TestCaseResult {
        for queue in DeferredQueue::ALL {
            let deferred = self.store.deferred(queue, each).await.unwrap();
            let mine = deferred
                .into_iter()
                .filter(|deferred| self.tenants.contains(&deferred.tenant));
            let found: Vec<_> = mine
                .map(|deferred| (deferred.tenant, deferred.job, deferred.tokens))
                .collect();
            prop_assert_eq!(
                found,
                self.model.could_go(queue, each, self.now()),
                "{:?}",
                queue
            );
        }
        let tenants = self.store.deferred_tenants().await.unwrap();
        let mine = tenants
            .into_iter()
            .filter(|(_, tenant)| self.tenants.contains(tenant));
        prop_assert_eq!(mine.collect::<BTreeSet<_>>(), self.model.deferred_tenants());
        let most = u32::try_from(each).unwrap();
        let counts = self.store.deferred_counts(most).await.unwrap();
        let deferred = self.model.deferred_counts();
        for (at, count) in counts.into_iter().enumerate() {
            prop_assert_eq!(
                count,
                most.min(deferred[at] + self.deferred_before[at]),
                "{:?}",
                deferred
            );
        }
        self.look_for_unpublished().await?;
        let loads = self.store.tenant_loads().await.unwrap();
        let mine = loads
            .into_iter()
            .filter(|load| self.tenants.contains(&load.tenant));
        let found: BTreeMap<_, _> = mine
            .map(|load| (load.tenant, (load.running, load.tokens_last_minute)))
            .collect();
        prop_assert_eq!(&found, &self.model.loads(&self.tenants[1]));
        if !found.is_empty() {
            self.note("scan: loads");
        }
        let (mut all, mut expected) = (Vec::new(), Vec::new());
        for (id, job) in &self.model.jobs {
            let latest = u32::try_from(job.attempts.len()).unwrap();
            for attempt in 1..=latest {
                all.push((*id, attempt));
                let is_its_own = job.is_running() && attempt == latest;
                expected.extend((!is_its_own).then_some(*id));
            }
        }
        let superseded = self.store.superseded(&all).await.unwrap();
        if superseded.len() < all.len() && !superseded.is_empty() {
            self.note("scan: superseded");
        }
        prop_assert_eq!(superseded, expected);
        Ok(())
    }
}
