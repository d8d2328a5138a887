//! Dead letters, and the requests that redrives need.

use chrono::{DateTime, Utc};
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::{SqliteStore, single::insert};
use crate::{
    job::{JobId, Reason},
    store::{
        DeadFilter, DeadLetter, DeadResolution, error::BackendError, records, row::Row, rules,
    },
};

#[derive(sqlx::FromRow)]
struct DeadLetterRow {
    id: Uuid,
    job_id: Option<Uuid>,
    tenant: Option<String>,
    queue: String,
    reason_code: String,
    reason_message: String,
    body: Vec<u8>,
    died_at: DateTime<Utc>,
}

impl SqliteStore {
    pub(crate) async fn keep_dead_letters(
        &self,
        letters: &[DeadLetter],
    ) -> Result<(), BackendError> {
        let mut transaction = self.begin().await?;
        for letter in letters {
            write(&mut transaction, letter).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    pub(crate) async fn dead_letters(
        &self,
        filter: &DeadFilter,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, BackendError> {
        let ids: Vec<String> = filter
            .ids
            .iter()
            .map(|id| id.simple().to_string())
            .collect();
        let rows: Vec<DeadLetterRow> = sqlx::query_as(
            "select id, job_id, tenant, queue, reason_code, reason_message, body, died_at
               from dead_letters
              where resolution is null
                and (json_array_length(?1) = 0
                     or lower(hex(id)) in (select value from json_each(?1)))
                and (?2 is null or reason_code = ?2)
                and (?3 is null or tenant = ?3)
                and (?4 is null or died_at < ?4)
              order by died_at, id limit ?5",
        )
        .bind(serde_json::to_string(&ids)?)
        .bind(&filter.reason)
        .bind(filter.tenant.as_ref().map(|tenant| tenant.as_str()))
        .bind(filter.died_before)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.readers)
        .await?;
        let letters = rows.into_iter().map(|row| DeadLetter {
            id: row.id,
            job: row.job_id.map(JobId),
            tenant: row.tenant.and_then(|tenant| tenant.parse().ok()),
            queue: row.queue,
            reason: Reason {
                code: row.reason_code,
                message: row.reason_message,
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
        let mut transaction = self.begin().await?;
        let now = self.clock.now();
        let mut resolved = 0;
        for id in ids {
            let done = sqlx::query(
                "update dead_letters set resolution = ?2, resolved_at = ?3
                  where id = ?1 and resolution is null",
            )
            .bind(id)
            .bind(resolution.as_str())
            .bind(now)
            .execute(&mut *transaction)
            .await?;
            resolved += done.rows_affected();
        }
        transaction.commit().await?;
        Ok(resolved)
    }
}

async fn write(connection: &mut SqliteConnection, letter: &DeadLetter) -> Result<(), BackendError> {
    let row = Some(records::dead_letter(letter));
    insert(
        connection,
        "dead_letters",
        row,
        "on conflict (id) do nothing",
    )
    .await
}

/// Leaves a dead letter for a job without attempts left.
pub(super) async fn quarantine(
    connection: &mut SqliteConnection,
    row: &Row,
    reason: &Reason,
    now: DateTime<Utc>,
) -> Result<(), BackendError> {
    let request = request(connection, row.id).await?;
    let letter = rules::letter_of(row, request.as_deref(), reason, now)?;
    write(connection, &letter).await
}

/// A job's request, as JSON.
pub(super) async fn request(
    connection: &mut SqliteConnection,
    id: Uuid,
) -> Result<Option<String>, BackendError> {
    let request = sqlx::query_scalar("select request from requests where job_id = ?1")
        .bind(id)
        .fetch_optional(connection)
        .await?;
    Ok(request)
}
