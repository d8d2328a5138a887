//! Decisions, copies for learning, feedback and weights.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::{SqliteStore, dead};
use crate::{
    job::{Job, JobId, Tenant, Tier},
    store::{
        DecisionRecord, Feedback, PairRow, PastDecision, StoredWeights, TierCost,
        error::BackendError,
        row::{Row, job_rows},
        rules::{self, before},
    },
};

#[derive(sqlx::FromRow)]
struct CostRow {
    tier: Tier,
    jobs: i64,
    seconds: f64,
    prompt_tokens: f64,
    completion_tokens: f64,
}

#[derive(sqlx::FromRow)]
struct PairOf {
    job_id: Uuid,
    tenant: Tenant,
    tags: Option<String>,
    scorer: Option<String>,
    score: Option<f64>,
    propensity: f64,
    agrees: bool,
    small_feedback: Option<f64>,
    is_exact: Option<bool>,
    large_feedback: Option<f64>,
}

#[derive(sqlx::FromRow)]
struct DecisionRow {
    scorer: Option<String>,
    features_version: Option<i32>,
    features: Option<String>,
    score: Option<f64>,
    threshold_base: Option<f64>,
    threshold: Option<f64>,
    target: Option<String>,
    target_scope: Option<String>,
    route_reason: Option<String>,
    propensity: Option<f64>,
    shadow_of: Option<Uuid>,
    shadow_id: Option<Uuid>,
}

impl SqliteStore {
    pub(crate) async fn record_feedback(
        &self,
        tenant: &Tenant,
        words: &[Feedback],
    ) -> Result<Vec<bool>, BackendError> {
        let mut transaction = self.begin().await?;
        let now = self.clock.now();
        let mut known = Vec::with_capacity(words.len());
        for word in words {
            let done = sqlx::query(
                "insert into feedback (job_id, source, score, comment, created_at)
                 select id, ?3, ?4, ?5, ?6 from jobs where id = ?1 and tenant = ?2
                     on conflict (job_id, source) do update
                    set score = excluded.score, comment = excluded.comment",
            )
            .bind(word.job.0)
            .bind(tenant.as_str())
            .bind(&word.source)
            .bind(word.score)
            .bind(&word.comment)
            .bind(now)
            .execute(&mut *transaction)
            .await?;
            known.push(done.rows_affected() > 0);
        }
        transaction.commit().await?;
        Ok(known)
    }

