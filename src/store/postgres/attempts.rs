//! What attempts leave behind: their figures, and the answers that were escalated.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    insert::AnswerColumns,
    job_rows,
    settle::number,
    text::{decode_row, encode},
};
use crate::{
    job::Signals,
    store::{
        Settlement,
        effect::Effect,
        error::BackendError,
        row::{Row, logprobs_json},
    },
};

/// Writes what the attempts came to.
pub(super) async fn write(
    connection: &mut PgConnection,
    committed: &[(&Settlement, Effect<'_>)],
) -> Result<(), BackendError> {
    if committed.is_empty() {
        return Ok(());
    }
    let mut c = AnswerColumns::default();
    for (_, effect) in committed {
        c.push_option(effect.generated);
    }
    let ids: Vec<Uuid> = committed.iter().map(|(s, _)| s.job.0).collect();
    let attempts: Vec<i32> = committed.iter().map(|(s, _)| number(s.attempt)).collect();
    let outcomes: Vec<&str> = committed.iter().map(|(_, effect)| effect.outcome).collect();
    let started: Vec<_> = committed.iter().map(|(s, _)| s.started_at).collect();
    let first_token: Vec<_> = committed.iter().map(|(s, _)| s.first_token_at).collect();
    let finished: Vec<_> = committed.iter().map(|(s, _)| s.finished_at).collect();
    let codes: Vec<_> = committed
        .iter()
        .map(|(_, effect)| effect.reason.map(|reason| reason.code.as_str()))
        .collect();
    let messages: Vec<_> = committed
        .iter()
        .map(|(_, effect)| effect.reason.map(|reason| encode(&reason.message)))
        .collect();
    let confidences: Vec<_> = committed.iter().map(|(s, _)| s.confidence).collect();
    let signals: Vec<_> = committed
        .iter()
        .map(|(s, _)| s.signals.as_ref().map(Signals::to_json))
        .collect();
    let written = sqlx::query!(
        "update attempts a
            set outcome = n.outcome, started_at = n.started_at, first_token_at = n.first_token_at,
                finished_at = n.finished_at, reason_code = n.code, reason_message = n.message,
                prompt_tokens = n.prompt_tokens, prompt_tokens_computed = n.prompt_tokens_computed,
                completion_tokens = n.completion_tokens, mean_logprob = n.mean_logprob,
                finish_reason = n.finish_reason, confidence = n.confidence, signals = n.signals::jsonb
           from unnest($1::uuid[], $2::int4[], $3::text[], $4::timestamptz[], $5::timestamptz[],
                       $6::timestamptz[], $7::text[], $8::text[], $9::int4[], $10::int4[], $11::int4[],
                       $12::float4[], $13::text[], $14::float4[], $15::text[])
                as n (job_id, attempt, outcome, started_at, first_token_at, finished_at, code, message,
                      prompt_tokens, prompt_tokens_computed, completion_tokens, mean_logprob,
                      finish_reason, confidence, signals)
          where a.job_id = n.job_id and a.attempt = n.attempt and a.outcome = 'running'
         returning a.job_id, a.attempt",
        &ids,
        &attempts,
        &outcomes as &[&str],
        &started,
        &first_token as &[Option<DateTime<Utc>>],
        &finished,
        &codes as &[Option<&str>],
        &messages as &[Option<Cow<'_, str>>],
        &c.prompt_tokens as &[Option<i32>],
        &c.prompt_tokens_computed as &[Option<i32>],
        &c.completion_tokens as &[Option<i32>],
        &c.mean_logprob as &[Option<f32>],
        &c.finish_reason as &[Option<&str>],
        &confidences as &[Option<f32>],
        &signals as &[Option<String>],
    )
    .fetch_all(&mut *connection)
    .await?;
    let written: HashSet<(Uuid, i32)> = written
        .into_iter()
        .map(|row| (row.job_id, row.attempt))
        .collect();
    keep_answers(connection, committed, &written).await
}

/// Keeps the texts of answers that are not their jobs', of the attempts that were written.
async fn keep_answers(
    connection: &mut PgConnection,
    committed: &[(&Settlement, Effect<'_>)],
    written: &HashSet<(Uuid, i32)>,
) -> Result<(), BackendError> {
    let (mut ids, mut attempts, mut texts) = (Vec::new(), Vec::new(), Vec::new());
    let mut logprobs = Vec::new();
    for (settlement, effect) in committed {
        let is_written = written.contains(&(settlement.job.0, number(settlement.attempt)));
        if let Some(answer) = effect.kept().filter(|_| is_written) {
            ids.push(settlement.job.0);
            attempts.push(number(settlement.attempt));
            texts.push(encode(&answer.text));
            logprobs.push(logprobs_json(answer));
        }
    }
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "insert into attempt_answers (job_id, attempt, text, logprobs)
         select * from unnest($1::uuid[], $2::int4[], $3::text[], $4::text[])",
        &ids,
        &attempts,
        &texts as &[Cow<'_, str>],
        &logprobs as &[Option<String>]
    )
    .execute(connection)
    .await?;
    Ok(())
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
    let rows = job_rows!(
        "with kept as (
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
         returning",
        r#"k.text as "text?", k.logprobs"#,
        &ids
    )
    .fetch_all(connection)
    .await?;
    let rows = rows.into_iter().map(decode_row);
    Ok(rows.map(|row| (row.id, row)).collect())
}
