//! Settlements: fenced by the attempt, shared with the jobs that wait, all in one transaction.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::{
    SqliteStore, admit::insert_text, attempts, cache, dead, find_row, row_columns, savings,
};
use crate::{
    job::{CacheKey, JobRecord, JobState, RoutedJob},
    store::{
        AttemptOutcome, Settled, Settlement,
        effect::{Effect, Given},
        error::BackendError,
        row::Row,
    },
};

impl SqliteStore {
    pub(crate) async fn settle(
        &self,
        settlements: &[Settlement],
        ttl: Duration,
    ) -> Result<Vec<Settled>, BackendError> {
        let mut transaction = self.begin().await?;
        let now = self.clock.now();
        let mut outcomes = Vec::with_capacity(settlements.len());
        for settlement in settlements {
            outcomes.push(settle_one(&mut transaction, settlement, now, ttl).await?);
        }
        transaction.commit().await?;
        Ok(outcomes)
    }

    pub(crate) async fn take_over_flights(
        &self,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<RoutedJob>, BackendError> {
        let mut transaction = self.begin().await?;
        let now = self.clock.now();
        // Ids sort by time, so the smallest is the oldest.
        let rows: Vec<Row> = sqlx::query_as(concat!(
            "select",
            row_columns!(),
            "null as text, null as logprobs
               from (select waits_for, min(id) as id from jobs
                      where waits_for is not null and state = 'routed' group by waits_for) w
               join jobs j on j.id = w.id
               left join cache_entries e on e.key = w.waits_for
              where e.key is null or (e.state = 'computing' and e.lease_until < ?1)
                 or (e.state = 'ready' and e.expires_at <= ?1)
              order by j.id limit ?2"
        ))
        .bind(now)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&mut *transaction)
        .await?;
        let mut promoted = Vec::with_capacity(rows.len());
        for row in rows {
            let request = dead::request(&mut transaction, row.id).await?;
            let (Some(key), Some(request)) = (row.cache_key(), request) else {
                continue;
            };
            if cache::lead(&mut transaction, &key, &row.tenant, row.id, now, lease).await? {
                promoted.push(row.routed_job(&request)?);
            }
        }
        transaction.commit().await?;
        Ok(promoted)
    }
}

async fn settle_one(
    connection: &mut SqliteConnection,
    settlement: &Settlement,
    now: DateTime<Utc>,
    ttl: Duration,
) -> Result<Settled, BackendError> {
    let effect = Effect::of(&settlement.outcome);
    savings::write_savings(connection, settlement).await?;
    let is_withdrawn = effect.state == JobState::Cancelled;
    if is_withdrawn || !end_attempt(connection, settlement, &effect, now).await? {
        let late = AttemptOutcome::superseded(effect.generated);
        attempts::write(connection, settlement, &Effect::of(&late)).await?;
        return Ok(Settled::Fenced);
    }
    let id = settlement.job.0;
    if let Some(answer) = effect.answer {
        insert_text(connection, id, answer).await?;
    }
    attempts::write(connection, settlement, &effect).await?;
    let Some(row) = find_row(connection, id).await? else {
        return Err(BackendError::Rule(
            "a job that exists cannot be found".to_owned(),
        ));
    };
    let row = attempts::fall_back(connection, row).await?;
    if let (true, Some(reason)) = (
        effect.keep_dead_letters && row.is_unanswered(),
        effect.reason,
    ) {
        dead::quarantine(connection, &row, reason, now).await?;
    }
    let mut shared = Vec::new();
    if let Some(key) = &settlement.cache_key {
        if let Some(answer) = effect.answer.filter(|_| settlement.reusable) {
            cache::fill(connection, key, &row.tenant, id, answer, (now, ttl)).await?;
        }
        if let Some(given) = effect.given(settlement.job) {
            shared = share(connection, key, given, now).await?;
        }
        if effect.answer.is_some() || effect.gives_up() {
            // A filled entry stays: only one that still computes is given up.
            cache::give_up(connection, key, id).await?;
            // A job that was promoted meanwhile may have led the entry.
            for record in &shared {
                cache::give_up(connection, key, record.id.0).await?;
            }
        }
    }
    Ok(Settled::Committed {
        record: Box::new(row.into_record()?),
        shared,
    })
}

