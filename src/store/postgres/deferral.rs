//! Held jobs: who waits for which queue, and their release.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use chrono::TimeDelta;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{PostgresStore, dead, lock_rows};
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

impl PostgresStore {
    pub(crate) async fn acquire_leadership(
        &self,
        role: &'static str,
        holder: &str,
        lease: Duration,
    ) -> Result<bool, BackendError> {
        let now = self.clock.now();
        let led = sqlx::query!(
            "insert into leaders (role, holder, lease_until) values ($1, $2, $3)
                 on conflict (role) do update
                set holder = excluded.holder, lease_until = excluded.lease_until
              where leaders.holder = excluded.holder or leaders.lease_until < $4",
            role,
            holder,
            after(now, lease),
            now
        )
        .execute(&self.pool)
        .await?;
        Ok(led.rows_affected() > 0)
    }

    pub(crate) async fn deferred(
        &self,
        queue: DeferredQueue,
        each: usize,
    ) -> Result<Vec<DeferredJob>, BackendError> {
        // Each tenant is found by one step into the index, however many jobs it has.
        let rows = sqlx::query!(
            r#"with recursive t (tenant) as (
                   select min(tenant) from deferred_jobs where queue = $1 and released_at is null
                   union all
                   select (select min(h.tenant) from deferred_jobs h
                            where h.queue = $1 and h.released_at is null and h.tenant > t.tenant)
                     from t where t.tenant is not null)
               select h.job_id, h.tenant as "tenant: Tenant", h.tokens
                 from t cross join lateral (
                      select job_id, tenant, tokens, rank from deferred_jobs
                       where queue = $1 and tenant = t.tenant and released_at is null and rank <= $2
                       order by rank, job_id limit $3) h
                order by h.tenant, h.rank, h.job_id"#,
            queue.as_str(),
            self.clock.now(),
            i64::try_from(each).unwrap_or(i64::MAX)
        )
        .fetch_all(&self.pool)
        .await?;
        let found = rows.into_iter().map(|row| DeferredJob {
            job: JobId(row.job_id),
            tenant: row.tenant,
            tokens: u32::try_from(row.tokens).unwrap_or(0),
        });
        Ok(found.collect())
    }

    pub(crate) async fn deferred_tenants(
        &self,
    ) -> Result<Vec<(DeferredQueue, Tenant)>, BackendError> {
        let rows = sqlx::query!(
            r#"with recursive t (queue, tenant) as (
                   select q.queue, (select min(tenant) from deferred_jobs h
                                     where h.queue = q.queue and h.released_at is null)
                     from unnest(array['small', 'large']) as q (queue)
                   union all
                   select t.queue, (select min(h.tenant) from deferred_jobs h
                                     where h.queue = t.queue and h.released_at is null
                                       and h.tenant > t.tenant)
                     from t where t.tenant is not null)
               select queue as "queue!: DeferredQueue", tenant as "tenant!: Tenant" from t where tenant is not null"#
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| (row.queue, row.tenant))
            .collect())
    }

    pub(crate) async fn deferred_counts(&self, most: u32) -> Result<[u32; 3], BackendError> {
        let mut counts = [0; 3];
        for (count, queue) in counts.iter_mut().zip(DeferredQueue::ALL) {
            let held = sqlx::query_scalar!(
                r#"select count(*) as "held!" from (
                       select 1 from deferred_jobs where queue = $1 and released_at is null limit $2) h"#,
                queue.as_str(),
                i64::from(most)
            )
            .fetch_one(&self.pool)
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
        let mut transaction = self.pool.begin().await?;
        let ids: Vec<Uuid> = jobs.iter().map(|job| job.0).collect();
        let rows: HashMap<Uuid, Row> = lock_rows(&mut transaction, &ids)
            .await?
            .into_iter()
            .map(|row| (row.id, row))
            .collect();
        let mut held: HashMap<Uuid, Option<String>> = sqlx::query!(
            "update deferred_jobs set released_at = $2
              where job_id = any($1) and (released_at is null or $3) returning job_id, extras",
            &ids,
            self.clock.now(),
            again
        )
        .fetch_all(&mut *transaction)
        .await?
        .into_iter()
        .map(|row| (row.job_id, row.extras))
        .collect();
        let requests = dead::requests(&mut transaction, &ids).await?;
        let (mut released, mut gone) = (Vec::with_capacity(ids.len()), Vec::new());
        // In the order that was asked for; one that is asked for twice goes once.
        for id in ids {
            let Some(extras) = held.remove(&id) else {
                continue;
            };
            let known = rows.get(&id).zip(requests.get(&id));
            let message = known.map(|(row, request)| deferral::message(row, request));
            match message.transpose()?.flatten() {
                Some(Released::Tier(mut routed)) => {
                    Extras::restore(extras.as_deref(), &mut routed);
                    released.push(Released::Tier(routed));
                }
                Some(message) => released.push(message),
                // One that runs goes on counting against its tenant's limits.
                None if rows
                    .get(&id)
                    .is_some_and(|row| row.state == JobState::Running) => {}
                None => gone.push(id),
            }
        }
        sqlx::query!("delete from deferred_jobs where job_id = any($1)", &gone)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(released)
    }

    pub(crate) async fn note_published(&self, jobs: &[JobId]) -> Result<(), BackendError> {
        let ids: Vec<Uuid> = jobs.iter().map(|job| job.0).collect();
        sqlx::query!(
            "update deferred_jobs set published_at = $2
              where job_id = any($1) and released_at is not null",
            &ids,
            self.clock.now()
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    pub(crate) async fn unpublished(
        &self,
        released_for: Duration,
        limit: usize,
    ) -> Result<Vec<JobId>, BackendError> {
        let found = sqlx::query_scalar!(
            "select h.job_id from deferred_jobs h join jobs j on j.id = h.job_id
              where h.released_at <= $1 and h.published_at is null
                and j.state = case when h.queue = 'in' then 'queued' else 'routed' end
                and j.waits_for is null and j.attempts = 0
              order by h.released_at, h.job_id limit $2",
            before(self.clock.now(), released_for),
            i64::try_from(limit).unwrap_or(i64::MAX)
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(found.into_iter().map(JobId).collect())
    }

    pub(crate) async fn tenant_loads(&self) -> Result<Vec<TenantLoad>, BackendError> {
        let minute_ago = self.clock.now() - TimeDelta::minutes(1);
        sqlx::query!(
            "delete from deferred_jobs h
              where h.released_at is not null
                and not exists (select from jobs j where j.id = h.job_id and j.finished_at is null
                                   and (h.queue <> 'in' or j.state = 'queued'))
                and (h.released_at < $1 or h.queue = 'in'
                     or not exists (select from tenants t where t.tenant = h.tenant
                                       and t.tokens_per_minute is not null))",
            minute_ago
        )
        .execute(&self.pool)
        .await?;
        let rows = sqlx::query!(
            r#"select h.tenant as "tenant: Tenant", count(*) filter (where j.finished_at is null) as "running!",
                      coalesce(sum(h.tokens) filter (where h.released_at >= $1), 0)::bigint as "tokens!"
                 from deferred_jobs h left join jobs j on j.id = h.job_id
                where h.released_at is not null and h.queue <> 'in' group by h.tenant"#,
            minute_ago
        )
        .fetch_all(&self.pool)
        .await?;
        let found = rows.into_iter().map(|row| TenantLoad {
            tenant: row.tenant,
            running: u32::try_from(row.running).unwrap_or(u32::MAX),
            tokens_last_minute: u64::try_from(row.tokens).unwrap_or(0),
        });
        Ok(found.collect())
    }
}

/// Those of the jobs that wait to be released.
pub(super) async fn held_of(
    connection: &mut PgConnection,
    rows: impl Iterator<Item = &Row>,
) -> Result<HashSet<Uuid>, BackendError> {
    let ids: Vec<Uuid> = rows
        .filter(|row| row.is_open() && row.state != JobState::Running)
        .map(|row| row.id)
        .collect();
    if ids.is_empty() {
        return Ok(HashSet::new());
    }
    let held = sqlx::query_scalar!(
        "select job_id from deferred_jobs where job_id = any($1) and released_at is null",
        &ids
    )
    .fetch_all(connection)
    .await?;
    Ok(held.into_iter().collect())
}
