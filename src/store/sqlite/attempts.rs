//! What attempts leave behind: their figures, and the answers that were escalated.

use sqlx::SqliteConnection;

use super::find_row;
use crate::{
    job::Signals,
    store::{
        Settlement,
        effect::Effect,
        error::BackendError,
        row::{Row, logprobs_json},
    },
};

/// Writes what the attempt came to.
pub(super) async fn write(
    connection: &mut SqliteConnection,
    settlement: &Settlement,
    effect: &Effect<'_>,
) -> Result<(), BackendError> {
    let answer = effect.generated;
    let usage = answer.map(|answer| answer.usage);
    let signals = settlement.signals.as_ref().map(Signals::to_json);
    let done = sqlx::query(
        "update attempts
            set outcome = ?3, started_at = ?4, first_token_at = ?5, finished_at = ?6, reason_code = ?7,
                reason_message = ?8, prompt_tokens = ?9, prompt_tokens_computed = ?10,
                completion_tokens = ?11, mean_logprob = ?12, finish_reason = ?13, confidence = ?14,
                signals = ?15
          where job_id = ?1 and attempt = ?2 and outcome = 'running'",
    )
    .bind(settlement.job.0)
    .bind(settlement.attempt)
    .bind(effect.outcome)
    .bind(settlement.started_at)
    .bind(settlement.first_token_at)
    .bind(settlement.finished_at)
    .bind(effect.reason.map(|reason| reason.code.as_str()))
    .bind(effect.reason.map(|reason| reason.message.as_str()))
    .bind(usage.map(|usage| usage.prompt_tokens))
    .bind(usage.map(|usage| usage.prompt_tokens_computed))
    .bind(usage.map(|usage| usage.completion_tokens))
    .bind(answer.and_then(|answer| answer.mean_logprob))
    .bind(answer.map(|answer| answer.finish_reason.as_str()))
    .bind(settlement.confidence)
    .bind(signals)
    .execute(&mut *connection)
    .await?;
    if let Some(answer) = effect.kept().filter(|_| done.rows_affected() > 0) {
        sqlx::query(
            "insert into attempt_answers (job_id, attempt, text, logprobs) values (?1, ?2, ?3, ?4)",
        )
        .bind(settlement.job.0)
        .bind(settlement.attempt)
        .bind(&answer.text)
        .bind(logprobs_json(answer))
        .execute(connection)
        .await?;
    }
    Ok(())
}

/// Gives a job that has just ended without an answer the one that was escalated, if there is one;
/// the reason stays beside it. Returns the job as it is now.
pub(super) async fn fall_back(
    connection: &mut SqliteConnection,
    row: Row,
) -> Result<Row, BackendError> {
    if !row.may_fall_back() {
        return Ok(row);
    }
    let done = sqlx::query(
        "update jobs
            set state = 'succeeded', source = 'computed', tier = k.tier, model = k.model,
                revision = k.revision, finish_reason = k.finish_reason, mean_logprob = k.mean_logprob,
                prompt_tokens = k.prompt_tokens, prompt_tokens_computed = k.prompt_tokens_computed,
                completion_tokens = k.completion_tokens,
                escalated_prompt_tokens = escalated_prompt_tokens - k.prompt_tokens,
                escalated_prompt_tokens_computed =
                    escalated_prompt_tokens_computed - k.prompt_tokens_computed,
                escalated_completion_tokens = escalated_completion_tokens - k.completion_tokens
           from (select a.* from attempts a
                   join attempt_answers t on t.job_id = a.job_id and t.attempt = a.attempt
                  where a.job_id = ?1 and a.outcome = 'escalated' order by a.attempt desc limit 1) k
          where jobs.id = ?1",
    )
    .bind(row.id)
    .execute(&mut *connection)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(row);
    }
    sqlx::query(
        "insert into answers (job_id, text, logprobs)
         select t.job_id, t.text, t.logprobs
           from attempts a join attempt_answers t on t.job_id = a.job_id and t.attempt = a.attempt
          where a.job_id = ?1 and a.outcome = 'escalated' order by a.attempt desc limit 1",
    )
    .bind(row.id)
    .execute(&mut *connection)
    .await?;
    Ok(find_row(connection, row.id).await?.unwrap_or(row))
}
