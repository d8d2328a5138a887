//! What attempts leave behind: their figures, and the answers that were escalated.

use std::collections::{HashMap, HashSet};

use sqlx::PgConnection;
use uuid::Uuid;

use super::{batch, text::decode_row};
use crate::store::{
    Settlement,
    effect::Effect,
    error::BackendError,
    records,
    row::{Row, job_rows},
};

/// Closes attempts with their outcomes, and keeps those answers that their jobs do not get.
pub(super) async fn write(
    connection: &mut PgConnection,
    committed: &[(&Settlement, Effect<'_>)],
) -> Result<(), BackendError> {
    let rows: Vec<_> = committed
        .iter()
        .map(|(settlement, effect)| records::attempt_outcome(settlement, effect))
        .collect();
    let statement = format!("{} returning a.job_id, a.attempt", records::CLOSE_ATTEMPT);
    let written: Vec<(Uuid, i32)> = batch::fetch(connection, &rows, &statement).await?;
    let written: HashSet<(Uuid, Option<u32>)> = written
        .into_iter()
        .map(|(id, attempt)| (id, u32::try_from(attempt).ok()))
        .collect();
    let kept = committed
        .iter()
        .filter(|(settlement, _)| written.contains(&(settlement.job.0, Some(settlement.attempt))))
        .filter_map(|(settlement, effect)| records::attempt_answer(settlement, effect));
    batch::insert(connection, "attempt_answers", kept, "").await
}

/// Gives jobs that have just ended without an answer those that were escalated, where there are
/// any; the reasons stay beside them. Returns the jobs that were answered so, as they are now.
pub(super) async fn fall_back(
    connection: &mut PgConnection,
    ended: impl Iterator<Item = &Row>,
) -> Result<HashMap<Uuid, Row>, BackendError> {
    let ids: Vec<Uuid> = ended
        .filter(|row| row.may_fall_back())
        .map(|row| row.id)
        .collect();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = sqlx::query_as::<_, Row>(job_rows("with kept as (
             select distinct on (a.job_id) a.job_id, a.tier, a.model, a.revision, a.finish_reason,
                    a.mean_logprob, a.prompt_tokens, a.prompt_tokens_computed, a.completion_tokens, t.text,
                    t.logprobs
               from attempts a join attempt_answers t on t.job_id = a.job_id and t.attempt = a.attempt
              where a.job_id = any($1) and a.outcome = 'escalated'
              order by a.job_id, a.attempt desc),
         given as (insert into answers (job_id, text, logprobs) select job_id, text, logprobs from kept)
         update jobs j
            set state = 'succeeded', source = 'computed', tier = k.tier, model = k.model,
                revision = k.revision, finish_reason = k.finish_reason, mean_logprob = k.mean_logprob,
                prompt_tokens = k.prompt_tokens, prompt_tokens_computed = k.prompt_tokens_computed,
                completion_tokens = k.completion_tokens,
                escalated_prompt_tokens = j.escalated_prompt_tokens - k.prompt_tokens,
                escalated_prompt_tokens_computed =
                    j.escalated_prompt_tokens_computed - k.prompt_tokens_computed,
                escalated_completion_tokens = j.escalated_completion_tokens - k.completion_tokens
           from kept k
          where j.id = k.job_id
         returning", "k.text, k.logprobs"))
.bind(&ids)
    .fetch_all(connection)
    .await?;
    let rows = rows.into_iter().map(decode_row);
    Ok(rows.map(|row| (row.id, row)).collect())
}
