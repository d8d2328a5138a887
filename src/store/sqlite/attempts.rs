//! What attempts leave behind: their figures, and the answers that were escalated.

use sqlx::SqliteConnection;

use super::{
    find_row,
    single::{self, insert},
};
use crate::store::{Settlement, effect::Effect, error::BackendError, records, row::Row};

/// Closes an attempt with its outcome, and keeps an answer that its job does not get.
pub(super) async fn write(
    connection: &mut SqliteConnection,
    settlement: &Settlement,
    effect: &Effect<'_>,
) -> Result<(), BackendError> {
    let outcome = records::attempt_outcome(settlement, effect);
    if single::execute(connection, outcome, records::CLOSE_ATTEMPT).await? == 0 {
        return Ok(());
    }
    let kept = records::attempt_answer(settlement, effect);
    insert(connection, "attempt_answers", kept, "").await
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
