//! A job as `/v1/jobs` shows it.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::{job::JobRecord, store::AttemptRecord};

use super::error::ApiError;

/// The object of `/v1/jobs`: promptyard's own fields, and the answer in OpenAI's shape.
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

/// The error for a job that does not exist or belongs to another tenant.
pub(super) fn job_not_found(id: &str) -> ApiError {
    let shown: String = id.chars().take(64).collect();
    ApiError::new(
        StatusCode::NOT_FOUND,
        "job_not_found",
        format!("there is no job {shown:?}"),
    )
}
