//! Held jobs: who waits for which queue, and their release.

use std::time::Duration;

use chrono::TimeDelta;
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::{SqliteStore, dead, find_row};
use crate::{
    job::{JobId, JobState, Tenant},
    store::{
        DeferredJob, DeferredQueue, Released, TenantLoad,
        deferral::{self, Extras},
        error::BackendError,
        row::Row,
        rules::{after, before},
    },
};

impl SqliteStore {
    pub(crate) async fn acquire_leadership(
        &self,
        role: &'static str,
        holder: &str,
        lease: Duration,
    ) -> Result<bool, BackendError> {
        let now = self.clock.now();
        let led = sqlx::query(
            "insert into leaders (role, holder, lease_until) values (?1, ?2, ?3)
                 on conflict (role) do update
                set holder = excluded.holder, lease_until = excluded.lease_until
              where leaders.holder = excluded.holder or leaders.lease_until < ?4",
        )
        .bind(role)
        .bind(holder)
        .bind(after(now, lease))
        .bind(now)
        .execute(&self.writer)
        .await?;
        Ok(led.rows_affected() > 0)
    }

    pub(crate) async fn deferred(
        &self,
        queue: DeferredQueue,
        each: usize,
    ) -> Result<Vec<DeferredJob>, BackendError> {
        let mut held = Vec::new();
        for tenant in self.waiting_tenants(queue).await? {
            let rows: Vec<(Uuid, i64)> = sqlx::query_as(
                "select job_id, tokens from deferred_jobs
                  where queue = ?1 and tenant = ?2 and released_at is null and rank <= ?3
                  order by rank, job_id limit ?4",
            )
            .bind(queue.as_str())
            .bind(tenant.as_str())
            .bind(self.clock.now())
            .bind(i64::try_from(each).unwrap_or(i64::MAX))
            .fetch_all(&self.readers)
            .await?;
            held.extend(rows.into_iter().map(|(id, tokens)| DeferredJob {
                job: JobId(id),
                tenant: tenant.clone(),
                tokens: u32::try_from(tokens).unwrap_or(0),
            }));
        }
        Ok(held)
    }