    pub(crate) async fn close_shadows(&self) -> Result<u64, BackendError> {
        let mut transaction = self.begin().await?;
        sqlx::query(
            "update shadows set ended_at = ?1
              where ended_at is null
                and exists (select 1 from jobs j
                             where j.id = coalesce(shadows.shadow_id, shadows.job_id)
                               and j.finished_at is not null
                               and (shadows.shadow_id is not null or j.state <> 'succeeded'
                                    or j.source <> 'computed' or j.tier <> 'small'))",
        )
        .bind(self.clock.now())
        .execute(&mut *transaction)
        .await?;
        let open: i64 = sqlx::query_scalar(
            "select count(*) from shadows where ended_at is null and shadow_id is not null",
        )
        .fetch_one(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(u64::try_from(open).unwrap_or(0))
    }

    pub(crate) async fn due_shadows(
        &self,
        limit: usize,
        stuck_after: Duration,
    ) -> Result<Vec<Job>, BackendError> {
        let mut connection = self.readers.acquire().await?;
        let rows: Vec<Row> = sqlx::query_as(job_rows("select", "null as text, null as logprobs
               from shadows s join jobs j on j.id = s.job_id left join jobs c on c.id = s.shadow_id
              where s.ended_at is null and j.state = 'succeeded' and j.source = 'computed' and j.tier = 'small'
                and (s.shadow_id is null or (s.made_at < ?1 and c.state = 'routed' and c.attempts = 0))
              order by s.job_id limit ?2"))
        .bind(before(self.clock.now(), stuck_after))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&mut *connection)
        .await?;
        let mut jobs = Vec::with_capacity(rows.len());
        for row in rows {
            if let Some(request) = dead::request(&mut connection, row.id).await? {
                jobs.push(row.job(&request)?);
            }
        }
        Ok(jobs)
    }

    pub(crate) async fn past_decisions(
        &self,
        scorer: &str,
        limit: usize,
    ) -> Result<Vec<PastDecision>, BackendError> {
        let rows: Vec<(String, Option<String>, f64)> = sqlx::query_as(
            "select tenant, tags, score
               from (select * from jobs where id >= ?1 order by id desc limit ?2)
              where scorer = ?3 and score is not null and route_reason in ('score', 'load', 'explore')
              order by id",
        )
        .bind(rules::id_floor(self.clock.now() - TimeDelta::days(7)))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .bind(scorer)
        .fetch_all(&self.readers)
        .await?;
        let past = rows.into_iter().map(|(tenant, tags, score)| PastDecision {
            tenant,
            tags: rules::tags_of(tags.as_deref()),
            score,
        });
        Ok(past.collect())
    }

    pub(crate) async fn tier_costs(&self, limit: usize) -> Result<Vec<TierCost>, BackendError> {
        let rows: Vec<CostRow> = sqlx::query_as(
            "select tier, count(*) as jobs,
                    avg((julianday(finished_at) - julianday(started_at)) * 86400.0) as seconds,
                    avg(coalesce(prompt_tokens, 0)) as prompt_tokens,
                    avg(coalesce(completion_tokens, 0)) as completion_tokens
               from (select * from jobs where finished_at >= ?1 order by finished_at desc limit ?2)
              where source = 'computed' and started_at is not null and tier is not null
              group by tier order by tier desc",
        )
        .bind(self.clock.now() - TimeDelta::hours(1))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.readers)
        .await?;
        let costs = rows.into_iter().map(|row| TierCost {
            tier: row.tier,
            jobs: u64::try_from(row.jobs).unwrap_or(0),
            seconds_mean: row.seconds,
            prompt_tokens_mean: row.prompt_tokens,
            completion_tokens_mean: row.completion_tokens,
        });
        Ok(costs.collect())
    }

    pub(crate) async fn pairs(
        &self,
        limit: usize,
        for_training: bool,
    ) -> Result<Vec<PairRow>, BackendError> {
        let mut connection = self.readers.acquire().await?;
        let rows: Vec<PairOf> = sqlx::query_as(
            "select p.job_id, p.tenant, (select j.tags from jobs j where j.id = p.job_id) as tags, p.scorer, p.score, p.propensity, p.agrees,
                    (select avg(f.score) from feedback f
                      where f.job_id = p.job_id and p.shadow_id is not null) as small_feedback,
                    (select max(f.source = 'expect') from feedback f
                      where f.job_id = p.job_id and p.shadow_id is not null) as is_exact,
                    (select avg(f.score) from feedback f
                      where f.job_id = coalesce(p.shadow_id, p.job_id)) as large_feedback
               from (select job_id, shadow_id, tenant, scorer, score, propensity * decision_propensity as propensity,
                            agrees from shadow_pairs
                     union all
                     select j.id, null, j.tenant, j.scorer, j.score, coalesce(j.propensity, 1.0),
                            trim(t.text, char(32, 9, 13, 10)) = trim(a.text, char(32, 9, 13, 10))
                       from attempt_answers t join attempts e on e.job_id = t.job_id and e.attempt = t.attempt
                       join jobs j on j.id = t.job_id join answers a on a.job_id = j.id
                      where ?2 and e.outcome = 'escalated' and e.tier = 'small'
                        and j.state = 'succeeded' and j.tier = 'large' and j.source = 'computed'
                      order by 1 desc limit ?1) p
              order by p.job_id desc",
        )
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .bind(for_training)
        .fetch_all(&mut *connection)
        .await?;
        let mut pairs = Vec::with_capacity(rows.len());
        for row in rows {
            let request = match for_training {
                true => dead::request(&mut connection, row.job_id).await?,
                false => None,
            };
            pairs.push(PairRow {
                job: JobId(row.job_id),
                tenant: row.tenant,
                tags: rules::tags_of(row.tags.as_deref()),
                scorer: row.scorer,
                score: row.score,
                propensity: row.propensity,
                agrees: row.agrees,
                small_feedback: row.small_feedback,
                is_exact: row.is_exact.unwrap_or(false),
                large_feedback: row.large_feedback,
                request: request.map(|text| rules::read_request(&text)).transpose()?,
            });
        }
        Ok(pairs)
    }

    pub(crate) async fn decision(&self, id: JobId) -> Result<Option<DecisionRecord>, BackendError> {
        let mut connection = self.readers.acquire().await?;
        let row: Option<DecisionRow> = sqlx::query_as(
            "select j.scorer, j.features_version, j.features, j.score, j.threshold_base, j.threshold, j.target,
                    j.target_scope, j.route_reason, j.propensity, j.shadow_of, s.shadow_id
               from jobs j left join shadows s on s.job_id = j.id where j.id = ?1",
        )
        .bind(id.0)
        .fetch_optional(&mut *connection)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let feedback =
            sqlx::query_as("select source, score from feedback where job_id = ?1 order by source")
                .bind(id.0)
                .fetch_all(&mut *connection)
                .await?;
        Ok(Some(DecisionRecord {
            scorer: row.scorer,
            features_version: row.features_version,
            features: row
                .features
                .map(|text| serde_json::from_str(&text))
                .transpose()?,
            score: row.score,
            threshold_base: row.threshold_base,
            threshold: row.threshold,
            target: row.target,
            target_scope: row.target_scope,
            route_reason: row.route_reason,
            propensity: row.propensity,
            shadow_of: row.shadow_of.map(JobId),
            shadow: row.shadow_id.map(JobId),
            feedback,
        }))
    }

    pub(crate) async fn put_weights(
        &self,
        weights: &StoredWeights,
        promote: bool,
    ) -> Result<(), BackendError> {
        let mut transaction = self.begin().await?;
        if promote {
            sqlx::query("update router_weights set active = 0 where active")
                .execute(&mut *transaction)
                .await?;
        }
        sqlx::query(
            "insert into router_weights (version, created_at, metrics, weights, active)
             values (?1, ?2, ?3, ?4, ?5)
                 on conflict (version) do update
                set created_at = excluded.created_at, metrics = excluded.metrics,
                    weights = excluded.weights, active = router_weights.active or excluded.active",
        )
        .bind(&weights.version)
        .bind(weights.created_at)
        .bind(weights.metrics.to_string())
        .bind(&weights.weights)
        .bind(promote)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }

    pub(crate) async fn active_weights(&self) -> Result<Option<StoredWeights>, BackendError> {
        let row: Option<(String, DateTime<Utc>, String, Vec<u8>)> = sqlx::query_as(
            "select version, created_at, metrics, weights from router_weights where active",
        )
        .fetch_optional(&self.readers)
        .await?;
        row.map(|(version, created_at, metrics, weights)| {
            Ok(StoredWeights {
                version,
                created_at,
                metrics: serde_json::from_str(&metrics)?,
                weights,
            })
        })
        .transpose()
    }
}
