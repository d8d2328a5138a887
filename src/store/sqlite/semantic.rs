//! Questions whose answers may serve others, what became of those that asked, and rechecks.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::{SqliteStore, cache, dead};
use crate::{
    job::{Answer, CacheKey, Job, JobId, Tier},
    store::{
        KnownQuestion, Recheck, RecheckOutcome, Route,
        error::BackendError,
        row::{Row, job_rows},
        rules::{Hit, NewJob, before},
        semantic::{from_bytes, to_bytes},
    },
};

/// The answer that a job is given at once because its question has one: that of the very same request
/// before that of one which asks the same.
pub(super) async fn find(
    connection: &mut SqliteConnection,
    route: &Route,
    key: &CacheKey,
    now: DateTime<Utc>,
) -> Result<Option<Hit>, BackendError> {
    let Some(nearest) = route.hit() else {
        return Ok(None);
    };
    if let Some((answer, leader)) = cache::take(connection, key, now).await? {
        return Ok(Some(Hit::exact(answer, leader)));
    }
    let taken = cache::take(connection, &nearest.entry, now).await?;
    Ok(taken.map(|(answer, leader)| Hit::semantic(answer, leader, nearest)))
}

/// Keeps the question of a new job whose answer may serve others.
pub(super) async fn keep_question(
    connection: &mut SqliteConnection,
    job: &NewJob<'_>,
    now: DateTime<Utc>,
) -> Result<(), BackendError> {
    if let Some((key, lookup)) = job.question() {
        sqlx::query(
            "insert into cache_questions (key, tenant, scope, embedder, question, embedding, cosine_min,
                                          created_at, changed_at)
             values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8) on conflict do nothing",
        )
        .bind(key.0.as_slice())
        .bind(job.head.tenant.as_str())
        .bind(lookup.scope.as_slice())
        .bind(&lookup.embedder)
        .bind(&lookup.question)
        .bind(to_bytes(&lookup.embedding))
        .bind(lookup.cosine_min)
        .bind(now)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

#[derive(sqlx::FromRow)]
struct QuestionRow {
    key: Vec<u8>,
    scope: Vec<u8>,
    question: String,
    embedding: Vec<u8>,
    cosine_min: f32,
    changed_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
}

#[derive(sqlx::FromRow)]
struct RecheckRow {
    job_id: Uuid,
    entry: Vec<u8>,
    cosine: f32,
    given: String,
    own: Option<String>,
}

