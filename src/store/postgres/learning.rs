//! Decisions, copies for learning, feedback and weights.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use chrono::TimeDelta;
use uuid::Uuid;

use super::{
    PostgresStore, dead,
    text::{self, encode},
};
use crate::{
    job::{Job, JobId, Tenant, Tier},
    store::{
        DecisionRecord, Feedback, PairRow, PastDecision, StoredWeights, TierCost,
        error::BackendError,
        row::{Row, job_rows},
        rules::{self, before},
    },
};

impl PostgresStore {
    pub(crate) async fn record_feedback(
        &self,
        tenant: &Tenant,
        words: &[Feedback],
    ) -> Result<Vec<bool>, BackendError> {
        // One statement cannot change a row twice: the last feedback of each source counts.
        let latest: HashMap<(Uuid, &str), &Feedback> = words
            .iter()
            .map(|word| ((word.job.0, word.source.as_str()), word))
            .collect();
        let mut latest: Vec<&Feedback> = latest.into_values().collect();
        latest.sort_by(|a, b| (a.job, &a.source).cmp(&(b.job, &b.source)));
        let ids: Vec<Uuid> = latest.iter().map(|word| word.job.0).collect();
        let sources: Vec<_> = latest.iter().map(|word| encode(&word.source)).collect();
        let scores: Vec<f64> = latest.iter().map(|word| word.score).collect();
        let comments: Vec<_> = latest
            .iter()
            .map(|word| word.comment.as_deref().map(encode))
            .collect();
        let known: HashSet<Uuid> = sqlx::query_scalar!(
            "insert into feedback (job_id, source, score, comment, created_at)
             select n.job_id, n.source, n.score, n.comment, $6
               from unnest($1::uuid[], $2::text[], $3::float8[], $4::text[]) as n (job_id, source, score, comment)
               join jobs j on j.id = n.job_id and j.tenant = $5
                 on conflict (job_id, source) do update set score = excluded.score, comment = excluded.comment
             returning job_id",
            &ids,
            &sources as &[std::borrow::Cow<'_, str>],
            &scores,
            &comments as &[Option<std::borrow::Cow<'_, str>>],
            tenant.as_str(),
            self.clock.now()
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .collect();
        Ok(words
            .iter()
            .map(|word| known.contains(&word.job.0))
            .collect())
    }

    pub(crate) async fn close_shadows(&self) -> Result<u64, BackendError> {
        let mut connection = self.pool.acquire().await?;
        sqlx::query!(
            "update shadows s set ended_at = $1
               from jobs j
              where s.ended_at is null and j.id = coalesce(s.shadow_id, s.job_id)
                and case when s.shadow_id is not null then j.finished_at is not null
                         else j.finished_at is not null
                              and (j.state <> 'succeeded' or j.source <> 'computed' or j.tier <> 'small') end",
            self.clock.now()
        )
        .execute(&mut *connection)
        .await?;
        let open = sqlx::query_scalar!(
            r#"select count(*) as "open!" from shadows where ended_at is null and shadow_id is not null"#
        )
        .fetch_one(&mut *connection)
        .await?;
        Ok(u64::try_from(open).unwrap_or(0))
    }

    pub(crate) async fn due_shadows(
        &self,
        limit: usize,
        stuck_after: Duration,
    ) -> Result<Vec<Job>, BackendError> {
        let mut connection = self.pool.acquire().await?;
        let rows = sqlx::query_as::<_, Row>(job_rows("select", "null::text as text, null::text as logprobs
               from shadows s join jobs j on j.id = s.job_id left join jobs c on c.id = s.shadow_id
              where s.ended_at is null and j.state = 'succeeded' and j.source = 'computed' and j.tier = 'small'
                and (s.shadow_id is null or (s.made_at < $1 and c.state = 'routed' and c.attempts = 0))
              order by s.job_id limit $2"))
.bind(before(self.clock.now(), stuck_after))
.bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&mut *connection)
        .await?;
        let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        let requests = dead::requests(&mut connection, &ids).await?;
        rows.into_iter()
            .filter_map(|row| {
                let request = requests.get(&row.id)?;
                Some(
                    text::decode_row(row)
                        .job(request)
                        .map_err(BackendError::from),
                )
            })
            .collect()
    }

    pub(crate) async fn past_decisions(
        &self,
        scorer: &str,
        limit: usize,
    ) -> Result<Vec<PastDecision>, BackendError> {
        let rows = sqlx::query!(
            r#"select tenant as "tenant!", tags::text as tags, score as "score!"
                 from (select * from jobs where id >= $1 order by id desc limit $2) j
                where scorer = $3 and score is not null and route_reason in ('score', 'load', 'explore')
                order by id"#,
            rules::id_floor(self.clock.now() - TimeDelta::days(7)),
            i64::try_from(limit).unwrap_or(i64::MAX),
            scorer
        )
        .fetch_all(&self.pool)
        .await?;
        let past = rows.into_iter().map(|row| PastDecision {
            tenant: row.tenant,
            tags: rules::tags_of(row.tags.as_deref()),
            score: row.score,
        });
        Ok(past.collect())
    }

    pub(crate) async fn tier_costs(&self, limit: usize) -> Result<Vec<TierCost>, BackendError> {
        let rows = sqlx::query!(
            r#"select tier as "tier!: Tier", count(*) as "jobs!",
                      avg(extract(epoch from finished_at - started_at)::float8) as "seconds!",
                      avg(coalesce(prompt_tokens, 0))::float8 as "prompt_tokens!",
                      avg(coalesce(completion_tokens, 0))::float8 as "completion_tokens!"
                 from (select * from jobs where finished_at >= $1 order by finished_at desc limit $2) j
                where source = 'computed' and started_at is not null and tier is not null
                group by tier order by tier desc"#,
            self.clock.now() - TimeDelta::hours(1),
            i64::try_from(limit).unwrap_or(i64::MAX)
        )
        .fetch_all(&self.pool)
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
        let mut connection = self.pool.acquire().await?;
        let rows = sqlx::query!(
            r#"select p.job_id as "job_id!", p.tenant as "tenant!: Tenant", p.scorer, p.score,
                      (select j.tags::text from jobs j where j.id = p.job_id) as tags,
                      p.propensity as "propensity!", p.agrees as "agrees!",
                      (select avg(f.score) from feedback f
                        where f.job_id = p.job_id and p.shadow_id is not null) as small_feedback,
                      (select bool_or(f.source = 'expect') from feedback f
                        where f.job_id = p.job_id and p.shadow_id is not null) as is_exact,
                      (select avg(f.score) from feedback f
                        where f.job_id = coalesce(p.shadow_id, p.job_id)) as large_feedback
                 from (select job_id, shadow_id, tenant, scorer, score, propensity * decision_propensity as propensity,
                              agrees from shadow_pairs
                       union all
                       select j.id, null, j.tenant, j.scorer, j.score, coalesce(j.propensity, 1.0),
                              btrim(t.text, E' \t\r\n') = btrim(a.text, E' \t\r\n')
                         from attempt_answers t join attempts e on e.job_id = t.job_id and e.attempt = t.attempt
                         join jobs j on j.id = t.job_id join answers a on a.job_id = j.id
                        where $2 and e.outcome = 'escalated' and e.tier = 'small'
                          and j.state = 'succeeded' and j.tier = 'large' and j.source = 'computed'
                        order by 1 desc limit $1) p
                order by p.job_id desc"#,
            i64::try_from(limit).unwrap_or(i64::MAX),
            for_training
        )
        .fetch_all(&mut *connection)
        .await?;
        let mut requests = if for_training {
            let ids: Vec<Uuid> = rows.iter().map(|row| row.job_id).collect();
            dead::requests(&mut connection, &ids).await?
        } else {
            HashMap::new()
        };
        rows.into_iter()
            .map(|row| {
                let request = requests.remove(&row.job_id);
                Ok(PairRow {
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
                })
            })
            .collect()
    }

    pub(crate) async fn decision(&self, id: JobId) -> Result<Option<DecisionRecord>, BackendError> {
        let mut connection = self.pool.acquire().await?;
        let Some(row) = sqlx::query!(
            r#"select j.scorer, j.features_version, j.features::text as features, j.score, j.threshold_base,
                      j.threshold, j.target, j.target_scope, j.route_reason, j.propensity, j.shadow_of,
                      s.shadow_id as "shadow_id?"
                 from jobs j left join shadows s on s.job_id = j.id where j.id = $1"#,
            id.0
        )
        .fetch_optional(&mut *connection)
        .await?
        else {
            return Ok(None);
        };
        let words = sqlx::query!(
            "select source, score from feedback where job_id = $1 order by source",
            id.0
        )
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
            feedback: words
                .into_iter()
                .map(|word| (text::decode(word.source), word.score))
                .collect(),
        }))
    }

    pub(crate) async fn put_weights(
        &self,
        weights: &StoredWeights,
        promote: bool,
    ) -> Result<(), BackendError> {
        let mut transaction = self.pool.begin().await?;
        if promote {
            sqlx::query!("update router_weights set active = false where active")
                .execute(&mut *transaction)
                .await?;
        }
        sqlx::query!(
            "insert into router_weights (version, created_at, metrics, weights, active)
             values ($1, $2, $3::text::jsonb, $4, $5)
                 on conflict (version) do update
                set created_at = excluded.created_at, metrics = excluded.metrics, weights = excluded.weights,
                    active = router_weights.active or excluded.active",
            &*encode(&weights.version),
            weights.created_at,
            text::encode_json(&weights.metrics.to_string()),
            weights.weights,
            promote
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }

    pub(crate) async fn active_weights(&self) -> Result<Option<StoredWeights>, BackendError> {
        let row = sqlx::query!(
            r#"select version, created_at, metrics::text as "metrics!", weights
                 from router_weights where active"#
        )
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| {
            Ok(StoredWeights {
                version: text::decode(row.version),
                created_at: row.created_at,
                metrics: serde_json::from_str(&row.metrics)?,
                weights: row.weights,
            })
        })
        .transpose()
    }
}
