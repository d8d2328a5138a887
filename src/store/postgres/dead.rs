//! Dead letters, and the requests that redrives need.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{PostgresStore, batch, text::decode};
use crate::{
    job::{JobId, Reason},
    store::{
        DeadFilter, DeadLetter, DeadResolution, error::BackendError, records, row::Row, rules,
    },
};

impl PostgresStore {
    pub(crate) async fn keep_dead_letters(
        &self,
        letters: &[DeadLetter],
    ) -> Result<(), BackendError> {
        let mut connection = self.pool.acquire().await?;
        write(&mut connection, letters).await
    }

    pub(crate) async fn dead_letters(
        &self,
        filter: &DeadFilter,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, BackendError> {
        let rows = sqlx::query!(
            "select id, job_id, tenant, queue, reason_code, reason_message, body, died_at
               from dead_letters
              where resolution is null
                and (cardinality($1::uuid[]) = 0 or id = any($1))
                and ($2::text is null or reason_code = $2)
                and ($3::text is null or tenant = $3)
                and ($4::timestamptz is null or died_at < $4)
              order by died_at, id limit $5",
            &filter.ids,
            filter.reason.as_deref() as Option<&str>,
            filter.tenant.as_ref().map(|tenant| tenant.as_str()) as Option<&str>,
            filter.died_before as Option<DateTime<Utc>>,
            i64::try_from(limit).unwrap_or(i64::MAX)
        )
        .fetch_all(&self.pool)
        .await?;
        let letters = rows.into_iter().map(|row| DeadLetter {
            id: row.id,
            job: row.job_id.map(JobId),
            tenant: row.tenant.and_then(|tenant| tenant.parse().ok()),
            queue: row.queue,
            reason: Reason {
                code: row.reason_code,
                message: decode(row.reason_message),
            },
            body: row.body,
            died_at: row.died_at,
        });
        Ok(letters.collect())
    }

    pub(crate) async fn resolve_dead(
        &self,
        ids: &[Uuid],
        resolution: DeadResolution,
    ) -> Result<u64, BackendError> {
        let done = sqlx::query!(
            "update dead_letters set resolution = $2, resolved_at = $3
              where id = any($1) and resolution is null",
            ids,
            resolution.as_str(),
            self.clock.now()
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected())
    }
}

async fn write(connection: &mut PgConnection, letters: &[DeadLetter]) -> Result<(), BackendError> {
    let rows = letters.iter().map(records::dead_letter);
    batch::insert(
        connection,
        "dead_letters",
        rows,
        "on conflict (id) do nothing",
    )
    .await
}

/// Leaves a dead letter for each job without attempts left.
pub(super) async fn quarantine(
    connection: &mut PgConnection,
    spent: &[(&Row, &Reason)],
    now: DateTime<Utc>,
) -> Result<(), BackendError> {
    if spent.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = spent.iter().map(|(row, _)| row.id).collect();
    let requests = requests(connection, &ids).await?;
    let letters = spent
        .iter()
        .map(|(row, reason)| {
            let request = requests.get(&row.id).map(String::as_str);
            rules::letter_of(row, request, reason, now)
        })
        .collect::<Result<Vec<_>, _>>()?;
    write(connection, &letters).await
}

/// The requests of these jobs, as JSON.
pub(super) async fn requests(
    connection: &mut PgConnection,
    ids: &[Uuid],
) -> Result<HashMap<Uuid, String>, BackendError> {
    let rows = sqlx::query!(
        "select job_id, request from requests where job_id = any($1)",
        ids
    )
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.job_id, row.request))
        .collect())
}