impl SqliteStore {
    pub(crate) async fn known_questions(
        &self,
        embedder: &str,
        since: DateTime<Utc>,
        limit: usize,
    ) -> Result<Vec<KnownQuestion>, BackendError> {
        let rows: Vec<QuestionRow> = sqlx::query_as(
            "select q.key, q.scope, q.question, q.embedding, q.cosine_min,
                    max(q.changed_at, e.created_at) as changed_at, e.expires_at
               from cache_entries e join cache_questions q on q.key = e.key
              where e.state = 'ready' and e.expires_at > ?3 and q.embedder = ?1
                and (e.created_at >= ?2 or q.changed_at >= ?2)
              order by changed_at desc limit ?4",
        )
        .bind(embedder)
        .bind(since)
        .bind(self.clock.now())
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.readers)
        .await?;
        let known = rows.into_iter().filter_map(|row| {
            Some(KnownQuestion {
                entry: CacheKey(row.key.try_into().ok()?),
                scope: row.scope.try_into().ok()?,
                question: row.question,
                embedding: from_bytes(&row.embedding),
                cosine_min: row.cosine_min,
                changed_at: row.changed_at,
                expires_at: row.expires_at,
            })
        });
        Ok(known.collect())
    }

    pub(crate) async fn cached(
        &self,
        key: CacheKey,
    ) -> Result<Option<(Answer, JobId)>, BackendError> {
        let mut transaction = self.begin().await?;
        let taken = cache::take(&mut transaction, &key, self.clock.now()).await?;
        transaction.commit().await?;
        Ok(taken)
    }

    pub(crate) async fn open_rechecks(&self) -> Result<u64, BackendError> {
        let mut transaction = self.begin().await?;
        sqlx::query(
            "update semantic_lookups set rechecked_at = ?1
              where recheck_propensity is not null and rechecked_at is null
                and exists (select 1 from jobs j
                             where j.id = semantic_lookups.job_id and j.finished_at is not null
                               and j.source is not 'semantic')",
        )
        .bind(self.clock.now())
        .execute(&mut *transaction)
        .await?;
        let open: i64 = sqlx::query_scalar(
            "select count(*) from semantic_lookups
              where recheck_propensity is not null and rechecked_at is null and recheck_id is not null",
        )
        .fetch_one(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(u64::try_from(open).unwrap_or(0))
    }

    pub(crate) async fn due_rechecks(
        &self,
        limit: usize,
        stuck_after: Duration,
    ) -> Result<Vec<(Job, Tier)>, BackendError> {
        let mut connection = self.readers.acquire().await?;
        let rows: Vec<Row> = sqlx::query_as(job_rows("select", "null as text, null as logprobs
               from semantic_lookups l join jobs j on j.id = l.job_id
               left join jobs c on c.id = l.recheck_id
              where l.recheck_propensity is not null and l.rechecked_at is null and j.source = 'semantic'
                and (l.recheck_id is null
                     or (l.made_at < ?1 and c.state = 'routed' and c.attempts = 0))
              order by l.job_id limit ?2"))
        .bind(before(self.clock.now(), stuck_after))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&mut *connection)
        .await?;
        let mut due = Vec::with_capacity(rows.len());
        for row in rows {
            let Some(tier) = row.tier else {
                continue;
            };
            if let Some(request) = dead::request(&mut connection, row.id).await? {
                due.push((row.job(&request)?, tier));
            }
        }
        Ok(due)
    }

    pub(crate) async fn ended_rechecks(&self, limit: usize) -> Result<Vec<Recheck>, BackendError> {
        let rows: Vec<RecheckRow> = sqlx::query_as(
            "select l.job_id, l.entry, l.cosine, g.text as given, o.text as own
               from semantic_lookups l
               join jobs c on c.id = l.recheck_id
               join answers g on g.job_id = l.job_id
               left join answers o on o.job_id = l.recheck_id
              where l.recheck_propensity is not null and l.rechecked_at is null
                and c.finished_at is not null
              order by l.job_id limit ?1",
        )
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.readers)
        .await?;
        let ended = rows.into_iter().filter_map(|row| {
            Some(Recheck {
                job: JobId(row.job_id),
                entry: CacheKey(row.entry.try_into().ok()?),
                cosine: row.cosine,
                given: row.given,
                own: row.own,
            })
        });
        Ok(ended.collect())
    }

    pub(crate) async fn settle_rechecks(
        &self,
        judgements: &[RecheckOutcome],
    ) -> Result<Vec<JobId>, BackendError> {
        let mut transaction = self.begin().await?;
        let now = self.clock.now();
        let mut judged = Vec::with_capacity(judgements.len());
        for judgement in judgements {
            let written = sqlx::query(
                "update semantic_lookups set rechecked_at = ?2, agrees = ?3
                  where job_id = ?1 and rechecked_at is null",
            )
            .bind(judgement.job.0)
            .bind(now)
            .bind(judgement.agrees)
            .execute(&mut *transaction)
            .await?;
            if written.rows_affected() == 0 {
                continue;
            }
            judged.push(judgement.job);
            let Some(agrees) = judgement.agrees else {
                continue;
            };
            sqlx::query(
                "update cache_questions
                    set rechecks = rechecks + 1, disagreements = disagreements + ?2,
                        cosine_min = max(cosine_min, coalesce(?3, cosine_min)), changed_at = ?4
                  where key = ?1",
            )
            .bind(judgement.entry.0.as_slice())
            .bind(i32::from(!agrees))
            .bind(judgement.cosine_min)
            .bind(now)
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(judged)
    }
}
