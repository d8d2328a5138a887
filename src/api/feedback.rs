//! `POST /v1/jobs/{id}/feedback`: ratings of answers.

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
    http::StatusCode,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    access::Caller, error::ApiError, job_view::job_not_found, read::read_json, state::Api,
};
use crate::{
    job::{JobId, JobState, Tenant},
    store::{Feedback, Scope},
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FeedbackRequest {
    score: f64,
    #[serde(default)]
    source: Option<String>,
    #[serde(default)]
    comment: Option<String>,
    #[serde(default)]
    tenant: Option<Tenant>,
}

/// Stores feedback on a job's answer, in place of earlier feedback by the same source. Jobs of other
/// tenants are reported as missing.
pub(super) async fn give_feedback(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    caller.needs(Scope::Submit)?;
    let request: FeedbackRequest = read_json(
        body,
        "an object with score, a number from 0 to 1, and optionally source, comment and tenant, strings",
    )
    .await?;
    let job: JobId = id.parse().map_err(|_| job_not_found(&id))?;
    let tenant = caller.tenant(request.tenant)?;
    let feedback = Feedback {
        job,
        source: request.source.unwrap_or_else(|| "api".to_owned()),
        score: request.score,
        comment: request.comment,
    };
    feedback.check().map_err(ApiError::invalid)?;
    let record = api.store.records(&[job]).await?.pop();
    let record = record
        .filter(|record| record.tenant == tenant)
        .ok_or_else(|| job_not_found(&id))?;
    if record.state != JobState::Succeeded {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "no_answer",
            format!(
                "the job is {}; only answered jobs take feedback",
                record.state
            ),
        ));
    }
    let kept = api
        .store
        .record_feedback(&tenant, std::slice::from_ref(&feedback))
        .await?;
    if kept != [true] {
        return Err(job_not_found(&id));
    }
    Ok(Json(json!({
        "object": "feedback",
        "job_id": feedback.job,
        "source": feedback.source,
        "score": feedback.score,
        "comment": feedback.comment,
    })))
}
