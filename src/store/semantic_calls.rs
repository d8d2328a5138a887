//! The seam's calls for semantic reuse; [`super::Store`] holds the others.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{KnownQuestion, Recheck, RecheckOutcome, Store, StoreError, measure};
use crate::job::{Answer, CacheKey, Job, JobId, Tier};

impl Store {
    /// Questions of an encoder whose answers are ready, of which row or answer changed at or after an
    /// instant, the latest first.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn known_questions(
        &self,
        embedder: &str,
        since: DateTime<Utc>,
        limit: usize,
    ) -> Result<Vec<KnownQuestion>, StoreError> {
        measured!(self, "known_questions", store => store.known_questions(embedder, since, limit))
    }

    /// The answer that a cache entry holds and the job that computed it, while it may be reused.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn cached(&self, key: CacheKey) -> Result<Option<(Answer, JobId)>, StoreError> {
        measured!(self, "cached", store => store.cached(key))
    }

    /// Closes the rechecks for which there is nothing to run, and returns how many are under way.
    ///
    /// # Errors
    /// When nothing was written.
    pub async fn open_rechecks(&self) -> Result<u64, StoreError> {
        measured!(self, "open_rechecks", store => store.open_rechecks())
    }

    /// Jobs given another question's answer that are to be run again, with the tier they were routed
    /// to, and those whose copy was made longer than `stuck_after` ago but never taken by a worker.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn due_rechecks(
        &self,
        limit: usize,
        stuck_after: Duration,
    ) -> Result<Vec<(Job, Tier)>, StoreError> {
        measured!(self, "due_rechecks", store => store.due_rechecks(limit, stuck_after))
    }

    /// Rechecks whose copy has ended and that nobody has judged yet.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn ended_rechecks(&self, limit: usize) -> Result<Vec<Recheck>, StoreError> {
        measured!(self, "ended_rechecks", store => store.ended_rechecks(limit))
    }

    /// Writes what rechecks came to; returns those that nobody had judged before, so that each counts
    /// once.
    ///
    /// # Errors
    /// When nothing was written.
    pub async fn settle_rechecks(
        &self,
        judgements: &[RecheckOutcome],
    ) -> Result<Vec<JobId>, StoreError> {
        measured!(self, "settle_rechecks", store => store.settle_rechecks(judgements))
    }
}
