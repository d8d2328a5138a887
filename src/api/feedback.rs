//! `POST /v1/jobs/{id}/feedback`: how good an answer was.

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
    http::StatusCode,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    access::Caller,
    error::ApiError,
    read::read_json,
    server::{Api, job_not_found},
};
use crate::{
    job::{JobId, JobState, Tenant},
    store::{Feedback, Scope},
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    score: f64,
    #[serde(default)]
    source: Option<String>,
    #[serde(default)]
    comment: Option<String>,
    #[serde(default)]
    tenant: Option<Tenant>,
}

/// Keeps a word about a job's answer. The same source's later word takes the place of its earlier
/// one, so a repeated request changes nothing. A job of another tenant is not there.
pub(super) async fn give_feedback(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    caller.needs(Scope::Submit)?;
    let read: Said = read_json(
        body,
        "an object with score, a number from 0 to 1, and optionally source, comment and tenant, strings",
    )
    .await?;
    let job: JobId = id.parse().map_err(|_| job_not_found(&id))?;
    let tenant = caller.tenant(read.tenant)?;
    let word = Feedback {
        job,
        source: read.source.unwrap_or_else(|| "api".to_owned()),
        score: read.score,
        comment: read.comment,
    };
    word.check().map_err(ApiError::invalid)?;
    let record = api.store().records(&[job]).await?.pop();
    let record = record
        .filter(|record| record.tenant == tenant)
        .ok_or_else(|| job_not_found(&id))?;
    if record.state != JobState::Succeeded {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "no_answer",
            format!("the job is {}; only answers can be judged", record.state),
        ));
    }
    let kept = api
        .store()
        .record_feedback(&tenant, std::slice::from_ref(&word))
        .await?;
    if kept != [true] {
        return Err(job_not_found(&id));
    }
    Ok(Json(json!({
        "object": "feedback",
        "job_id": word.job,
        "source": word.source,
        "score": word.score,
        "comment": word.comment,
    })))
}
