//! `POST /v1/jobs/{id}/cancel` and `POST /v1/jobs/cancel`: cancellation.

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
    http::StatusCode,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    broker::{Publication, publisher::publish_all},
    job::{JobId, JobRecord, JobState, Reason, Tenant},
    metrics::observe_end,
    store::{CancelFilter, Scope},
};

use super::{
    access::Caller,
    error::ApiError,
    job_view::{job_not_found, job_object},
    operations::Cancellation,
    read::read_json,
    state::Api,
};

/// Most ids in one request.
const IDS_MAX: usize = 1_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CancelRequest {
    #[serde(default)]
    ids: Vec<JobId>,
    #[serde(default)]
    batch: Option<String>,
    #[serde(default)]
    tenant: Option<Tenant>,
}

/// Cancels one job. Idempotent.
pub(super) async fn cancel_job(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    caller.needs(Scope::Submit)?;
    let job: JobId = id.parse().map_err(|_| job_not_found(&id))?;
    let tenant = caller.rows_of(None)?;
    let filter = CancelFilter::Jobs(tenant, vec![job]);
    if let Some(record) = api.cancel(&filter).await?.pop() {
        return Ok(Json(job_object(&record, &[])));
    }
    let record = api.store.records(&[job]).await?.pop();
    let record = record
        .filter(|record| caller.sees(record))
        .ok_or_else(|| job_not_found(&id))?;
    if record.state != JobState::Cancelled {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "job_ended",
            format!("the job has already ended: {}", record.state),
        ));
    }
    Ok(Json(job_object(&record, &[])))
}

/// Cancels several jobs, named by their ids or their batch.
pub(super) async fn cancel_jobs(
    State(api): State<Api>,
    caller: Caller,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    caller.needs(Scope::Submit)?;
    let request: CancelRequest = read_json(
        body,
        "an object with ids, a list of up to 1000 jobs, or batch, a name; and optionally tenant",
    )
    .await?;
    let tenant = caller.rows_of(request.tenant)?;
    let filter = match (request.batch, request.ids) {
        (Some(batch), ids) if ids.is_empty() => CancelFilter::Batch(tenant, batch),
        (None, ids) if (1..=IDS_MAX).contains(&ids.len()) => CancelFilter::Jobs(tenant, ids),
        _ => {
            return Err(ApiError::invalid(Reason::new(
                "invalid_value",
                "name either ids, up to 1000 jobs, or a batch",
            )));
        }
    };
    let cancelled = api.cancel(&filter).await?;
    Ok(Json(json!({
        "object": "list",
        "cancelled": cancelled.len(),
        "data": cancelled.iter().map(|record| record.id).collect::<Vec<_>>(),
    })))
}

impl Api {
    /// Cancels jobs and sends their replies.
    async fn cancel(&self, filter: &CancelFilter) -> Result<Vec<JobRecord>, ApiError> {
        let mut all = Vec::new();
        let mut cancellation = Cancellation::new(&self.store, filter);
        while let Some(cancelled) = cancellation.next().await? {
            cancelled.iter().for_each(observe_end);
            let replies = cancelled.iter().filter_map(Publication::reply).collect();
            publish_all(&self.broker, replies, &self.closing).await;
            all.extend(cancelled);
        }
        Ok(all)
    }
}
