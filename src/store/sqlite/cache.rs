//! Cache entries: taking the lead, reading, filling, giving up.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::SqliteConnection;
use uuid::Uuid;

use crate::{
    job::{Answer, CacheKey, JobHead, JobId},
    store::{
        error::BackendError,
        rules::{Entry, Hit, after},
    },
};

/// What a key leads to; a job that finds nothing fresh leads.
pub(super) async fn ask(
    connection: &mut SqliteConnection,
    key: &CacheKey,
    head: &JobHead,
    now: DateTime<Utc>,
    lease: Duration,
) -> Result<Entry, BackendError> {
    if lead(connection, key, head.tenant.as_str(), head.id.0, now, lease).await? {
        return Ok(Entry::Led(head.id));
    }
    let (leader, answer): (Uuid, Option<String>) = sqlx::query_as(
        "update cache_entries
            set hits = hits + (state = 'ready'),
                last_hit_at = case when state = 'ready' then ?2 else last_hit_at end
          where key = ?1 returning leader, answer",
    )
    .bind(key.0.as_slice())
    .bind(now)
    .fetch_one(connection)
    .await?;
    let leader = JobId(leader);
    Ok(match answer {
        None => Entry::Led(leader),
        Some(answer) => Entry::Ready(Hit::exact(serde_json::from_str(&answer)?, leader)),
    })
}

/// Takes the answer of an entry that is ready, and leaves any other entry as it is.
pub(super) async fn take(
    connection: &mut SqliteConnection,
    key: &CacheKey,
    now: DateTime<Utc>,
) -> Result<Option<(Answer, JobId)>, BackendError> {
    let found: Option<(Uuid, String)> = sqlx::query_as(
        "update cache_entries set hits = hits + 1, last_hit_at = ?2
          where key = ?1 and state = 'ready' and expires_at > ?2 returning leader, answer",
    )
    .bind(key.0.as_slice())
    .bind(now)
    .fetch_optional(connection)
    .await?;
    found
        .map(|(leader, answer)| Ok((serde_json::from_str(&answer)?, JobId(leader))))
        .transpose()
}

/// Makes a job its entry's leader where no other leads and no fresh answer is there.
pub(super) async fn lead(
    connection: &mut SqliteConnection,
    key: &CacheKey,
    tenant: &str,
    job: Uuid,
    now: DateTime<Utc>,
    lease: Duration,
) -> Result<bool, BackendError> {
    let won = sqlx::query(
        "insert into cache_entries (key, tenant, state, leader, lease_until, created_at)
         values (?1, ?2, 'computing', ?3, ?4, ?5)
             on conflict (key) do update
            set state = 'computing', leader = excluded.leader, lease_until = excluded.lease_until,
                model = null, revision = null, answer = null, created_at = excluded.created_at,
                expires_at = null
          where (state = 'computing' and lease_until < ?5)
             or (state = 'ready' and expires_at <= ?5)",
    )
    .bind(key.0.as_slice())
    .bind(tenant)
    .bind(job)
    .bind(after(now, lease))
    .bind(now)
    .execute(connection)
    .await?;
    Ok(won.rows_affected() > 0)
}

/// Puts an answer into its entry, whichever job leads it; `lifetime` is its start and length.
pub(super) async fn fill(
    connection: &mut SqliteConnection,
    key: &CacheKey,
    tenant: &str,
    job: Uuid,
    answer: &Answer,
    lifetime: (DateTime<Utc>, Duration),
) -> Result<(), BackendError> {
    let (now, ttl) = lifetime;
    sqlx::query(
        "insert into cache_entries (key, tenant, state, leader, model, revision, answer, created_at, expires_at)
         values (?1, ?2, 'ready', ?3, ?4, ?5, ?6, ?7, ?8)
             on conflict (key) do update
            set state = 'ready', leader = excluded.leader, lease_until = null, model = excluded.model,
                revision = excluded.revision, answer = excluded.answer, created_at = excluded.created_at,
                expires_at = excluded.expires_at",
    )
    .bind(key.0.as_slice())
    .bind(tenant)
    .bind(job)
    .bind(&answer.model)
    .bind(&answer.revision)
    .bind(serde_json::to_string(answer)?)
    .bind(now)
    .bind(after(now, ttl))
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes the entry that a job leads without an answer, so that a waiting job takes over.
pub(super) async fn give_up(
    connection: &mut SqliteConnection,
    key: &CacheKey,
    job: Uuid,
) -> Result<(), BackendError> {
    sqlx::query("delete from cache_entries where key = ?1 and leader = ?2 and state = 'computing'")
        .bind(key.0.as_slice())
        .bind(job)
        .execute(connection)
        .await?;
    Ok(())
}
