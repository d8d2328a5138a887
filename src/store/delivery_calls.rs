//! The seam's calls for jobs that are held, lost or taken back; [`super::Store`] holds the others.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{
    CancelFilter, CancelledBatch, DeferredJob, DeferredQueue, Released, RescueRules, Rescued,
    Store, StoreError, TenantLimits, TenantLoad, measure,
};
use crate::job::{JobId, JobRecord, Tenant};

impl Store {
    /// Takes or keeps the lead in something that only one process does at a time, for `lease`; false
    /// while another leads.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn acquire_leadership(
        &self,
        role: &'static str,
        holder: &str,
        lease: Duration,
    ) -> Result<bool, StoreError> {
        measured!(self, "lead", store => store.acquire_leadership(role, holder, lease))
    }

    /// The jobs that could go to a queue now: for each tenant the first `each` by rank.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn deferred(
        &self,
        queue: DeferredQueue,
        each: usize,
    ) -> Result<Vec<DeferredJob>, StoreError> {
        measured!(self, "held", store => store.deferred(queue, each))
    }

    /// The tenants that have jobs held for a tier.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn deferred_tenants(&self) -> Result<Vec<(DeferredQueue, Tenant)>, StoreError> {
        measured!(self, "deferred_tenants", store => store.deferred_tenants())
    }

    /// How many jobs are held for each queue, in the order of [`DeferredQueue::ALL`]; counted up to `most`.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn deferred_counts(&self, most: u32) -> Result<[u32; 3], StoreError> {
        measured!(self, "deferred_counts", store => store.deferred_counts(most))
    }

    /// Releases held jobs and returns those that are to be published; what has ended meanwhile is held
    /// no more. `again` returns also those that were released before: a call whose word was lost may have
    /// done it.
    ///
    /// # Errors
    /// When nothing was changed, or that is not known.
    pub async fn release(&self, jobs: &[JobId], again: bool) -> Result<Vec<Released>, StoreError> {
        measured!(self, "release", store => store.release(jobs, again))
    }

    /// Notes that the broker has the messages of released jobs.
    ///
    /// # Errors
    /// When nothing was written.
    pub async fn note_published(&self, jobs: &[JobId]) -> Result<(), StoreError> {
        measured!(self, "note_published", store => store.note_published(jobs))
    }

    /// Jobs that were released so long ago, whose next stage has not seen them and whose message nobody is
    /// known to have published: the router that released them may have died over it. Those released first
    /// come first, at most `limit` of them.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn unpublished(
        &self,
        released_for: Duration,
        limit: usize,
    ) -> Result<Vec<JobId>, StoreError> {
        measured!(self, "unpublished", store => store.unpublished(released_for, limit))
    }

    /// Forgets released jobs that count against no limit any more, and returns what counts.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn tenant_loads(&self) -> Result<Vec<TenantLoad>, StoreError> {
        measured!(self, "tenant_loads", store => store.tenant_loads())
    }

    /// What tenants are entitled to, by name; those that nothing was said of are not among them.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn tenants(&self) -> Result<Vec<TenantLimits>, StoreError> {
        measured!(self, "tenants", store => store.tenants())
    }

    /// Says what a tenant is entitled to.
    ///
    /// # Errors
    /// When nothing was written.
    pub async fn set_tenant(&self, terms: &TenantLimits) -> Result<(), StoreError> {
        measured!(self, "set_tenant", store => store.set_tenant(terms))
    }

    /// Gives a tenant the defaults again; false when it had them.
    ///
    /// # Errors
    /// When nothing was written.
    pub async fn forget_tenant(&self, tenant: &Tenant) -> Result<bool, StoreError> {
        measured!(self, "forget_tenant", store => store.forget_tenant(tenant))
    }

    /// Puts right what a error left behind: ends jobs whose deadline has passed and that nobody runs,
    /// closes attempts of ended jobs whose worker is gone, and finds jobs whose message seems lost.
    ///
    /// # Errors
    /// When nothing was changed.
    pub async fn rescue(&self, rules: RescueRules) -> Result<Rescued, StoreError> {
        measured!(self, "sweep", store => store.rescue(rules))
    }

    /// Takes unfinished jobs back: at most `limit` of a submission, of which it is kept that it was taken
    /// back ([`Store::cancelled_batches`]). Returns the records of those that are cancelled by it. Attempts that run are told by [`Store::superseded`].
    ///
    /// # Errors
    /// When nothing was written.
    pub async fn cancel(
        &self,
        filter: &CancelFilter,
        limit: usize,
    ) -> Result<Vec<JobRecord>, StoreError> {
        measured!(self, "cancel", store => store.cancel(filter, limit))
    }

    /// The submissions that were taken back since an instant.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn cancelled_batches(
        &self,
        since: DateTime<Utc>,
    ) -> Result<Vec<CancelledBatch>, StoreError> {
        measured!(self, "cancelled_batches", store => store.cancelled_batches(since))
    }

    /// Those of the attempts whose job is theirs no more: it has ended or a newer attempt has it.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn superseded(&self, attempts: &[(JobId, u32)]) -> Result<Vec<JobId>, StoreError> {
        measured!(self, "superseded", store => store.superseded(attempts))
    }
}
