//! Kept answers as a whole: figures, limits, removal.

use chrono::{DateTime, Utc};
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use super::{
    PostgresStore,
    text::{decode, decode_row, encode},
};
use crate::{
    job::{JobId, JobRecord},
    store::{
        CacheFilter, CacheLimits, CacheStats, CacheUpkeep,
        cache::{ABANDONED_AFTER, STEP_MAX, STEPS_MAX, count, limit},
        error::BackendError,
        row::{Row, job_rows},
        rules::before,
    },
};

/// "Cache" in ASCII and a number: what upkeep is held by, within this database.
const LOCK: i64 = 0x43_6163_6865_0001;

/// Removes entries, and the questions of those that had one, in steps until a step finds fewer than
/// it may; returns how many.
macro_rules! remove {
    ($connection:expr, $most:expr, $condition:literal $(, $argument:expr)*) => {{
        let (mut removed, most): (u64, u64) = (0, $most);
        for _ in 0..STEPS_MAX {
            let step = STEP_MAX.min(limit(most - removed));
            let gone = sqlx::query_scalar!(
                "with gone as (
                     delete from cache_entries
                      where key in (select e.key from cache_entries e where " + $condition
                + " limit $1 for update of e skip locked)
                     returning key),
                 questions as (delete from cache_questions q using gone where q.key = gone.key)
                 select count(*) as \"gone!\" from gone",
                step
                $(, $argument)*
            )
            .fetch_one(&mut *$connection)
            .await?;
            removed += count(gone);
            if gone < STEP_MAX || removed >= most {
                break;
            }
        }
        removed
    }};
}

impl PostgresStore {
    pub(crate) async fn tend_cache(
        &self,
        limits: CacheLimits,
    ) -> Result<Option<CacheUpkeep>, BackendError> {
        // A connection of its own: the lock goes with it, whatever happens.
        let mut connection = PgConnection::connect_with(&self.options).await?;
        let outcome = tend(&mut connection, limits, self.clock.now()).await;
        let _ = connection.close().await;
        outcome
    }

    pub(crate) async fn cache_stats(&self) -> Result<Vec<CacheStats>, BackendError> {
        let rows = sqlx::query!(
            r#"select tenant, coalesce(model, '') as "model!", coalesce(revision, '') as "revision!",
                      count(*) as "entries!", coalesce(sum(octet_length(answer)), 0)::bigint as "bytes!",
                      coalesce(sum(hits), 0)::bigint as "hits!", max(last_hit_at) as last_hit_at
                 from cache_entries where state = 'ready'
                group by 1, 2, 3 order by 4 desc, 1, 2, 3"#
        )
        .fetch_all(&self.pool)
        .await?;
        let stats = rows.into_iter().map(|row| CacheStats {
            tenant: row.tenant,
            model: decode(row.model),
            revision: decode(row.revision),
            entries: count(row.entries),
            bytes: count(row.bytes),
            hits: count(row.hits),
            last_hit_at: row.last_hit_at,
        });
        Ok(stats.collect())
    }

