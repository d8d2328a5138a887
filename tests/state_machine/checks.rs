//! Invariants that hold after every operation, and at the end.

use std::collections::{HashMap, HashSet};

use promptyard::{
    job::{JobId, JobRecord, JobState, Tier},
    store::{Claim, Claimant, DeadFilter, RecordFilter},
};
use proptest::{
    prelude::*,
    test_runner::{TestCaseError, TestCaseResult},
};

use crate::{
    driver::Case,
    model::{Attempt, Job, Lease},
    operations::{End, Pick, Which, Word},
    support::store::LONG,
};

impl Case {
    /// A record matches the model; that of a terminal job never changes again.
    pub fn agrees(&self, record: &JobRecord) -> TestCaseResult {
        let job = &self.model.jobs[&record.id];
        let given = job.answer.as_ref();
        prop_assert_eq!(record.state, job.state, "{:?}", record);
        prop_assert_eq!(record.tier, job.tier, "{:?}", record);
        prop_assert_eq!(record.attempts as usize, job.attempts.len(), "{:?}", record);
        let text = record.answer.as_ref().map(|answer| answer.text.as_str());
        prop_assert_eq!(text, given.map(|given| given.text.as_str()), "{:?}", record);
        prop_assert_eq!(
            record.source,
            given.map(|given| given.source),
            "{:?}",
            record
        );
        prop_assert_eq!(
            record.answered_by,
            given.and_then(|given| given.by),
            "{:?}",
            record
        );
        let code = record.reason.as_ref().map(|reason| &reason.code);
        prop_assert_eq!(code, job.reason.as_ref(), "{:?}", record);
        prop_assert_eq!(record.answer.is_some(), record.state == JobState::Succeeded);
        let limit = job.head.attempts_max.unwrap_or(u32::MAX);
        prop_assert!(job.counted() <= limit as usize, "{:?} has too many", job);
        prop_assert_eq!(
            record.finished_at.is_some(),
            record.state.is_terminal(),
            "{:?}",
            record
        );
        match self.records.get(&record.id) {
            Some(before) if before.state.is_terminal() => prop_assert_eq!(record, before),
            _ => {}
        }
        Ok(())
    }

    /// Compares all records with the model, or with their last state where nothing changed.
    pub async fn check(&mut self, is_changed: bool) -> TestCaseResult {
        prop_assert_eq!(self.model.forgotten(), None, "it waits for nobody");
        let ids: Vec<JobId> = self.model.jobs.keys().copied().collect();
        let records = self.store.records(&ids).await.unwrap();
        prop_assert_eq!(records.len(), ids.len());
        let records: HashMap<JobId, JobRecord> = records
            .into_iter()
            .map(|record| (record.id, record))
            .collect();
        for record in records.values() {
            self.agrees(record)?;
        }
        let mut fallen_back = 0;
        for (id, record) in &records {
            let before = self.records.get(id);
            prop_assert!(
                is_changed || before == Some(record),
                "{:?} became {:?}",
                before,
                record
            );
            if before != Some(record) && record.answer.is_some() && record.reason.is_some() {
                fallen_back += 1;
            }
            let is_same = before == Some(record) && record.state != JobState::Cancelled;
            if !is_same {
                self.check_attempts(*id).await?;
            }
        }
        if fallen_back > 0 {
            self.note("check: fell back");
        }
        self.records = records;
        Ok(())
    }

    /// Attempts are numbered from 1, each has one outcome, and only a running job's latest runs.
    async fn check_attempts(&self, id: JobId) -> TestCaseResult {
        let job = &self.model.jobs[&id];
        let found = self.store.attempts(id).await.unwrap();
        let numbers: Vec<usize> = found
            .iter()
            .map(|attempt| attempt.attempt as usize)
            .collect();
        prop_assert_eq!(numbers, (1..=job.attempts.len()).collect::<Vec<_>>());
        for (at, (attempt, expected)) in found.iter().zip(&job.attempts).enumerate() {
            let observed = Attempt {
                tier: attempt.tier,
                worker: attempt.worker.clone(),
                outcome: expected.outcome,
                wrote: attempt.answer.clone(),
                counts: expected.counts,
            };
            prop_assert_eq!(&observed, expected);
            prop_assert_eq!(
                &attempt.outcome,
                expected.outcome,
                "attempt {} of {}",
                at + 1,
                id
            );
            let is_latest = at + 1 == found.len();
            // A cancelled job's attempt runs until its worker learns of the cancellation.
            let is_running = is_latest
                && (job.is_running() || job.state == JobState::Cancelled && job.has_attempt());
            prop_assert_eq!(attempt.outcome == "running", is_running);
            prop_assert_eq!(attempt.finished_at.is_none(), is_running);
        }
        Ok(())
    }

