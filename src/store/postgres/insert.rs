//! Writes new jobs with their requests, and answers.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{batch, semantic};
use crate::{
    job::Answer,
    store::{
        error::BackendError,
        records::{self, insert_into},
        rules::NewJob,
    },
};

/// Writes jobs whose ids are not known; returns the ids of those written.
pub(super) async fn insert_jobs(
    connection: &mut PgConnection,
    jobs: &[NewJob<'_>],
    now: DateTime<Utc>,
) -> Result<HashSet<Uuid>, BackendError> {
    let rows: Vec<_> = jobs.iter().map(|job| records::new_job(job, now)).collect();
    let Some(first) = rows.first() else {
        return Ok(HashSet::new());
    };
    let statement = insert_into("jobs", first, "on conflict (id) do nothing returning id");
    let inserted: Vec<(Uuid,)> = batch::fetch(connection, &rows, &statement).await?;
    let inserted: HashSet<Uuid> = inserted.into_iter().map(|(id,)| id).collect();
    insert_requests(connection, jobs, &inserted).await?;
    // Of an id that stands here twice, only the first appearance was written.
    let mut unseen = inserted.clone();
    let written: Vec<_> = jobs
        .iter()
        .filter(|job| unseen.remove(&job.head.id.0))
        .collect();
    note_written(connection, &written, now).await?;
    Ok(inserted)
}

/// Moves queued jobs, whose rows are locked, to their next state.
pub(super) async fn move_queued(
    connection: &mut PgConnection,
    jobs: &[NewJob<'_>],
    now: DateTime<Utc>,
) -> Result<(), BackendError> {
    let rows: Vec<_> = jobs.iter().map(|job| records::new_job(job, now)).collect();
    batch::execute(connection, &rows, records::MOVE_JOB).await?;
    note_written(connection, &jobs.iter().collect::<Vec<_>>(), now).await
}

/// Writes what comes with jobs: deferrals, draws, lookups, and answers of cache hits.
async fn note_written(
    connection: &mut PgConnection,
    jobs: &[&NewJob<'_>],
    now: DateTime<Utc>,
) -> Result<(), BackendError> {
    let deferred = jobs.iter().filter_map(|job| records::deferred(job, now));
    batch::insert(connection, "deferred_jobs", deferred, records::DEFER_AGAIN).await?;
    let drawn = jobs.iter().filter_map(|job| records::shadow(job, now));
    batch::insert(connection, "shadows", drawn, "on conflict do nothing").await?;
    semantic::keep_questions(connection, jobs, now).await?;
    let lookups = jobs.iter().filter_map(|job| records::lookup(job, now));
    batch::insert(
        connection,
        "semantic_lookups",
        lookups,
        "on conflict do nothing",
    )
    .await?;
    let copies: Vec<_> = jobs
        .iter()
        .filter_map(|job| records::copy(job, now))
        .collect();
    batch::execute(connection, &copies, records::NOTE_SHADOW).await?;
    batch::execute(connection, &copies, records::NOTE_RECHECK).await?;
    let hits = jobs
        .iter()
        .filter_map(|job| Some((job.head.id.0, &job.hit()?.answer)));
    insert_texts(connection, hits).await
}

/// Keeps the texts of answers, and their log-probabilities where requested.
pub(super) async fn insert_texts(
    connection: &mut PgConnection,
    answers: impl Iterator<Item = (Uuid, &Answer)>,
) -> Result<(), BackendError> {
    let rows = answers.map(|(id, answer)| records::answer_text(id, answer));
    batch::insert(connection, "answers", rows, "").await
}

async fn insert_requests(
    connection: &mut PgConnection,
    jobs: &[NewJob<'_>],
    inserted: &HashSet<Uuid>,
) -> Result<(), BackendError> {
    let (ids, requests): (Vec<Uuid>, Vec<String>) = jobs
        .iter()
        .filter(|job| inserted.contains(&job.head.id.0))
        .filter_map(|job| {
            // JSON writes U+0000 as an escape, so this text never holds one.
            let request = serde_json::to_string(job.request?)
                .expect("a request's fields are all representable in JSON");
            Some((job.head.id.0, request))
        })
        .unzip();
    if !ids.is_empty() {
        sqlx::query!(
            "insert into requests (job_id, request) select * from unnest($1::uuid[], $2::text[])
             on conflict do nothing",
            &ids,
            &requests
        )
        .execute(connection)
        .await?;
    }
    Ok(())
}