/// Moves the job to its next state; false when the settlement is fenced.
async fn end_attempt(
    connection: &mut SqliteConnection,
    settlement: &Settlement,
    effect: &Effect<'_>,
    now: DateTime<Utc>,
) -> Result<bool, BackendError> {
    let answer = effect.answer;
    let escalated = effect.escalated();
    let reason = effect.job_reason();
    let done = sqlx::query(
        "update jobs
            set state = ?3, tier = coalesce(?4, tier), attempts_returned = attempts_returned + ?5,
                source = ?22, answered_by = ?23, cosine = ?24,
                reason_code = ?6, reason_message = ?7, started_at = ?8, first_token_at = ?9,
                prompt_tokens = ?10, prompt_tokens_computed = ?11, completion_tokens = ?12,
                finish_reason = ?13, model = ?14, revision = ?15, mean_logprob = ?16, finished_at = ?17,
                confidence = coalesce(?18, confidence),
                escalated_prompt_tokens =
                    coalesce(coalesce(escalated_prompt_tokens, 0) + ?19, escalated_prompt_tokens),
                escalated_prompt_tokens_computed = coalesce(
                    coalesce(escalated_prompt_tokens_computed, 0) + ?20, escalated_prompt_tokens_computed),
                escalated_completion_tokens =
                    coalesce(coalesce(escalated_completion_tokens, 0) + ?21, escalated_completion_tokens)
          where id = ?1 and attempts = ?2 and state = 'running'",
    )
    .bind(settlement.job.0)
    .bind(settlement.attempt)
    .bind(effect.state.as_str())
    .bind(effect.tier)
    .bind(i32::from(effect.is_returned))
    .bind(reason.map(|reason| reason.code.as_str()))
    .bind(reason.map(|reason| reason.message.as_str()))
    .bind(settlement.started_at)
    .bind(settlement.first_token_at)
    .bind(answer.map(|answer| answer.usage.prompt_tokens))
    .bind(answer.map(|answer| answer.usage.prompt_tokens_computed))
    .bind(answer.map(|answer| answer.usage.completion_tokens))
    .bind(answer.map(|answer| answer.finish_reason.as_str()))
    .bind(answer.map(|answer| answer.model.as_str()))
    .bind(answer.map(|answer| answer.revision.as_str()))
    .bind(answer.and_then(|answer| answer.mean_logprob))
    .bind(effect.state.is_terminal().then_some(now))
    .bind(settlement.confidence)
    .bind(escalated.map(|usage| usage.prompt_tokens))
    .bind(escalated.map(|usage| usage.prompt_tokens_computed))
    .bind(escalated.map(|usage| usage.completion_tokens))
    .bind(effect.source().map(|source| source.as_str()))
    .bind(effect.reused.map(|reused| reused.leader.0))
    .bind(effect.reused.map(|reused| reused.cosine))
    .execute(connection)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Gives an answer to the jobs that wait for it.
async fn share(
    connection: &mut SqliteConnection,
    key: &CacheKey,
    given: Given<'_>,
    now: DateTime<Utc>,
) -> Result<Vec<JobRecord>, BackendError> {
    let waiting: Vec<Uuid> = sqlx::query_scalar(
        "select j.id from jobs j left join semantic_lookups l on l.job_id = j.id
          where j.waits_for = ?1 and j.state = 'routed' and (?2 is null or l.entry = ?2)
          order by j.id",
    )
    .bind(key.0.as_slice())
    .bind(given.only_of.map(|entry| entry.0.to_vec()))
    .fetch_all(&mut *connection)
    .await?;
    let answer = given.answer;
    let mut records = Vec::with_capacity(waiting.len());
    for id in waiting {
        sqlx::query(
            "update jobs
                set state = 'succeeded', source = ?11, answered_by = ?2, cosine = ?12, waits_for = null,
                    finished_at = ?3, prompt_tokens = ?4, prompt_tokens_computed = ?5,
                    completion_tokens = ?6, finish_reason = ?7, model = ?8, revision = ?9,
                    mean_logprob = ?10
              where id = ?1 and state = 'routed'",
        )
        .bind(id)
        .bind(given.by.0)
        .bind(now)
        .bind(answer.usage.prompt_tokens)
        .bind(answer.usage.prompt_tokens_computed)
        .bind(answer.usage.completion_tokens)
        .bind(answer.finish_reason.as_str())
        .bind(&answer.model)
        .bind(&answer.revision)
        .bind(answer.mean_logprob)
        .bind(given.source.as_str())
        .bind(given.cosine)
        .execute(&mut *connection)
        .await?;
        insert_text(connection, id, answer).await?;
        if let Some(row) = find_row(connection, id).await? {
            records.push(row.into_record()?);
        }
    }
    Ok(records)
}
