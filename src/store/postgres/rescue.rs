//! Rescue of overdue and stuck jobs, and of attempts whose worker is gone.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    PostgresStore,
    claim::{self, End},
    dead, lock_rows,
};
use crate::{
    job::{JobId, JobRecord, JobState},
    store::{
        Released, RescueRules, Rescued, deferral,
        error::BackendError,
        row::Row,
        rules::{ATTEMPT_LOST_AFTER, SWEPT_BACK, overdue},
    },
};

impl PostgresStore {
    pub(crate) async fn rescue(&self, rules: RescueRules) -> Result<Rescued, BackendError> {
        let now = self.clock.now();
        let limit = i64::try_from(rules.limit).unwrap_or(i64::MAX);
        let mut transaction = self.pool.begin().await?;
        let expired = expire(&mut transaction, now, limit).await?;
        transaction.commit().await?;
        let mut transaction = self.pool.begin().await?;
        let next = window_end(&mut transaction, &rules).await?;
        let lost = find_lost(&mut transaction, &rules, next, now, limit).await?;
        let closed = sqlx::query!(
            "update attempts a set outcome = 'lost', finished_at = $1
               from jobs j
              where j.id = a.job_id and a.outcome = 'running'
                and j.state = 'cancelled' and j.finished_at >= $2 and j.finished_at < $3",
            now,
            now - SWEPT_BACK,
            now - ATTEMPT_LOST_AFTER
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(Rescued {
            stuck: lost,
            expired,
            attempts: closed.rows_affected(),
            next: next.map(JobId),
        })
    }
}

/// Ends jobs whose deadline has passed and that nobody runs.
async fn expire(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<JobRecord>, BackendError> {
    let due: Vec<Uuid> = sqlx::query_scalar!(
        "select id from jobs where deadline <= $1 and finished_at is null order by deadline limit $2",
        now,
        limit
    )
    .fetch_all(&mut *connection)
    .await?;
    if due.is_empty() {
        return Ok(Vec::new());
    }
    let rows = lock_rows(connection, &due).await?;
    let rows: Vec<Row> = rows.into_iter().filter(Row::is_open).collect();
    let alive = claim::alive(connection, rows.iter(), now).await?;
    let rows: Vec<Row> = rows
        .into_iter()
        .filter(|row| !alive.contains(&row.id))
        .collect();
    let lost: Vec<_> = rows
        .iter()
        .filter(|row| row.state == JobState::Running)
        .map(|row| (row.id, row.attempts))
        .collect();
    claim::mark_lost(connection, &lost, now).await?;
    let ends: Vec<End> = rows
        .into_iter()
        .map(|row| {
            let reason = overdue(&row);
            End::new(row, JobState::Expired, reason, now)
        })
        .collect();
    let mut answered = claim::write_ends(connection, &ends, now).await?;
    ends.into_iter()
        .map(|end| {
            let row = answered.remove(&end.row.id).unwrap_or(end.row);
            row.into_record().map_err(BackendError::from)
        })
        .collect()
}

/// The first open job that is not looked at this time.
async fn window_end(
    connection: &mut PgConnection,
    rules: &RescueRules,
) -> Result<Option<Uuid>, BackendError> {
    Ok(sqlx::query_scalar!(
        "select id from jobs where finished_at is null and id >= $1 order by id offset $2 limit 1",
        rules.from.map_or(Uuid::nil(), |from| from.0),
        i64::try_from(rules.looked_at_max).unwrap_or(i64::MAX)
    )
    .fetch_optional(connection)
    .await?)
}

/// Finds jobs to which nothing has happened for so long that their message must be lost.
async fn find_lost(
    connection: &mut PgConnection,
    rules: &RescueRules,
    next: Option<Uuid>,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Released>, BackendError> {
    let [router, small, large] = rules.since(now);
    let ids: Vec<Uuid> = sqlx::query_scalar!(
        "select j.id from jobs j left join deferred_jobs h on h.job_id = j.id
          where j.id >= $5 and j.id < $6 and j.finished_at is null and j.waits_for is null
            and (h.job_id is null or h.released_at is not null)
            and greatest(coalesce(j.routed_at, j.submitted_at), j.started_at, j.lease_until, j.rescued_at,
                         h.released_at)
                < case when j.state = 'queued' then $1::timestamptz
                       when j.tier = 'large' then $3::timestamptz else $2::timestamptz end
          order by j.id limit $4",
        router,
        small,
        large,
        limit,
        rules.from.map_or(Uuid::nil(), |from| from.0),
        RescueRules::end(next)
    )
    .fetch_all(&mut *connection)
    .await?;
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows = lock_rows(connection, &ids).await?;
    let alive = claim::alive(connection, rows.iter(), now).await?;
    // A router may have held one since it was found.
    let held = super::deferral::held_of(connection, rows.iter()).await?;
    let requests = dead::requests(connection, &ids).await?;
    let (mut lost, mut rescued) = (Vec::new(), Vec::new());
    for row in rows
        .iter()
        .filter(|row| row.is_open() && !alive.contains(&row.id) && !held.contains(&row.id))
    {
        let Some(request) = requests.get(&row.id) else {
            continue;
        };
        let message = match row.state {
            // The next claim finds the lease expired.
            JobState::Running => Some(Released::Tier(row.routed_job(request)?)),
            _ => deferral::message(row, request)?,
        };
        rescued.push(row.id);
        lost.extend(message);
    }
    sqlx::query!(
        "update jobs set rescued_at = $2 where id = any($1)",
        &rescued,
        now
    )
    .execute(connection)
    .await?;
    Ok(lost)
}
