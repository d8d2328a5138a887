//! Admissions, one after another, so that later ones see earlier ones.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::{SqliteStore, cache, deferral, find_row, semantic, single};
use crate::{
    job::{Answer, JobHead, JobId},
    store::{
        Admission, AdmissionDecision, Admitted,
        error::BackendError,
        records::{self, insert_into},
        rules::{self, Entry, Meeting, NewJob},
    },
};

impl SqliteStore {
    pub(crate) async fn admit(
        &self,
        admissions: &[Admission],
        lease: Duration,
    ) -> Result<Vec<Admitted>, BackendError> {
        let mut transaction = self.begin().await?;
        let now = self.clock.now();
        let mut outcomes = Vec::with_capacity(admissions.len());
        for admission in admissions {
            outcomes.push(admit_one(&mut transaction, admission, now, lease).await?);
        }
        transaction.commit().await?;
        Ok(outcomes)
    }
}

async fn admit_one(
    connection: &mut SqliteConnection,
    admission: &Admission,
    now: DateTime<Utc>,
    lease: Duration,
) -> Result<Admitted, BackendError> {
    let head = &admission.head;
    let owner = owner(connection, head).await?;
    let mut known = match owner {
        Some(owner) => find_row(connection, owner).await?,
        None => None,
    };
    if known.is_none() {
        known = find_row(connection, head.id.0).await?;
    }
    if let Some(row) = known {
        match rules::meet(admission, &row) {
            Meeting::Reused => {
                return Ok(Admitted::KeyReused {
                    owner: JobId(row.id),
                });
            }
            Meeting::Waits => return Ok(Admitted::Waiting),
            Meeting::Known
                if admission.decision != AdmissionDecision::Queue
                    && deferral::is_deferred(connection, &row).await? =>
            {
                return Ok(Admitted::Deferred);
            }
            Meeting::Known => return Ok(Admitted::Known(Box::new(row.into_record()?))),
            Meeting::Moves => {}
        }
    }
    let entry = match &admission.decision {
        AdmissionDecision::Route(route) => match &route.cache_key {
            Some(key) => match semantic::find(connection, route, key, now).await? {
                Some(hit) => Some(Entry::Ready(hit)),
                None => Some(cache::ask(connection, key, head, now, lease).await?),
            },
            None => None,
        },
        _ => None,
    };
    let job = NewJob::of(admission, entry.as_ref());
    own_key(connection, head).await?;
    write(connection, &job, now).await?;
    Ok(job.admitted(now))
}

/// The job that owns a head's key.
pub(super) async fn owner(
    connection: &mut SqliteConnection,
    head: &JobHead,
) -> Result<Option<Uuid>, BackendError> {
    let Some(key) = &head.key else {
        return Ok(None);
    };
    let owner = sqlx::query_scalar("select job_id from idempotency where tenant = ?1 and key = ?2")
        .bind(head.tenant.as_str())
        .bind(key)
        .fetch_optional(connection)
        .await?;
    Ok(owner)
}

/// Gives a job its key; a job that had it before is gone.
pub(super) async fn own_key(
    connection: &mut SqliteConnection,
    head: &JobHead,
) -> Result<(), BackendError> {
    let Some(key) = &head.key else { return Ok(()) };
    sqlx::query(
        "insert into idempotency (tenant, key, job_id) values (?1, ?2, ?3)
             on conflict (tenant, key) do update set job_id = excluded.job_id",
    )
    .bind(head.tenant.as_str())
    .bind(key)
    .bind(head.id.0)
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes a new job, or moves a queued one to its next state.
pub(super) async fn write(
    connection: &mut SqliteConnection,
    job: &NewJob<'_>,
    now: DateTime<Utc>,
) -> Result<(), BackendError> {
    let row = records::new_job(job, now);
    let statement = insert_into("jobs", &row, "on conflict (id) do nothing");
    if single::execute(connection, row, &statement).await? == 0 {
        single::execute(connection, records::new_job(job, now), records::MOVE_JOB).await?;
    }
    let deferred = records::deferred(job, now);
    single::insert(connection, "deferred_jobs", deferred, records::DEFER_AGAIN).await?;
    let drawn = records::shadow(job, now);
    single::insert(connection, "shadows", drawn, "on conflict do nothing").await?;
    semantic::keep_question(connection, job, now).await?;
    let lookup = records::lookup(job, now);
    single::insert(
        connection,
        "semantic_lookups",
        lookup,
        "on conflict do nothing",
    )
    .await?;
    if let Some(copy) = records::copy(job, now) {
        single::execute(connection, copy.clone(), records::NOTE_SHADOW).await?;
        single::execute(connection, copy, records::NOTE_RECHECK).await?;
    }
    if let Some(request) = job.request {
        let request = serde_json::to_string(request)
            .expect("a request's fields are all representable in JSON");
        sqlx::query(
            "insert into requests (job_id, request) values (?1, ?2) on conflict do nothing",
        )
        .bind(job.head.id.0)
        .bind(request)
        .execute(&mut *connection)
        .await?;
    }
    if let Some(hit) = job.hit() {
        insert_text(connection, job.head.id.0, &hit.answer).await?;
    }
    Ok(())
}

/// Keeps the text of an answer, and its log-probabilities where requested.
pub(super) async fn insert_text(
    connection: &mut SqliteConnection,
    id: Uuid,
    answer: &Answer,
) -> Result<(), BackendError> {
    let text = records::answer_text(id, answer);
    single::insert(connection, "answers", Some(text), "").await
}
