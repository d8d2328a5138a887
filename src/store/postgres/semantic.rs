//! Questions whose answers may serve others, what became of those that asked, and rechecks.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    PostgresStore,
    cache::{self, to_key},
    dead,
    text::{decode, decode_row, encode},
};
use crate::{
    job::{Answer, CacheKey, Job, JobId, Tier},
    store::{
        KnownQuestion, Recheck, RecheckOutcome,
        error::BackendError,
        row::{Row, job_rows},
        rules::{NewJob, before},
    },
};

/// Keeps the questions of new jobs whose answers may serve others.
pub(super) async fn keep_questions(
    connection: &mut PgConnection,
    jobs: &[&NewJob<'_>],
    now: DateTime<Utc>,
) -> Result<(), BackendError> {
    for job in jobs {
        // Embeddings are arrays themselves, which `unnest` would flatten; questions are few beside jobs.
        let Some((key, lookup)) = job.question() else {
            continue;
        };
        sqlx::query!(
            "insert into cache_questions (key, tenant, scope, embedder, question, embedding, cosine_min,
                                          created_at, changed_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $8) on conflict do nothing",
            key.0.as_slice(),
            job.head.tenant.as_str(),
            lookup.scope.as_slice(),
            &lookup.embedder,
            &*encode(&lookup.question),
            &lookup.embedding,
            lookup.cosine_min,
            now
        )
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

impl PostgresStore {
    pub(crate) async fn known_questions(
        &self,
        embedder: &str,
        since: DateTime<Utc>,
        limit: usize,
    ) -> Result<Vec<KnownQuestion>, BackendError> {
        let rows = sqlx::query!(
            r#"select q.key, q.scope, q.question, q.embedding, q.cosine_min,
                      greatest(q.changed_at, e.created_at) as "changed_at!", e.expires_at as "expires_at!"
                 from cache_entries e join cache_questions q on q.key = e.key
                where e.state = 'ready' and e.expires_at > $3 and q.embedder = $1
                  and (e.created_at >= $2 or q.changed_at >= $2)
                order by 6 desc limit $4"#,
            embedder,
            since,
            self.clock.now(),
            i64::try_from(limit).unwrap_or(i64::MAX)
        )
        .fetch_all(&self.pool)
        .await?;
        let known = rows.into_iter().filter_map(|row| {
            Some(KnownQuestion {
                entry: to_key(row.key)?,
                scope: row.scope.try_into().ok()?,
                question: decode(row.question),
                embedding: row.embedding,
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
        let mut transaction = self.pool.begin().await?;
        let mut taken = cache::take(&mut transaction, &[key], self.clock.now()).await?;
        transaction.commit().await?;
        Ok(taken.remove(&key))
    }

    pub(crate) async fn open_rechecks(&self) -> Result<u64, BackendError> {
        let mut connection = self.pool.acquire().await?;
        sqlx::query!(
            "update semantic_lookups l set rechecked_at = $1
               from jobs j
              where l.recheck_propensity is not null and l.rechecked_at is null and j.id = l.job_id
                and j.finished_at is not null and j.source is distinct from 'semantic'",
            self.clock.now()
        )
        .execute(&mut *connection)
        .await?;
        let open = sqlx::query_scalar!(
            r#"select count(*) as "open!" from semantic_lookups
                where recheck_propensity is not null and rechecked_at is null and recheck_id is not null"#
        )
        .fetch_one(&mut *connection)
        .await?;
        Ok(u64::try_from(open).unwrap_or(0))
    }

    pub(crate) async fn due_rechecks(
        &self,
        limit: usize,
        stuck_after: Duration,
    ) -> Result<Vec<(Job, Tier)>, BackendError> {
        let mut connection = self.pool.acquire().await?;
        let rows = sqlx::query_as::<_, Row>(job_rows("select", "null::text as text, null::text as logprobs
               from semantic_lookups l join jobs j on j.id = l.job_id
               left join jobs c on c.id = l.recheck_id
              where l.recheck_propensity is not null and l.rechecked_at is null and j.source = 'semantic'
                and (l.recheck_id is null
                     or (l.made_at < $1 and c.state = 'routed' and c.attempts = 0))
              order by l.job_id limit $2"))
.bind(before(self.clock.now(), stuck_after))
.bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&mut *connection)
        .await?;
        let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        let requests = dead::requests(&mut connection, &ids).await?;
        rows.into_iter()
            .filter_map(|row| {
                let request = requests.get(&row.id)?;
                let tier = row.tier?;
                let job = decode_row(row).job(request).map_err(BackendError::from);
                Some(job.map(|job| (job, tier)))
            })
            .collect()
    }

    pub(crate) async fn ended_rechecks(&self, limit: usize) -> Result<Vec<Recheck>, BackendError> {
        let rows = sqlx::query!(
            r#"select l.job_id, l.entry, l.cosine, g.text as given, o.text as "own?"
                 from semantic_lookups l
                 join jobs c on c.id = l.recheck_id
                 join answers g on g.job_id = l.job_id
                 left join answers o on o.job_id = l.recheck_id
                where l.recheck_propensity is not null and l.rechecked_at is null
                  and c.finished_at is not null
                order by l.job_id limit $1"#,
            i64::try_from(limit).unwrap_or(i64::MAX)
        )
        .fetch_all(&self.pool)
        .await?;
        let ended = rows.into_iter().filter_map(|row| {
            Some(Recheck {
                job: JobId(row.job_id),
                entry: to_key(row.entry)?,
                cosine: row.cosine,
                given: decode(row.given),
                own: row.own.map(decode),
            })
        });
        Ok(ended.collect())
    }

    pub(crate) async fn settle_rechecks(
        &self,
        judgements: &[RecheckOutcome],
    ) -> Result<Vec<JobId>, BackendError> {
        let mut transaction = self.pool.begin().await?;
        let now = self.clock.now();
        let mut judged = Vec::with_capacity(judgements.len());
        for judgement in judgements {
            let written = sqlx::query!(
                "update semantic_lookups set rechecked_at = $2, agrees = $3
                  where job_id = $1 and rechecked_at is null",
                judgement.job.0,
                now,
                judgement.agrees
            )
            .execute(&mut *transaction)
            .await?;
            if written.rows_affected() == 0 {
                continue;
            }
            judged.push(judgement.job);
            let Some(agrees) = judgement.agrees else {
                continue;
            };
            sqlx::query!(
                "update cache_questions
                    set rechecks = rechecks + 1, disagreements = disagreements + $2,
                        cosine_min = greatest(cosine_min, $3::real), changed_at = $4
                  where key = $1",
                judgement.entry.0.as_slice(),
                i32::from(!agrees),
                judgement.cosine_min,
                now
            )
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(judged)
    }
}
