//! The seam's calls for kept answers as a whole; [`super::Store`] holds the others.

use super::{CacheFilter, CacheLimits, CacheStats, CacheUpkeep, Store, StoreError, measure};
use crate::job::{JobId, JobRecord};

impl Store {
    /// Removes the entries that are to go, in small steps: no entry that a job computes, nor one that
    /// jobs wait for. `None` when another process is at it.
    ///
    /// # Errors
    /// When the database cannot be reached; what was removed before stays so.
    pub async fn tend_cache(&self, limits: CacheLimits) -> Result<Option<CacheUpkeep>, StoreError> {
        measured!(self, "tend_cache", store => store.tend_cache(limits))
    }

    /// Figures of the kept answers, by tenant, model and revision; the most entries first.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn cache_stats(&self) -> Result<Vec<CacheStats>, StoreError> {
        measured!(self, "cache_stats", store => store.cache_stats())
    }

    /// The number of kept answers that a filter means.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn count_cached(&self, filter: &CacheFilter) -> Result<u64, StoreError> {
        measured!(self, "count_cached", store => store.count_cached(filter))
    }

    /// Removes the kept answers that a filter means; returns how many there were. Jobs that were
    /// answered from them keep their answers.
    ///
    /// # Errors
    /// When nothing was removed.
    pub async fn drop_cached(&self, filter: &CacheFilter) -> Result<u64, StoreError> {
        measured!(self, "drop_cached", store => store.drop_cached(filter))
    }

    /// The jobs with a reply queue that were settled together with these, by their answers.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn answered_along(&self, jobs: &[JobId]) -> Result<Vec<JobRecord>, StoreError> {
        measured!(self, "answered_along", store => store.answered_along(jobs))
    }
}
