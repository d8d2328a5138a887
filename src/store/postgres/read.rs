//! Reads for users and producers.

use chrono::{DateTime, TimeDelta};
use uuid::Uuid;

use super::{PostgresStore, dead, text};
use crate::{
    job::{Job, JobId, JobRecord, JobState, Reason, Tenant, Tier},
    store::{
        AttemptRecord, Overview, RecordFilter,
        error::BackendError,
        row::{Row, job_rows},
    },
};

fn records(rows: Vec<Row>) -> Result<Vec<JobRecord>, BackendError> {
    rows.into_iter()
        .map(|row| {
            text::decode_row(row)
                .into_record()
                .map_err(BackendError::from)
        })
        .collect()
}

impl PostgresStore {
    pub(crate) async fn records(&self, ids: &[JobId]) -> Result<Vec<JobRecord>, BackendError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        let rows = sqlx::query_as::<_, Row>(job_rows(
            "select",
            "a.text, a.logprobs from jobs j left join answers a on a.job_id = j.id
               where j.id = any($1)",
        ))
        .bind(&ids)
        .fetch_all(&self.pool)
        .await?;
        records(rows)
    }

    pub(crate) async fn records_by_key(
        &self,
        tenant: &Tenant,
        keys: &[String],
    ) -> Result<Vec<JobRecord>, BackendError> {
        let keys: Vec<_> = keys.iter().map(|key| text::encode(key)).collect();
        let rows = sqlx::query_as::<_, Row>(job_rows(
            "select",
            "a.text, a.logprobs from idempotency i
               join jobs j on j.id = i.job_id left join answers a on a.job_id = j.id
               where i.tenant = $1 and i.key = any($2)",
        ))
        .bind(tenant.as_str())
        .bind(&keys as &[std::borrow::Cow<'_, str>])
        .fetch_all(&self.pool)
        .await?;
        records(rows)
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
        let since = filter.finished_since.unwrap_or(DateTime::UNIX_EPOCH);
        let batch = filter.batch.as_deref().map(text::encode);
        let rows = sqlx::query_as::<_, Row>(job_rows(
            "select",
            "a.text, a.logprobs from jobs j left join answers a on a.job_id = j.id
               where j.finished_at is not null and j.finished_at >= $1 and j.shadow_of is null
                 and (j.finished_at, j.id) > ($2, $3)
                 and ($4::text is null or j.tenant = $4) and ($5::text is null or j.batch = $5)
               order by j.finished_at, j.id limit $6",
        ))
        .bind(since)
        .bind(after_at)
        .bind(after_id)
        .bind(filter.tenant.as_ref().map(Tenant::as_str) as Option<&str>)
        .bind(batch.as_deref() as Option<&str>)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.pool)
        .await?;
        records(rows)
    }

    pub(crate) async fn job(&self, id: JobId) -> Result<Option<Job>, BackendError> {
        let mut connection = self.pool.acquire().await?;
        let row = sqlx::query_as::<_, Row>(job_rows(
            "select",
            "null::text as text, null::text as logprobs from jobs j where j.id = $1",
        ))
        .bind(id.0)
        .fetch_optional(&mut *connection)
        .await?;
        let requests = dead::requests(&mut connection, &[id.0]).await?;
        match (row, requests.get(&id.0)) {
            (Some(row), Some(request)) => Ok(Some(text::decode_row(row).job(request)?)),
            _ => Ok(None),
        }
    }

    pub(crate) async fn attempts(&self, id: JobId) -> Result<Vec<AttemptRecord>, BackendError> {
        let rows = sqlx::query!(
            r#"select a.attempt, a.tier as "tier: Tier", a.model, a.revision, a.worker, a.outcome, a.reason_code, a.reason_message,
                      a.prompt_tokens, a.completion_tokens, a.confidence, a.signals::text as signals,
                      t.text as "answer?", a.claimed_at, a.finished_at
                 from attempts a
                 left join attempt_answers t on t.job_id = a.job_id and t.attempt = a.attempt
                where a.job_id = $1 order by a.attempt"#,
            id.0
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(AttemptRecord {
                    attempt: u32::try_from(row.attempt).unwrap_or(0),
                    tier: row.tier,
                    model: text::decode(row.model),
                    revision: text::decode(row.revision),
                    worker: row.worker,
                    outcome: row.outcome,
                    reason: row.reason_code.map(|code| Reason {
                        code,
                        message: text::decode(row.reason_message.unwrap_or_default()),
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
                    answer: row.answer.map(text::decode),
                    claimed_at: row.claimed_at,
                    finished_at: row.finished_at,
                })
            })
            .collect()
    }

    pub(crate) async fn overview(&self) -> Result<Overview, BackendError> {
        let now = self.clock.now();
        let mut connection = self.pool.acquire().await?;
        let states = sqlx::query!(
            r#"select state as "state!: JobState", count(*) as "jobs!"
                 from (select state from jobs where finished_at is null
                       union all select state from jobs where finished_at >= $1) s
                group by state"#,
            now - TimeDelta::days(1)
        )
        .fetch_all(&mut *connection)
        .await?;
        let states = states
            .into_iter()
            .map(|row| (row.state, u64::try_from(row.jobs).unwrap_or(0)))
            .collect();
        let minute = sqlx::query!(
            r#"select count(*) as "jobs!",
                      coalesce(sum(completion_tokens) filter (where source = 'computed'), 0) as "tokens!"
                 from jobs where finished_at >= $1"#,
            now - TimeDelta::minutes(1)
        )
        .fetch_one(&mut *connection)
        .await?;
        let letters = sqlx::query_scalar!(
            r#"select count(*) as "letters!" from dead_letters where resolution is null"#
        )
        .fetch_one(&mut *connection)
        .await?;
        Ok(Overview {
            states,
            finished_last_minute: u64::try_from(minute.jobs).unwrap_or(0),
            completion_tokens_last_minute: u64::try_from(minute.tokens).unwrap_or(0),
            dead_letters: u64::try_from(letters).unwrap_or(0),
        })
    }
}
