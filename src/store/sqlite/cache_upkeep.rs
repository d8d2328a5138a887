//! Kept answers as a whole: figures, limits, removal.

use chrono::{DateTime, Utc};
use sqlx::SqliteConnection;

use super::SqliteStore;
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

/// Which entries a filter means; binds come in this order.
macro_rules! meant {
    () => {
        "state = 'ready' and (?1 is null or tenant = ?1) and (?2 is null or model = ?2) \
         and (?3 is null or revision = ?3) and (?4 is null or created_at < ?4) \
         and (?5 is null or leader = ?5)"
    };
}

/// Removes entries in steps until a step finds fewer than it may; returns how many.
macro_rules! remove {
    ($store:expr, $most:expr, $condition:literal $(, $argument:expr)*) => {{
        let (mut removed, most): (u64, u64) = (0, $most);
        for _ in 0..STEPS_MAX {
            let step = STEP_MAX.min(limit(most - removed));
            let done = sqlx::query(concat!(
                "delete from cache_entries where key in (select e.key from cache_entries e where ",
                $condition,
                " limit ?1)"
            ))
            .bind(step)
            $(.bind($argument))*
            .execute(&$store.writer)
            .await?;
            let gone = limit(done.rows_affected());
            removed += count(gone);
            if gone < STEP_MAX || removed >= most {
                break;
            }
        }
        removed
    }};
}

#[derive(sqlx::FromRow)]
struct StatsRow {
    tenant: String,
    model: String,
    revision: String,
    entries: i64,
    bytes: i64,
    hits: i64,
    last_hit_at: Option<DateTime<Utc>>,
}

impl SqliteStore {
    pub(crate) async fn tend_cache(
        &self,
        limits: CacheLimits,
    ) -> Result<Option<CacheUpkeep>, BackendError> {
        let now = self.clock.now();
        let expired = remove!(
            self,
            u64::MAX,
            "e.state = 'ready' and e.expires_at <= ?2",
            now
        );
        let abandoned = remove!(
            self,
            u64::MAX,
            "e.state = 'computing' and e.lease_until < ?2
             and not exists (select 1 from jobs j where j.waits_for = e.key and j.state = 'routed')",
            before(now, ABANDONED_AFTER)
        );
        // A worker's revision may have another's digest behind a plus.
        let stale = remove!(
            self,
            u64::MAX,
            "e.state = 'ready'
             and exists (select 1 from workers w
                          where w.model = e.model and (w.revision || '+') like (e.revision || '+%'))
             and not exists (select 1 from workers w
                              where w.model = e.model and (w.revision || '+') like (e.revision || '+%')
                                and w.seen_at >= ?2)
             and exists (select 1 from workers w
                          where w.model = e.model and (w.revision || '+') not like (e.revision || '+%')
                            and w.seen_at >= ?2)",
            before(now, limits.stale_after)
        );
        let evicted = self.evict(limits).await?;
        // Those that wait for their answer stay a while.
        sqlx::query(
            "delete from cache_questions
              where changed_at < ?1
                and not exists (select 1 from cache_entries e where e.key = cache_questions.key)",
        )
        .bind(before(now, ABANDONED_AFTER))
        .execute(&self.writer)
        .await?;
        let (entries, bytes) = self.cache_size().await?;
        Ok(Some(CacheUpkeep {
            entries,
            bytes,
            expired,
            stale,
            evicted,
            abandoned,
        }))
    }

    /// Entries and bytes of answers.
    async fn cache_size(&self) -> Result<(u64, u64), BackendError> {
        let (entries, bytes): (i64, i64) = sqlx::query_as(
            "select count(*), coalesce(sum(length(cast(answer as blob))), 0)
               from cache_entries where state = 'ready'",
        )
        .fetch_one(&self.writer)
        .await?;
        Ok((count(entries), count(bytes)))
    }

