//! The routes: submit and wait, submit and go, look a job up.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::Body,
    extract::{MatchedPath, Path, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use chrono::Utc;
use metrics::{counter, histogram};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    broker::{Broker, Publication, wire::KEY_BYTES_MAX},
    config::ApiConfig,
    job::{
        ChatRequest, ContextSavings, Job, JobHead, JobId, JobRecord, JobState, Priority, Reason,
        RequestLimits, Submission, Tenant,
    },
    metrics::{HTTP_REQUESTS, HTTP_SECONDS},
    shutdown::Shutdown,
    store::{Admission, AdmissionDecision, Admitted, AttemptRecord, Scope, Store},
};

use super::{
    access::{Access, Caller},
    admin,
    answers::{Answers, TooManyWaiting},
    cancel::{cancel_job, cancel_jobs},
    error::ApiError,
    feedback::give_feedback,
    read::read_bytes,
    tls::{self, TlsListener},
};

/// Header that carries the producer's idempotency key.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Header of responses that names the job.
const JOB_ID: &str = "x-promptyard-job-id";

/// Why the interface could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be had.
    #[error("cannot listen on {address}: {message}; choose another api.listen")]
    Address {
        /// The address.
        address: String,
        /// What went wrong.
        message: String,
    },
    /// The certificate or its key cannot be used.
    #[error("cannot speak TLS: {0}")]
    Tls(String),
}

/// The HTTP interface.
#[derive(Clone, Debug)]
pub struct Api {
    broker: Broker,
    store: Store,
    config: ApiConfig,
    limits: RequestLimits,
    answers: Answers,
    access: Access,
    /// What open requests get to finish once the server is told to stop.
    drain: Duration,
    /// Requested when that time is over.
    closing: Shutdown,
}

impl Api {
    /// An interface over a broker and a ledger; once told to stop, it gives requests that wait for
    /// an answer `drain` to get it.
    pub fn new(
        (broker, store): (Broker, Store),
        config: ApiConfig,
        limits: RequestLimits,
        drain: Duration,
    ) -> Self {
        let answers = Answers::new(config.waiting_max);
        Self {
            access: Access::new(config.keys),
            drain,
            closing: Shutdown::new(),
            broker,
            store,
            config,
            limits,
            answers,
        }
    }