    /// Each tenant is found by one step into the index, however many jobs it has.
    async fn waiting_tenants(&self, queue: DeferredQueue) -> Result<Vec<Tenant>, BackendError> {
        let tenants = sqlx::query_scalar(
            "with recursive t (tenant) as (
                 select min(tenant) from deferred_jobs where queue = ?1 and released_at is null
                 union all
                 select (select min(h.tenant) from deferred_jobs h
                          where h.queue = ?1 and h.released_at is null and h.tenant > t.tenant)
                   from t where t.tenant is not null)
             select tenant from t where tenant is not null",
        )
        .bind(queue.as_str())
        .fetch_all(&self.readers)
        .await?;
        Ok(tenants)
    }

    pub(crate) async fn deferred_tenants(
        &self,
    ) -> Result<Vec<(DeferredQueue, Tenant)>, BackendError> {
        let mut held = Vec::new();
        for queue in &DeferredQueue::ALL[1..] {
            for tenant in self.waiting_tenants(*queue).await? {
                held.push((*queue, tenant));
            }
        }
        Ok(held)
    }

    pub(crate) async fn deferred_counts(&self, most: u32) -> Result<[u32; 3], BackendError> {
        let mut counts = [0; 3];
        for (count, queue) in counts.iter_mut().zip(DeferredQueue::ALL) {
            let held: i64 = sqlx::query_scalar(
                "select count(*) from (select 1 from deferred_jobs
                  where queue = ?1 and released_at is null limit ?2)",
            )
            .bind(queue.as_str())
            .bind(most)
            .fetch_one(&self.readers)
            .await?;
            *count = u32::try_from(held).unwrap_or(0);
        }
        Ok(counts)
    }

    pub(crate) async fn release(
        &self,
        jobs: &[JobId],
        again: bool,
    ) -> Result<Vec<Released>, BackendError> {
        let mut transaction = self.begin().await?;
        let now = self.clock.now();
        let mut released = Vec::with_capacity(jobs.len());
        for job in jobs {
            let held: Option<Option<String>> = sqlx::query_scalar(
                "update deferred_jobs set released_at = ?2
                  where job_id = ?1 and (released_at is null or ?3) returning extras",
            )
            .bind(job.0)
            .bind(now)
            .bind(again)
            .fetch_optional(&mut *transaction)
            .await?;
            let (Some(extras), Some(row)) = (held, find_row(&mut transaction, job.0).await?) else {
                continue;
            };
            let request = dead::request(&mut transaction, job.0).await?;
            let message = request
                .map(|request| deferral::message(&row, &request))
                .transpose()?;
            match message.flatten() {
                Some(Released::Tier(mut routed)) => {
                    Extras::restore(extras.as_deref(), &mut routed);
                    released.push(Released::Tier(routed));
                }
                Some(message) => released.push(message),
                // One that runs goes on counting against its tenant's limits.
                None if row.state == JobState::Running => {}
                None => forget(&mut transaction, job.0).await?,
            }
        }
        transaction.commit().await?;
        Ok(released)
    }

    pub(crate) async fn note_published(&self, jobs: &[JobId]) -> Result<(), BackendError> {
        let mut transaction = self.begin().await?;
        let now = self.clock.now();
        for job in jobs {
            sqlx::query(
                "update deferred_jobs set published_at = ?2
                  where job_id = ?1 and released_at is not null",
            )
            .bind(job.0)
            .bind(now)
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    pub(crate) async fn unpublished(
        &self,
        released_for: Duration,
        limit: usize,
    ) -> Result<Vec<JobId>, BackendError> {
        let found: Vec<Uuid> = sqlx::query_scalar(
            "select h.job_id from deferred_jobs h join jobs j on j.id = h.job_id
              where h.released_at <= ?1 and h.published_at is null
                and j.state = case when h.queue = 'in' then 'queued' else 'routed' end
                and j.waits_for is null and j.attempts = 0
              order by h.released_at, h.job_id limit ?2",
        )
        .bind(before(self.clock.now(), released_for))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.readers)
        .await?;
        Ok(found.into_iter().map(JobId).collect())
    }

    pub(crate) async fn tenant_loads(&self) -> Result<Vec<TenantLoad>, BackendError> {
        let minute_ago = self.clock.now() - TimeDelta::minutes(1);
        let mut transaction = self.begin().await?;
        sqlx::query(
            "delete from deferred_jobs
              where released_at is not null
                and not exists (select 1 from jobs j where j.id = deferred_jobs.job_id and j.finished_at is null
                                   and (deferred_jobs.queue <> 'in' or j.state = 'queued'))
                and (released_at < ?1 or queue = 'in'
                     or not exists (select 1 from tenants t where t.tenant = deferred_jobs.tenant
                                       and t.tokens_per_minute is not null))",
        )
        .bind(minute_ago)
        .execute(&mut *transaction)
        .await?;
        let rows: Vec<(Tenant, i64, i64)> = sqlx::query_as(
            "select h.tenant, count(*) filter (where j.finished_at is null),
                    coalesce(sum(h.tokens) filter (where h.released_at >= ?1), 0)
               from deferred_jobs h left join jobs j on j.id = h.job_id
              where h.released_at is not null and h.queue <> 'in' group by h.tenant",
        )
        .bind(minute_ago)
        .fetch_all(&mut *transaction)
        .await?;
        transaction.commit().await?;
        let loads = rows
            .into_iter()
            .map(|(tenant, running, tokens)| TenantLoad {
                tenant,
                running: u32::try_from(running).unwrap_or(u32::MAX),
                tokens_last_minute: u64::try_from(tokens).unwrap_or(0),
            });
        Ok(loads.collect())
    }
}

async fn forget(connection: &mut SqliteConnection, id: Uuid) -> Result<(), BackendError> {
    sqlx::query("delete from deferred_jobs where job_id = ?1")
        .bind(id)
        .execute(connection)
        .await?;
    Ok(())
}

/// True when a job waits to be released.
pub(super) async fn is_deferred(
    connection: &mut SqliteConnection,
    row: &Row,
) -> Result<bool, BackendError> {
    if !row.is_open() || row.state == JobState::Running {
        return Ok(false);
    }
    let held: Option<i64> =
        sqlx::query_scalar("select 1 from deferred_jobs where job_id = ?1 and released_at is null")
            .bind(row.id)
            .fetch_optional(connection)
            .await?;
    Ok(held.is_some())
}
