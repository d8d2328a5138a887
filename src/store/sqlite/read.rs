//! Reads for users and producers.

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::{SqliteStore, dead, find_row, select_jobs};
use crate::{
    job::{Job, JobId, JobRecord, JobState, Reason, Tenant, Tier},
    store::{AttemptRecord, Overview, RecordFilter, error::BackendError, row::Row},
};

#[derive(sqlx::FromRow)]
struct AttemptRow {
    attempt: i64,
    tier: Tier,
    model: String,
    revision: String,
    worker: String,
    outcome: String,
    reason_code: Option<String>,
    reason_message: Option<String>,
    prompt_tokens: Option<i64>,
    completion_tokens: Option<i64>,
    confidence: Option<f32>,
    signals: Option<String>,
    answer: Option<String>,
    claimed_at: DateTime<Utc>,
    finished_at: Option<DateTime<Utc>>,
}

impl SqliteStore {
    pub(crate) async fn records(&self, ids: &[JobId]) -> Result<Vec<JobRecord>, BackendError> {
        let mut connection = self.readers.acquire().await?;
        let mut records = Vec::with_capacity(ids.len());
        for id in ids {
            if let Some(row) = find_row(&mut connection, id.0).await? {
                records.push(row.into_record()?);
            }
        }
        Ok(records)
    }

    pub(crate) async fn records_by_key(
        &self,
        tenant: &Tenant,
        keys: &[String],
    ) -> Result<Vec<JobRecord>, BackendError> {
        let mut connection = self.readers.acquire().await?;
        let mut records = Vec::with_capacity(keys.len());
        for key in keys {
            let row: Option<Row> = sqlx::query_as(select_jobs(
                "where j.id = (select job_id from idempotency where tenant = ?1 and key = ?2)",
            ))
            .bind(tenant.as_str())
            .bind(key)
            .fetch_optional(&mut *connection)
            .await?;
            if let Some(row) = row {
                records.push(row.into_record()?);
            }
        }
        Ok(records)
    }

    pub(crate) async fn finished(
        &self,
        filter: &RecordFilter,
        limit: usize,
    ) -> Result<Vec<JobRecord>, BackendError> {
        let (after_at, after_id) = match filter.after {
            Some((at, id)) => (at, id.0),
            None => (DateTime::UNIX_EPOCH, Uuid::nil()),
        };
        let rows: Vec<Row> = sqlx::query_as(select_jobs(
            "where j.finished_at is not null and j.finished_at >= ?1 and j.shadow_of is null
               and (j.finished_at, j.id) > (?2, ?3)
               and (?4 is null or j.tenant = ?4) and (?5 is null or j.batch = ?5)
             order by j.finished_at, j.id limit ?6",
        ))
        .bind(filter.finished_since.unwrap_or(DateTime::UNIX_EPOCH))
        .bind(after_at)
        .bind(after_id)
        .bind(filter.tenant.as_ref().map(Tenant::as_str))
        .bind(&filter.batch)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.readers)
        .await?;
        rows.into_iter()
            .map(|row| row.into_record().map_err(BackendError::from))
            .collect()
    }

    pub(crate) async fn job(&self, id: JobId) -> Result<Option<Job>, BackendError> {
        let mut connection = self.readers.acquire().await?;
        let row = find_row(&mut connection, id.0).await?;
        let request = dead::request(&mut connection, id.0).await?;
        match (row, request) {
            (Some(row), Some(request)) => Ok(Some(row.job(&request)?)),
            _ => Ok(None),
        }
    }

    pub(crate) async fn attempts(&self, id: JobId) -> Result<Vec<AttemptRecord>, BackendError> {
        let rows: Vec<AttemptRow> = sqlx::query_as(
            "select a.attempt, a.tier, a.model, a.revision, a.worker, a.outcome, a.reason_code, a.reason_message,
                    a.prompt_tokens, a.completion_tokens, a.confidence, a.signals, t.text as answer,
                    a.claimed_at, a.finished_at
               from attempts a
               left join attempt_answers t on t.job_id = a.job_id and t.attempt = a.attempt
              where a.job_id = ?1 order by a.attempt",
        )
        .bind(id.0)
        .fetch_all(&self.readers)
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(AttemptRecord {
                    attempt: u32::try_from(row.attempt).unwrap_or(0),
                    tier: row.tier,
                    model: row.model,
                    revision: row.revision,
                    worker: row.worker,
                    outcome: row.outcome,
                    reason: row.reason_code.map(|code| Reason {
                        code,
                        message: row.reason_message.unwrap_or_default(),
                    }),
                    prompt_tokens: row.prompt_tokens.and_then(|count| count.try_into().ok()),
                    completion_tokens: row
                        .completion_tokens
                        .and_then(|count| count.try_into().ok()),
                    confidence: row.confidence,
                    signals: row
                        .signals
                        .as_deref()
                        .map(serde_json::from_str)
                        .transpose()?,
                    answer: row.answer,
                    claimed_at: row.claimed_at,
                    finished_at: row.finished_at,
                })
            })
            .collect()
    }

    pub(crate) async fn overview(&self) -> Result<Overview, BackendError> {
        let now = self.clock.now();
        let mut connection = self.readers.acquire().await?;
        let states: Vec<(JobState, i64)> = sqlx::query_as(
            "select state, count(*)
               from (select state from jobs where finished_at is null
                     union all select state from jobs where finished_at >= ?1)
              group by state",
        )
        .bind(now - TimeDelta::days(1))
        .fetch_all(&mut *connection)
        .await?;
        let states = states
            .into_iter()
            .map(|(state, jobs)| (state, u64::try_from(jobs).unwrap_or(0)))
            .collect();
        let (jobs, tokens): (i64, i64) = sqlx::query_as(
            "select count(*), coalesce(sum(completion_tokens) filter (where source = 'computed'), 0)
               from jobs where finished_at >= ?1",
        )
        .bind(now - TimeDelta::minutes(1))
        .fetch_one(&mut *connection)
        .await?;
        let letters: i64 =
            sqlx::query_scalar("select count(*) from dead_letters where resolution is null")
                .fetch_one(&mut *connection)
                .await?;
        Ok(Overview {
            states,
            finished_last_minute: u64::try_from(jobs).unwrap_or(0),
            completion_tokens_last_minute: u64::try_from(tokens).unwrap_or(0),
            dead_letters: u64::try_from(letters).unwrap_or(0),
        })
    }
}