    /// Ends every job, as live workers, the releaser, the rescuer and the single-flight takeover would, and
    /// counts the rest.
    pub async fn drain(&mut self) -> TestCaseResult {
        for _ in 0..self.model.jobs.len() + 2 {
            if !self.model.jobs.values().any(Job::is_open) {
                break;
            }
            for id in self.published().await? {
                if self.model.jobs[&id].is_open() {
                    self.finish(id).await?;
                }
            }
        }
        // The workers of cancelled jobs learn of it.
        while self.model.jobs.values().any(Job::has_attempt) {
            self.say(0, End::Cancelled { written: true }).await?;
        }
        // Jobs that have ended are not deferred any more.
        let deferred: Vec<JobId> = self.model.deferred.keys().copied().collect();
        self.release(&deferred, false).await?;
        self.look(100).await?;
        prop_assert_eq!(self.model.deferred_counts(), [0; 3]);
        let ids: Vec<JobId> = self.model.jobs.keys().copied().collect();
        for id in &ids {
            prop_assert!(!self.model.jobs[id].is_open(), "{} never ends", id);
            self.check_attempts(*id).await?;
        }
        for tenant in self.tenants.clone() {
            let letters = DeadFilter {
                tenant: Some(tenant.clone()),
                ..DeadFilter::default()
            };
            let letters = self.store.dead_letters(&letters, 1000).await.unwrap();
            let mut dead: Vec<JobId> = letters.iter().filter_map(|letter| letter.job).collect();
            dead.sort_unstable();
            let mine = self
                .model
                .jobs
                .values()
                .filter(|job| job.head.tenant == tenant);
            let buried: Vec<JobId> = mine
                .clone()
                .filter(|job| job.is_buried)
                .map(|job| job.head.id)
                .collect();
            prop_assert_eq!(dead, buried);
            let count = mine.count();
            let filter = RecordFilter {
                tenant: Some(tenant),
                ..RecordFilter::default()
            };
            let finished = self.store.finished(&filter, 1000).await.unwrap();
            prop_assert_eq!(finished.len(), count);
        }
        Ok(())
    }

    /// Releases deferred jobs; returns the open jobs that a worker has or that have a message.
    async fn published(&mut self) -> Result<HashSet<JobId>, TestCaseError> {
        let deferred = self.model.deferred.keys().copied();
        let deferred: Vec<JobId> = deferred
            .filter(|id| self.model.is_unreleased(*id))
            .collect();
        let mut published: HashSet<JobId> =
            self.release(&deferred, false).await?.into_iter().collect();
        let (lost, is_changed) = self.rescue([true; 3], (1000, 1000)).await?;
        self.check(is_changed).await?;
        published.extend(lost);
        let taken_over = self.take_over(100, Lease::None).await?;
        published.extend(taken_over);
        self.model.end_operation();
        // While a claim holds, its worker has the job or has requeued it; a job that took over before has
        // its message.
        let jobs = self.model.jobs.values();
        let worked_on = jobs.filter(|job| {
            self.model.is_alive(job)
                || job.state == JobState::Routed && !job.waits && job.is_leased
                || job.waits && self.model.leads(job)
        });
        published.extend(worked_on.map(|job| job.head.id));
        Ok(published)
    }

    /// Runs a job as a worker does on redelivery.
    async fn finish(&mut self, id: JobId) -> TestCaseResult {
        let job = &self.model.jobs[&id];
        let claimant = Claimant {
            attempts_max: 1000,
            ..self.worker(3, job.tier.unwrap_or(Tier::Small), LONG)
        };
        let claims = [Claim {
            job: id,
            redelivered: true,
        }];
        let mut is_changed = self.claim(&claimant, &claims, Lease::Long).await?;
        let jobs = &self.model.jobs;
        if let Some(at) = jobs
            .values()
            .filter(|job| job.has_attempt())
            .position(|job| job.head.id == id && job.is_running())
        {
            is_changed |= self.say(at, End::Succeeded).await?;
        }
        self.model.end_operation();
        self.check(is_changed).await
    }

    /// Settles the open attempt at a position.
    async fn say(&mut self, at: usize, end: End) -> Result<bool, TestCaseError> {
        let word = Word {
            pick: Pick::Fitting(u16::try_from(at).unwrap()),
            attempt: Which::Latest,
            end,
            reusable: false,
            ttl: Lease::Long,
            twice: false,
        };
        self.settle(&word).await
    }
}
