//! `/v1/chat/completions` and `/v1/jobs`: submit and wait, submit and return, look up.

use std::time::Duration;

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::{
    broker::{Publication, wire::KEY_BYTES_MAX},
    job::{ChatRequest, Job, JobHead, JobId, JobRecord, JobState, Reason, Submission, Tenant},
    store::{Admission, AdmissionDecision, Admitted, Scope},
};

use super::{
    access::Caller,
    answers::TooManyWaiting,
    error::ApiError,
    job_view::{job_not_found, job_object},
    read::read_bytes,
    state::Api,
};

/// Header that carries the producer's idempotency key.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Response header that names the job.
const JOB_ID: &str = "x-promptyard-job-id";

impl Api {
    /// Writes a job as queued, then publishes it. A job whose idempotency key is known is published
    /// again only while it is still queued.
    async fn submit(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<JobRecord, ApiError> {
        caller.needs(Scope::Submit)?;
        let key = read_key(headers)?;
        let mut submission = Submission::parse(body, &self.limits)
            .map_err(|rejection| ApiError::invalid(rejection.reason))?;
        let tenant = caller.tenant(submission.tenant.take())?;
        self.access.count(&tenant, &self.store).await?;
        let head = head_of(tenant, key, &submission);
        let record = self.enqueue(&head, &submission.request).await?;
        if record.state != JobState::Queued {
            return Ok(record);
        }
        let job = Job {
            head: JobHead {
                id: record.id,
                ..head.clone()
            },
            request: submission.request,
        };
        let publication = Publication::to_router(&job);
        let outcome = self.broker.publish(&[publication]).await.pop();
        let Some(Err(error)) = outcome else {
            return Ok(record);
        };
        if head.key.is_none() {
            // Without a key the job cannot be submitted again, so it must not stay open. With one,
            // the row stays queued until its producer retries.
            let reason = Reason::new("not_queued", format!("the job was not accepted: {error}"));
            self.store
                .end(&[(head, JobState::Rejected, reason)])
                .await?;
        }
        Err(error.into())
    }

    async fn enqueue(&self, head: &JobHead, request: &ChatRequest) -> Result<JobRecord, ApiError> {
        let admission = Admission::new(head.clone(), request.clone(), AdmissionDecision::Queue);
        match self.store.admit(&[admission], Duration::ZERO).await?.pop() {
            Some(Admitted::Known(record) | Admitted::Ended(record)) => Ok(*record),
            Some(Admitted::KeyReused { owner }) => Err(ApiError::new(
                StatusCode::CONFLICT,
                "idempotency_key_reused",
                format!("the idempotency key belongs to job {owner}, whose request differs"),
            )),
            _ => Ok(JobRecord::new(head, JobState::Queued)),
        }
    }
}

pub(super) async fn complete_chat(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let answered = async {
        let body = read_bytes(body, api.limits.body_bytes_max).await?;
        let record = api.submit(&caller, &headers, &body).await?;
        let record = wait(&api, record).await?;
        let job = record.id;
        let response = match record.to_chat_completion() {
            Some(completion) => Json(completion).into_response(),
            None => {
                let status = StatusCode::from_u16(record.status_code())
                    .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                (status, Json(json!({"error": record.to_error()}))).into_response()
            }
        };
        Ok::<_, ApiError>(with_job_id(response, job))
    };
    answered.await.unwrap_or_else(IntoResponse::into_response)
}

/// Waits until a job has ended, for at most the configured time.
async fn wait(api: &Api, record: JobRecord) -> Result<JobRecord, ApiError> {
    if record.state.is_terminal() {
        return Ok(record);
    }
    let receiver = api.answers.of(record.id).map_err(|TooManyWaiting| {
        ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_waiting",
            format!(
                "too many requests wait for answers; job {} still runs: poll /v1/jobs/{}",
                record.id, record.id
            ),
        )
    })?;
    let limit = Duration::from_secs(api.config.wait_s);
    let (status, why) = tokio::select! {
        Ok(record) = receiver => return Ok(record),
        () = api.closing.requested() => (StatusCode::SERVICE_UNAVAILABLE, "the server is stopping"),
        () = tokio::time::sleep(limit) => (StatusCode::GATEWAY_TIMEOUT, "no answer yet"),
    };
    Err(ApiError::new(
        status,
        "answer_pending",
        format!(
            "{why}; job {} still runs: poll /v1/jobs/{}",
            record.id, record.id
        ),
    ))
}

pub(super) async fn submit_job(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let submitted = async {
        let body = read_bytes(body, api.limits.body_bytes_max).await?;
        let record = api.submit(&caller, &headers, &body).await?;
        let status = if record.state.is_terminal() {
            StatusCode::OK
        } else {
            StatusCode::ACCEPTED
        };
        let response = (status, Json(job_object(&record, &[]))).into_response();
        Ok::<_, ApiError>(with_job_id(response, record.id))
    };
    submitted.await.unwrap_or_else(IntoResponse::into_response)
}

pub(super) async fn show_job(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    caller.needs(Scope::Read)?;
    let job: JobId = id.parse().map_err(|_| job_not_found(&id))?;
    let record = api.store.records(&[job]).await?.pop();
    // Jobs of other tenants are reported as missing.
    let record = record
        .filter(|record| caller.sees(record))
        .ok_or_else(|| job_not_found(&id))?;
    let attempts = api.store.attempts(job).await?;
    Ok(Json(job_object(&record, &attempts)))
}

fn with_job_id(mut response: Response, job: JobId) -> Response {
    if let Ok(value) = HeaderValue::from_str(&job.to_string()) {
        response.headers_mut().insert(JOB_ID, value);
    }
    response
}

fn read_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(key) if (1..=KEY_BYTES_MAX).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "invalid_value",
            format!("Idempotency-Key: expected 1 to {KEY_BYTES_MAX} visible ASCII characters"),
        )),
    }
}

fn head_of(tenant: Tenant, key: Option<String>, submission: &Submission) -> JobHead {
    let head = JobHead::new(tenant);
    let schedule = submission.schedule;
    JobHead {
        key,
        custom_id: submission.custom_id.clone(),
        deadline: schedule.deadline(head.submitted_at),
        not_before: schedule.not_before,
        attempts_max: schedule.attempts_max,
        ..head
    }
}
