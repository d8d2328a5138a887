//! Admissions, one after another, so that later ones see earlier ones.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::{SqliteStore, cache, deferral, find_row, learning, semantic};
use crate::{
    job::{Answer, JobHead, JobId},
    store::{
        Admission, AdmissionDecision, Admitted,
        error::BackendError,
        row::logprobs_json,
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

/// Writes a new job, or moves a queued one on its course.
pub(super) async fn write(
    connection: &mut SqliteConnection,
    job: &NewJob<'_>,
    now: DateTime<Utc>,
) -> Result<(), BackendError> {
    let head = job.head;
    let route = job.route();
    let decision = route.map(|route| &route.decision);
    let reason = job.reason();
    let reply = head.reply_to.as_ref();
    let answer = job.hit().map(|hit| &hit.answer);
    sqlx::query(
        "insert into jobs (
             id, tenant, key, custom_id, batch, state, model_asked, tier, score, threshold, scorer, features,
             cache_key, waits_for, source, answered_by, prompt_tokens, prompt_tokens_computed,
             completion_tokens, finish_reason, model, revision, mean_logprob, reason_code, reason_message,
             digest, redrive_of, reply_to, correlation_id, priority, deadline, submitted_at, routed_at,
             finished_at, tags, features_version, threshold_base, target, target_scope, route_reason,
             propensity, shadow_of, cosine, not_before, attempts_max)
         values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?,
                 ?, ?, ?, ?, ?, ?, ?)
             on conflict (id) do update
            set state = excluded.state, tier = excluded.tier, score = excluded.score,
                threshold = excluded.threshold, scorer = excluded.scorer, features = excluded.features,
                cache_key = excluded.cache_key, waits_for = excluded.waits_for, source = excluded.source,
                answered_by = excluded.answered_by, prompt_tokens = excluded.prompt_tokens,
                prompt_tokens_computed = excluded.prompt_tokens_computed,
                completion_tokens = excluded.completion_tokens, finish_reason = excluded.finish_reason,
                model = excluded.model, revision = excluded.revision, mean_logprob = excluded.mean_logprob,
                reason_code = excluded.reason_code, reason_message = excluded.reason_message,
                routed_at = excluded.routed_at, finished_at = excluded.finished_at,
                features_version = excluded.features_version, threshold_base = excluded.threshold_base,
                target = excluded.target, target_scope = excluded.target_scope,
                route_reason = excluded.route_reason, propensity = excluded.propensity,
                cosine = excluded.cosine
          where jobs.state = 'queued'",
    )
    .bind(head.id.0)
    .bind(head.tenant.as_str())
    .bind(&head.key)
    .bind(&head.custom_id)
    .bind(&head.batch)
    .bind(job.state().as_str())
    .bind(job.request.map(|request| request.model.as_str()))
    .bind(route.map(|route| route.tier.as_str()))
    .bind(decision.map(|decision| decision.score))
    .bind(decision.map(|decision| decision.threshold))
    .bind(decision.map(|decision| decision.scorer.as_str()))
    .bind(decision.map(|decision| decision.features.to_string()))
    .bind(route.and_then(|route| route.cache_key.map(|key| key.0.to_vec())))
    .bind(job.waits_for().map(|key| key.0.to_vec()))
    .bind(job.source().map(|source| source.as_str()))
    .bind(job.hit().map(|hit| hit.leader.0))
    .bind(answer.map(|answer| answer.usage.prompt_tokens))
    .bind(answer.map(|answer| answer.usage.prompt_tokens_computed))
    .bind(answer.map(|answer| answer.usage.completion_tokens))
    .bind(answer.map(|answer| answer.finish_reason.as_str()))
    .bind(answer.map(|answer| answer.model.as_str()))
    .bind(answer.map(|answer| answer.revision.as_str()))
    .bind(answer.and_then(|answer| answer.mean_logprob))
    .bind(reason.map(|reason| reason.code.as_str()))
    .bind(reason.map(|reason| reason.message.as_str()))
    .bind(job.digest.map(|digest| digest.as_slice()))
    .bind(head.redrive_of.map(|id| id.0))
    .bind(reply.map(|reply| reply.queue.as_str()))
    .bind(reply.and_then(|reply| reply.correlation_id.as_deref()))
    .bind(head.priority.to_amqp())
    .bind(head.deadline)
    .bind(head.submitted_at)
    .bind(route.map(|_| now))
    .bind(job.finished_at(now))
    .bind(job.tags().map(|tags| tags.to_string()))
    .bind(decision.map(|decision| decision.features_version))
    .bind(decision.map(|decision| decision.threshold_base))
    .bind(decision.map(|decision| decision.target.as_str()))
    .bind(decision.map(|decision| decision.target_scope.as_str()))
    .bind(decision.map(|decision| decision.reason.as_str()))
    .bind(decision.map(|decision| decision.propensity))
    .bind(job.shadow_of().map(|id| id.0))
    .bind(job.hit().and_then(|hit| hit.cosine))
    .bind(head.not_before)
    .bind(head.attempts_max)
    .execute(&mut *connection)
    .await?;
    deferral::hold(connection, job, now).await?;
    learning::note_shadow(connection, job, now).await?;
    semantic::note_lookup(connection, job, now).await?;
    if let Some(request) = job.request {
        let request = serde_json::to_string(request)
            .expect("a request's fields are all representable in JSON");
        sqlx::query(
            "insert into requests (job_id, request) values (?1, ?2) on conflict do nothing",
        )
        .bind(head.id.0)
        .bind(request)
        .execute(&mut *connection)
        .await?;
    }
    if let Some(answer) = answer {
        insert_text(connection, head.id.0, answer).await?;
    }
    Ok(())
}

/// Keeps the text of an answer, and its log-probabilities where they were asked for.
pub(super) async fn insert_text(
    connection: &mut SqliteConnection,
    id: Uuid,
    answer: &Answer,
) -> Result<(), BackendError> {
    sqlx::query("insert into answers (job_id, text, logprobs) values (?1, ?2, ?3)")
        .bind(id)
        .bind(&answer.text)
        .bind(logprobs_json(answer))
        .execute(connection)
        .await?;
    Ok(())
}
