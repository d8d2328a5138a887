//! Rescue of overdue and stuck jobs, and of attempts whose worker is gone.

use chrono::{DateTime, Utc};
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::{SqliteStore, claim, dead, find_row};
use crate::{
    job::{JobId, JobRecord, JobState},
    store::{
        Released, RescueRules, Rescued, deferral,
        error::BackendError,
        rules::{ATTEMPT_LOST_AFTER, SWEPT_BACK, overdue},
    },
};

impl SqliteStore {
    pub(crate) async fn rescue(&self, rules: RescueRules) -> Result<Rescued, BackendError> {
        let mut transaction = self.begin().await?;
        let now = self.clock.now();
        let limit = i64::try_from(rules.limit).unwrap_or(i64::MAX);
        let expired = expire(&mut transaction, now, limit).await?;
        let next = window_end(&mut transaction, &rules).await?;
        let rescued = Rescued {
            expired,
            stuck: find_lost(&mut transaction, &rules, next, now, limit).await?,
            attempts: close_attempts(&mut transaction, now).await?,
            next: next.map(JobId),
        };
        transaction.commit().await?;
        Ok(rescued)
    }
}

/// Ends jobs whose deadline has passed and that nobody runs.
async fn expire(
    connection: &mut SqliteConnection,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<JobRecord>, BackendError> {
    let due: Vec<Uuid> = sqlx::query_scalar(
        "select id from jobs where deadline <= ?1 and finished_at is null order by deadline limit ?2",
    )
    .bind(now)
    .bind(limit)
    .fetch_all(&mut *connection)
    .await?;
    let mut records = Vec::new();
    for id in due {
        let Some(row) = find_row(connection, id).await? else {
            continue;
        };
        if claim::is_alive(connection, &row, now).await? {
            continue;
        }
        if row.state == JobState::Running {
            claim::mark_lost(connection, &row, now).await?;
        }
        let reason = overdue(&row);
        let row = claim::write_end(connection, row, JobState::Expired, &reason, now).await?;
        records.push(row.into_record()?);
    }
    Ok(records)
}

/// The first open job that is not looked at this time.
async fn window_end(
    connection: &mut SqliteConnection,
    rules: &RescueRules,
) -> Result<Option<Uuid>, BackendError> {
    Ok(sqlx::query_scalar(
        "select id from jobs where finished_at is null and id >= ?1 order by id limit 1 offset ?2",
    )
    .bind(rules.from.map_or(Uuid::nil(), |from| from.0))
    .bind(i64::try_from(rules.looked_at_max).unwrap_or(i64::MAX))
    .fetch_optional(connection)
    .await?)
}

/// Finds jobs to which nothing has happened for so long that their message must be lost.
async fn find_lost(
    connection: &mut SqliteConnection,
    rules: &RescueRules,
    next: Option<Uuid>,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Released>, BackendError> {
    let [router, small, large] = rules.since(now);
    let ids: Vec<Uuid> = sqlx::query_scalar(
        "select j.id from jobs j left join deferred_jobs h on h.job_id = j.id
          where j.id >= ?5 and j.id < ?6 and j.finished_at is null and j.waits_for is null
            and (h.job_id is null or h.released_at is not null)
            and max(coalesce(j.routed_at, j.submitted_at), coalesce(j.started_at, ''),
                    coalesce(j.lease_until, ''), coalesce(j.rescued_at, ''), coalesce(h.released_at, ''))
                < case when j.state = 'queued' then ?1 when j.tier = 'large' then ?3 else ?2 end
          order by j.id limit ?4",
    )
    .bind(router)
    .bind(small)
    .bind(large)
    .bind(limit)
    .bind(rules.from.map_or(Uuid::nil(), |from| from.0))
    .bind(RescueRules::end(next))
    .fetch_all(&mut *connection)
    .await?;
    let mut lost = Vec::new();
    for id in ids {
        let Some(row) = find_row(connection, id).await? else {
            continue;
        };
        let Some(request) = dead::request(connection, id).await? else {
            continue;
        };
        if claim::is_alive(connection, &row, now).await? {
            continue;
        }
        let message = match row.state {
            // The next claim finds the lease expired.
            JobState::Running => Some(Released::Tier(row.routed_job(&request)?)),
            _ => deferral::message(&row, &request)?,
        };
        sqlx::query("update jobs set rescued_at = ?2 where id = ?1")
            .bind(id)
            .bind(now)
            .execute(&mut *connection)
            .await?;
        lost.extend(message);
    }
    Ok(lost)
}

/// Closes attempts of cancelled jobs whose worker has not done so.
async fn close_attempts(
    connection: &mut SqliteConnection,
    now: DateTime<Utc>,
) -> Result<u64, BackendError> {
    let closed = sqlx::query(
        "update attempts set outcome = 'lost', finished_at = ?1
          where outcome = 'running'
            and job_id in (select id from jobs
                            where state = 'cancelled' and finished_at >= ?2 and finished_at < ?3)",
    )
    .bind(now)
    .bind(now - SWEPT_BACK)
    .bind(now - ATTEMPT_LOST_AFTER)
    .execute(connection)
    .await?;
    Ok(closed.rows_affected())
}
