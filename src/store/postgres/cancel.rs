//! Cancellation.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    PostgresStore,
    claim::{self, End},
    lock_rows,
    text::{decode, encode},
};
use crate::{
    job::{JobId, JobRecord, JobState, Tenant},
    store::{
        CancelFilter, CancelledBatch,
        error::BackendError,
        rules::{cancelled, cancelled_batch},
    },
};

impl PostgresStore {
    pub(crate) async fn cancel(
        &self,
        filter: &CancelFilter,
        limit: usize,
    ) -> Result<Vec<JobRecord>, BackendError> {
        let now = self.clock.now();
        let mut transaction = self.pool.begin().await?;
        let (tenant, ids): (_, Vec<Uuid>) = match filter {
            CancelFilter::Jobs(tenant, jobs) => {
                (tenant, jobs.iter().map(|job| job.0).take(limit).collect())
            }
            CancelFilter::Batch(tenant, batch) => {
                sqlx::query!(
                    "insert into cancelled_batches (batch, tenant, cancelled_at) values ($1, $2, $3)
                         on conflict (batch, tenant) do update set cancelled_at = excluded.cancelled_at",
                    &*encode(batch),
                    tenant.as_ref().map_or("", Tenant::as_str),
                    now
                )
                .execute(&mut *transaction)
                .await?;
                let ids = sqlx::query_scalar!(
                    "select id from jobs
                      where batch = $1 and finished_at is null and ($2::text is null or tenant = $2)
                      order by id limit $3",
                    &*encode(batch),
                    tenant.as_ref().map(Tenant::as_str) as Option<&str>,
                    i64::try_from(limit).unwrap_or(i64::MAX)
                )
                .fetch_all(&mut *transaction)
                .await?;
                (tenant, ids)
            }
        };
        let mut rows = lock_rows(&mut transaction, &ids).await?;
        rows.retain(|row| {
            row.is_open() && tenant.as_ref().is_none_or(|tenant| *tenant == row.tenant)
        });
        let alive = claim::alive(&mut transaction, rows.iter(), now).await?;
        let lost: Vec<_> = rows
            .iter()
            .filter(|row| row.state == JobState::Running && !alive.contains(&row.id))
            .map(|row| (row.id, row.attempts))
            .collect();
        claim::mark_lost(&mut transaction, &lost, now).await?;
        let state = JobState::Cancelled;
        let ends: Vec<End> = rows
            .into_iter()
            .map(|row| End::new(row, state, cancelled(), now))
            .collect();
        claim::write_ends(&mut transaction, &ends, now).await?;
        transaction.commit().await?;
        ends.into_iter()
            .map(|end| end.row.into_record().map_err(BackendError::from))
            .collect()
    }

    pub(crate) async fn cancelled_batches(
        &self,
        since: DateTime<Utc>,
    ) -> Result<Vec<CancelledBatch>, BackendError> {
        let rows = sqlx::query!(
            "select batch, tenant, cancelled_at from cancelled_batches where cancelled_at >= $1",
            since
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|row| cancelled_batch(decode(row.batch), &row.tenant, row.cancelled_at))
            .collect()
    }

    pub(crate) async fn superseded(
        &self,
        attempts: &[(JobId, u32)],
    ) -> Result<Vec<JobId>, BackendError> {
        let ids: Vec<Uuid> = attempts.iter().map(|(job, _)| job.0).collect();
        let held = sqlx::query!(
            "select id, attempts from jobs where id = any($1) and state = 'running'",
            &ids
        )
        .fetch_all(&self.pool)
        .await?;
        let held: HashMap<Uuid, i32> = held.into_iter().map(|row| (row.id, row.attempts)).collect();
        let is_gone = |(job, attempt): &&(JobId, u32)| {
            held.get(&job.0).copied() != i32::try_from(*attempt).ok()
        };
        let gone = attempts.iter().filter(is_gone);
        Ok(gone.map(|(job, _)| *job).collect())
    }
}