    /// Listens until told to stop, then lets open requests finish for as long as it may drain.
    /// The address comes back at once; the server runs in a task of its own.
    ///
    /// # Errors
    /// When the address cannot be listened on, or the certificate cannot be used.
    pub async fn serve(
        self,
        shutdown: Shutdown,
    ) -> Result<(SocketAddr, tokio::task::JoinHandle<()>), ServeError> {
        let error = |error: std::io::Error| ServeError::Address {
            address: self.config.listen.clone(),
            message: error.to_string(),
        };
        let listener = TcpListener::bind(&self.config.listen)
            .await
            .map_err(error)?;
        let address = listener.local_addr().map_err(error)?;
        let tls = self.tls()?;
        if !self.config.keys && !address.ip().is_loopback() {
            tracing::warn!(%address, "the HTTP interface is open to whoever reaches it; see api.keys");
        }
        // Open requests still need their answers while the server drains.
        let looking = Shutdown::new();
        tokio::spawn(
            self.answers
                .clone()
                .run(self.store.clone(), looking.clone()),
        );
        let (drain, closing) = (self.drain, self.closing.clone());
        let routes = self.routes();
        let task = tokio::spawn(async move {
            let stop = async move {
                shutdown.requested().await;
                tokio::spawn(async move {
                    tokio::time::sleep(drain).await;
                    closing.request();
                });
            };
            let served = match tls {
                None => {
                    let server = axum::serve(listener, routes);
                    server.with_graceful_shutdown(stop).await
                }
                Some(config) => match TlsListener::over(listener, config) {
                    Ok(listener) => {
                        let server = axum::serve(listener, routes);
                        server.with_graceful_shutdown(stop).await
                    }
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = served {
                tracing::error!(%error, "the HTTP server ended");
            }
            looking.request();
        });
        Ok((address, task))
    }

    /// What to speak TLS with, if that is configured.
    fn tls(&self) -> Result<Option<Arc<rustls::ServerConfig>>, ServeError> {
        let read = match (&self.config.tls_cert, &self.config.tls_key) {
            (None, None) => return Ok(None),
            (Some(certificate), Some(key)) => tls::read(certificate, key),
            _ => Err("api.tls_cert and api.tls_key go together".to_owned()),
        };
        read.map(Some).map_err(ServeError::Tls)
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    pub(super) fn broker(&self) -> &Broker {
        &self.broker
    }

    pub(super) fn access(&self) -> &Access {
        &self.access
    }

    pub(super) fn closing(&self) -> &Shutdown {
        &self.closing
    }

    /// The routes, for tests and for embedding.
    pub fn routes(self) -> Router {
        Router::new()
            .route("/v1/chat/completions", post(complete_chat))
            .route("/v1/jobs", post(submit_job))
            .route("/v1/jobs/cancel", post(cancel_jobs))
            .route("/v1/jobs/{id}", get(show_job))
            .route("/v1/jobs/{id}/cancel", post(cancel_job))
            .route("/v1/jobs/{id}/feedback", post(give_feedback))
            .route("/v1/dead", get(admin::list_dead))
            .route("/v1/dead/redrive", post(admin::redrive_dead))
            .route("/v1/dead/discard", post(admin::discard_dead))
            .route("/v1/tenants", get(admin::list_tenants))
            .route(
                "/v1/tenants/{name}",
                put(admin::set_tenant).delete(admin::forget_tenant),
            )
            .fallback(|| async {
                ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is no such page")
            })
            .method_not_allowed_fallback(|| async {
                ApiError::new(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "method_not_allowed",
                    "the page does not take this method",
                )
            })
            .layer(middleware::from_fn(measure))
            .with_state(self)
    }

    /// Writes a job as queued, then publishes it. A job whose key is known is only published
    /// again while the router has not seen it.
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
        let outcome = self.broker.publish(vec![publication]).await.pop();
        let Some(Err(error)) = outcome else {
            return Ok(record);
        };
        if head.key.is_none() {
            // Nobody can submit this job again, so it must not stay open. With a key its producer
            // can: the row waits for that.
            let reason = Reason::new("not_queued", format!("the job was not accepted: {error}"));
            self.store
                .end(&[(head, JobState::Rejected, reason)])
                .await?;
        }
        Err(error.into())
    }

    async fn enqueue(&self, head: &JobHead, request: &ChatRequest) -> Result<JobRecord, ApiError> {
        let canonical = serde_json::to_vec(request).expect("a request has only text keys");
        let admission = Admission {
            head: head.clone(),
            digest: *blake3::hash(&canonical).as_bytes(),
            request: Some(request.clone()),
            decision: AdmissionDecision::Queue,
        };
        match self.store.admit(&[admission], Duration::ZERO).await?.pop() {
            Some(Admitted::Known(record) | Admitted::Ended(record)) => Ok(*record),
            Some(Admitted::KeyReused { owner }) => Err(ApiError::new(
                StatusCode::CONFLICT,
                "idempotency_key_reused",
                format!("the idempotency key belongs to job {owner}, which asked something else"),
            )),
            _ => Ok(queued_record(head)),
        }
    }
}

async fn complete_chat(
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

/// Waits for a job's end within the configured time.
async fn wait(api: &Api, record: JobRecord) -> Result<JobRecord, ApiError> {
    if record.state.is_terminal() {
        return Ok(record);
    }
    let receiver = api.answers.of(record.id).map_err(|TooManyWaiting| {
        ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_waiting",
            format!(
                "too many requests wait for answers; job {} goes on: look it up under /v1/jobs",
                record.id
            ),
        )
    })?;
    let limit = Duration::from_secs(api.config.wait_s);
    let (status, why) = tokio::select! {
        Ok(record) = receiver => return Ok(record),
        () = api.closing.requested() => (StatusCode::SERVICE_UNAVAILABLE, "the server stops"),
        () = tokio::time::sleep(limit) => (StatusCode::GATEWAY_TIMEOUT, "no answer yet"),
    };
    Err(ApiError::new(
        status,
        "answer_pending",
        format!(
            "{why}; job {} goes on: look it up under /v1/jobs",
            record.id
        ),
    ))
}

async fn submit_job(
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

async fn show_job(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    caller.needs(Scope::Read)?;
    let job: JobId = id.parse().map_err(|_| job_not_found(&id))?;
    let record = api.store.records(&[job]).await?.pop();
    // A job of another tenant is not there.
    let record = record
        .filter(|record| caller.sees(record))
        .ok_or_else(|| job_not_found(&id))?;
    let attempts = api.store.attempts(job).await?;
    Ok(Json(job_object(&record, &attempts)))
}

pub(super) fn job_not_found(id: &str) -> ApiError {
    let shown: String = id.chars().take(64).collect();
    ApiError::new(
        StatusCode::NOT_FOUND,
        "job_not_found",
        format!("there is no job {shown:?}"),
    )
}

/// The object of `/v1/jobs`: promptyard's own view of a job, with its answer as OpenAI shapes it.
pub(super) fn job_object(record: &JobRecord, attempts: &[AttemptRecord]) -> Value {
    let mut object = record.to_extension();
    object["object"] = json!("job");
    object["id"] = json!(record.id);
    object["custom_id"] = json!(record.custom_id);
    object["batch"] = json!(record.batch);
    object["submitted_at"] = json!(record.submitted_at);
    object["finished_at"] = json!(record.finished_at);
    object["response"] = json!(record.to_chat_completion());
    object["error"] = json!(record.to_error());
    object["history"] = attempts.iter().map(AttemptRecord::to_json).collect();
    object
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
    let id = JobId::now();
    let submitted_at = id.created_at().unwrap_or_else(Utc::now);
    let schedule = submission.schedule;
    JobHead {
        id,
        tenant,
        key,
        custom_id: submission.custom_id.clone(),
        batch: None,
        deadline: schedule.deadline(submitted_at),
        not_before: schedule.not_before,
        attempts_max: schedule.attempts_max,
        reply_to: None,
        priority: Priority::Normal,
        redrive_of: None,
        submitted_at,
    }
}

/// The record of a job that was written as queued a moment ago.
fn queued_record(head: &JobHead) -> JobRecord {
    JobRecord {
        id: head.id,
        tenant: head.tenant.clone(),
        key: head.key.clone(),
        custom_id: head.custom_id.clone(),
        batch: head.batch.clone(),
        state: JobState::Queued,
        tier: None,
        score: None,
        answer: None,
        source: None,
        answered_by: None,
        cosine: None,
        saved: ContextSavings::default(),
        reason: None,
        attempts: 0,
        confidence: None,
        escalated: None,
        reply_to: None,
        submitted_at: head.submitted_at,
        started_at: None,
        finished_at: None,
    }
}

/// Counts and times every request by its route.
async fn measure(request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unknown".to_owned(), |path| path.as_str().to_owned());
    let response = next.run(request).await;
    let status = response.status().as_u16().to_string();
    counter!(HTTP_REQUESTS, "route" => route.clone(), "status" => status).increment(1);
    histogram!(HTTP_SECONDS, "route" => route).record(begun.elapsed().as_secs_f64());
    response
}