    pub(crate) async fn count_cached(&self, filter: &CacheFilter) -> Result<u64, BackendError> {
        let meant = sqlx::query_scalar!(
            r#"select count(*) as "meant!" from cache_entries
                where state = 'ready' and ($1::text is null or tenant = $1)
                  and ($2::text is null or model = $2) and ($3::text is null or revision = $3)
                  and ($4::timestamptz is null or created_at < $4)
                  and ($5::uuid is null or leader = $5)"#,
            filter.tenant.as_ref().map(|tenant| tenant.as_str()) as Option<&str>,
            filter.model.as_deref().map(encode) as Option<std::borrow::Cow<'_, str>>,
            filter.revision.as_deref().map(encode) as Option<std::borrow::Cow<'_, str>>,
            filter.answered_before as Option<DateTime<Utc>>,
            filter.job.map(|job| job.0) as Option<Uuid>
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(count(meant))
    }

    pub(crate) async fn drop_cached(&self, filter: &CacheFilter) -> Result<u64, BackendError> {
        let gone = sqlx::query_scalar!(
            r#"with gone as (
                   delete from cache_entries
                    where state = 'ready' and ($1::text is null or tenant = $1)
                      and ($2::text is null or model = $2) and ($3::text is null or revision = $3)
                      and ($4::timestamptz is null or created_at < $4)
                      and ($5::uuid is null or leader = $5)
                   returning key),
               questions as (delete from cache_questions q using gone where q.key = gone.key)
               select count(*) as "gone!" from gone"#,
            filter.tenant.as_ref().map(|tenant| tenant.as_str()) as Option<&str>,
            filter.model.as_deref().map(encode) as Option<std::borrow::Cow<'_, str>>,
            filter.revision.as_deref().map(encode) as Option<std::borrow::Cow<'_, str>>,
            filter.answered_before as Option<DateTime<Utc>>,
            filter.job.map(|job| job.0) as Option<Uuid>
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(count(gone))
    }

    pub(crate) async fn answered_along(
        &self,
        jobs: &[JobId],
    ) -> Result<Vec<JobRecord>, BackendError> {
        let ids: Vec<Uuid> = jobs.iter().map(|job| job.0).collect();
        // One transaction settles them all and gives them all one instant.
        let rows = sqlx::query_as::<_, Row>(job_rows("select", "a.text, a.logprobs
               from jobs l
               join jobs j on j.cache_key = l.cache_key and j.finished_at = l.finished_at and j.id <> l.id
               left join answers a on a.job_id = j.id
              where l.id = any($1) and l.state = 'succeeded'
                and j.source in ('shared', 'semantic') and j.reply_to is not null
              order by j.id"))
.bind(&ids)
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|row| decode_row(row).into_record().map_err(BackendError::from))
            .collect()
    }
}

async fn tend(
    connection: &mut PgConnection,
    limits: CacheLimits,
    now: DateTime<Utc>,
) -> Result<Option<CacheUpkeep>, BackendError> {
    // Schemas of one database take turns as well; a round is short.
    let is_ours = sqlx::query_scalar!(r#"select pg_try_advisory_lock($1) as "ours!""#, LOCK)
        .fetch_one(&mut *connection)
        .await?;
    if !is_ours {
        return Ok(None);
    }
    let expired = remove!(
        connection,
        u64::MAX,
        "e.state = 'ready' and e.expires_at <= $2",
        now
    );
    let abandoned = remove!(
        connection,
        u64::MAX,
        "e.state = 'computing' and e.lease_until < $2
         and not exists (select from jobs j where j.waits_for = e.key and j.state = 'routed')",
        before(now, ABANDONED_AFTER)
    );
    let stale = remove!(
        connection,
        u64::MAX,
        "e.state = 'ready'
         and exists (select from workers w where w.model = e.model and split_part(w.revision, '+', 1) = e.revision)
         and not exists (select from workers w
                          where w.model = e.model and split_part(w.revision, '+', 1) = e.revision
                            and w.seen_at >= $2)
         and exists (select from workers w
                      where w.model = e.model and split_part(w.revision, '+', 1) <> e.revision
                        and w.seen_at >= $2)",
        before(now, limits.stale_after)
    );
    let evicted = evict(connection, limits).await?;
    // Questions whose answer was never kept.
    sqlx::query!(
        "delete from cache_questions q
          where q.changed_at < $1 and not exists (select from cache_entries e where e.key = q.key)",
        before(now, ABANDONED_AFTER)
    )
    .execute(&mut *connection)
    .await?;
    let kept = size(connection).await?;
    Ok(Some(CacheUpkeep {
        entries: kept.0,
        bytes: kept.1,
        expired,
        stale,
        evicted,
        abandoned,
    }))
}

/// Entries and bytes of answers.
async fn size(connection: &mut PgConnection) -> Result<(u64, u64), BackendError> {
    let row = sqlx::query!(
        r#"select count(*) as "entries!", coalesce(sum(octet_length(answer)), 0)::bigint as "bytes!"
             from cache_entries where state = 'ready'"#
    )
    .fetch_one(connection)
    .await?;
    Ok((count(row.entries), count(row.bytes)))
}

/// Removes the entries used longest ago: of tenants that have too many, then of all.
async fn evict(connection: &mut PgConnection, limits: CacheLimits) -> Result<u64, BackendError> {
    let mut evicted = 0;
    let crowded = sqlx::query!(
        r#"select tenant, count(*) as "entries!" from cache_entries where state = 'ready'
            group by tenant having count(*) > $1"#,
        limit(limits.tenant_entries_max)
    )
    .fetch_all(&mut *connection)
    .await?;
    for row in crowded {
        evicted += remove!(
            connection,
            count(row.entries) - limits.tenant_entries_max,
            "e.state = 'ready' and e.tenant = $2 order by coalesce(e.last_hit_at, e.created_at), e.key",
            row.tenant
        );
    }
    let (entries, bytes) = size(connection).await?;
    evicted += remove!(
        connection,
        entries.saturating_sub(limits.entries_max),
        "e.state = 'ready' order by coalesce(e.last_hit_at, e.created_at), e.key"
    );
    if bytes > limits.bytes_max {
        // Everything but the latest used, as many as fit.
        let gone = sqlx::query_scalar!(
            r#"with ranked as (
                   select key, sum(octet_length(answer)) over (
                              order by coalesce(last_hit_at, created_at) desc, key desc) as bytes
                     from cache_entries where state = 'ready'),
               gone as (
                   delete from cache_entries where key in (select key from ranked where bytes > $1)
                   returning key),
               questions as (delete from cache_questions q using gone where q.key = gone.key)
               select count(*) as "gone!" from gone"#,
            limit(limits.bytes_max) as i64
        )
        .fetch_one(connection)
        .await?;
        evicted += count(gone);
    }
    Ok(evicted)
}