    /// Removes the entries used longest ago: of tenants that have too many, then of all.
    async fn evict(&self, limits: CacheLimits) -> Result<u64, BackendError> {
        let mut evicted = 0;
        let crowded: Vec<(String, i64)> = sqlx::query_as(
            "select tenant, count(*) from cache_entries where state = 'ready'
              group by tenant having count(*) > ?1",
        )
        .bind(limit(limits.tenant_entries_max))
        .fetch_all(&self.writer)
        .await?;
        for (tenant, entries) in crowded {
            evicted += remove!(
                self,
                count(entries) - limits.tenant_entries_max,
                "e.state = 'ready' and e.tenant = ?2 order by coalesce(e.last_hit_at, e.created_at), e.key",
                &tenant
            );
        }
        let (entries, bytes) = self.cache_size().await?;
        evicted += remove!(
            self,
            entries.saturating_sub(limits.entries_max),
            "e.state = 'ready' order by coalesce(e.last_hit_at, e.created_at), e.key"
        );
        if bytes > limits.bytes_max {
            // Everything but the latest used, as many as fit.
            let done = sqlx::query(
                "delete from cache_entries where key in (
                     select key from (
                         select key, sum(length(cast(answer as blob))) over (
                                    order by coalesce(last_hit_at, created_at) desc, key desc) as bytes
                           from cache_entries where state = 'ready')
                      where bytes > ?1)",
            )
            .bind(limit(limits.bytes_max))
            .execute(&self.writer)
            .await?;
            evicted += done.rows_affected();
        }
        Ok(evicted)
    }

    pub(crate) async fn cache_stats(&self) -> Result<Vec<CacheStats>, BackendError> {
        let rows: Vec<StatsRow> = sqlx::query_as(
            "select tenant, coalesce(model, '') as model, coalesce(revision, '') as revision,
                    count(*) as entries, coalesce(sum(length(cast(answer as blob))), 0) as bytes,
                    coalesce(sum(hits), 0) as hits, max(last_hit_at) as last_hit_at
               from cache_entries where state = 'ready'
              group by 1, 2, 3 order by entries desc, 1, 2, 3",
        )
        .fetch_all(&self.readers)
        .await?;
        let stats = rows.into_iter().map(|row| CacheStats {
            tenant: row.tenant,
            model: row.model,
            revision: row.revision,
            entries: count(row.entries),
            bytes: count(row.bytes),
            hits: count(row.hits),
            last_hit_at: row.last_hit_at,
        });
        Ok(stats.collect())
    }

    pub(crate) async fn count_cached(&self, filter: &CacheFilter) -> Result<u64, BackendError> {
        let statement = concat!("select count(*) from cache_entries where ", meant!());
        let meant: i64 = sqlx::query_scalar(statement)
            .bind(filter.tenant.as_ref().map(|tenant| tenant.as_str()))
            .bind(&filter.model)
            .bind(&filter.revision)
            .bind(filter.answered_before)
            .bind(filter.job.map(|job| job.0))
            .fetch_one(&self.readers)
            .await?;
        Ok(count(meant))
    }

    pub(crate) async fn drop_cached(&self, filter: &CacheFilter) -> Result<u64, BackendError> {
        let mut transaction = self.begin().await?;
        let questions = concat!(
            "delete from cache_questions where key in (select key from cache_entries where ",
            meant!(),
            ")"
        );
        let entries = concat!("delete from cache_entries where ", meant!());
        let mut gone = 0;
        for statement in [questions, entries] {
            gone = delete(&mut transaction, statement, filter).await?;
        }
        transaction.commit().await?;
        Ok(gone)
    }

    pub(crate) async fn answered_along(
        &self,
        jobs: &[JobId],
    ) -> Result<Vec<JobRecord>, BackendError> {
        let mut records = Vec::new();
        for job in jobs {
            // One transaction settles them all and gives them all one instant.
            let rows: Vec<Row> = sqlx::query_as(job_rows("select", "a.text, a.logprobs
                   from jobs l
                   join jobs j on j.cache_key = l.cache_key and j.finished_at = l.finished_at and j.id <> l.id
                   left join answers a on a.job_id = j.id
                  where l.id = ?1 and l.state = 'succeeded'
                    and j.source in ('shared', 'semantic') and j.reply_to is not null
                  order by j.id"))
            .bind(job.0)
            .fetch_all(&self.readers)
            .await?;
            for row in rows {
                records.push(row.into_record()?);
            }
        }
        Ok(records)
    }
}

/// Runs a deletion by a filter; returns the rows that went.
async fn delete(
    connection: &mut SqliteConnection,
    statement: &'static str,
    filter: &CacheFilter,
) -> Result<u64, BackendError> {
    let done = sqlx::query(statement)
        .bind(filter.tenant.as_ref().map(|tenant| tenant.as_str()))
        .bind(&filter.model)
        .bind(&filter.revision)
        .bind(filter.answered_before)
        .bind(filter.job.map(|job| job.0))
        .execute(connection)
        .await?;
    Ok(done.rows_affected())
}
