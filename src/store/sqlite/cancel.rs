//! Cancellation.

use chrono::{DateTime, Utc};
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::{SqliteStore, claim, find_row};
use crate::{
    job::{JobId, JobRecord, JobState, Tenant},
    store::{
        CancelFilter, CancelledBatch,
        error::BackendError,
        rules::{cancelled, cancelled_batch},
    },
};

impl SqliteStore {
    pub(crate) async fn cancel(
        &self,
        filter: &CancelFilter,
        limit: usize,
    ) -> Result<Vec<JobRecord>, BackendError> {
        let mut transaction = self.begin().await?;
        let now = self.clock.now();
        let (tenant, ids) = match filter {
            CancelFilter::Jobs(tenant, jobs) => {
                (tenant, jobs.iter().map(|job| job.0).take(limit).collect())
            }
            CancelFilter::Batch(tenant, batch) => {
                sqlx::query(
                    "insert into cancelled_batches (batch, tenant, cancelled_at) values (?1, ?2, ?3)
                         on conflict (batch, tenant) do update set cancelled_at = excluded.cancelled_at",
                )
                .bind(batch)
                .bind(tenant.as_ref().map_or("", Tenant::as_str))
                .bind(now)
                .execute(&mut *transaction)
                .await?;
                let ids = unfinished(&mut transaction, tenant.as_ref(), batch, limit).await?;
                (tenant, ids)
            }
        };
        let mut records = Vec::new();
        for id in ids {
            let Some(row) = find_row(&mut transaction, id).await? else {
                continue;
            };
            let is_other = tenant.as_ref().is_some_and(|of| *of != row.tenant);
            if is_other || !row.is_open() {
                continue;
            }
            if row.state == JobState::Running
                && !claim::is_alive(&mut transaction, &row, now).await?
            {
                claim::mark_lost(&mut transaction, &row, now).await?;
            }
            let row = claim::write_end(
                &mut transaction,
                row,
                JobState::Cancelled,
                &cancelled(),
                now,
            )
            .await?;
            records.push(row.into_record()?);
        }
        transaction.commit().await?;
        Ok(records)
    }

    pub(crate) async fn cancelled_batches(
        &self,
        since: DateTime<Utc>,
    ) -> Result<Vec<CancelledBatch>, BackendError> {
        let rows: Vec<(String, String, DateTime<Utc>)> = sqlx::query_as(
            "select batch, tenant, cancelled_at from cancelled_batches where cancelled_at >= ?1",
        )
        .bind(since)
        .fetch_all(&self.readers)
        .await?;
        rows.into_iter()
            .map(|(batch, tenant, cancelled_at)| cancelled_batch(batch, &tenant, cancelled_at))
            .collect()
    }

    pub(crate) async fn superseded(
        &self,
        attempts: &[(JobId, u32)],
    ) -> Result<Vec<JobId>, BackendError> {
        let mut gone = Vec::new();
        for (job, attempt) in attempts {
            let is_deferred: Option<i64> = sqlx::query_scalar(
                "select 1 from jobs where id = ?1 and attempts = ?2 and state = 'running'",
            )
            .bind(job.0)
            .bind(attempt)
            .fetch_optional(&self.readers)
            .await?;
            if is_deferred.is_none() {
                gone.push(*job);
            }
        }
        Ok(gone)
    }
}

/// The unfinished jobs of a submission, the oldest first.
async fn unfinished(
    connection: &mut SqliteConnection,
    tenant: Option<&Tenant>,
    batch: &str,
    limit: usize,
) -> Result<Vec<Uuid>, BackendError> {
    let ids = sqlx::query_scalar(
        "select id from jobs where batch = ?1 and finished_at is null and (?2 is null or tenant = ?2)
          order by id limit ?3",
    )
    .bind(batch)
    .bind(tenant.map(Tenant::as_str))
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .fetch_all(connection)
    .await?;
    Ok(ids)
}
