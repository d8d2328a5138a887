//! Errors in OpenAI's shape.

use std::time::Duration;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::{broker::PublishError, job::Reason, store::StoreError};

/// Default of the Retry-After header, in seconds.
const RETRY_AFTER_S: u64 = 1;

/// An error response.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ApiError {
    status: StatusCode,
    reason: Reason,
    param: Option<String>,
    retry_after_s: u64,
}

impl ApiError {
    /// Makes an error with a status and a code.
    pub(super) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            reason: Reason::new(code, message),
            param: None,
            retry_after_s: RETRY_AFTER_S,
        }
    }

    /// Sets the Retry-After header, rounded up to whole seconds.
    #[must_use]
    pub(super) fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after_s = wait.as_secs_f64().ceil().max(1.0) as u64;
        self
    }

    /// Makes the error of an invalid request.
    pub(super) fn invalid(reason: Reason) -> Self {
        let status = match reason.code.as_str() {
            "body_too_large" => StatusCode::PAYLOAD_TOO_LARGE,
            "model_not_found" => StatusCode::NOT_FOUND,
            _ => StatusCode::BAD_REQUEST,
        };
        // The message of an invalid field begins with the field's name.
        let param = reason
            .message
            .split_once(": ")
            .map(|(field, _)| field)
            .filter(|field| {
                field
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"_.[]".contains(&b))
            })
            .map(ToOwned::to_owned);
        Self {
            status,
            reason,
            param,
            retry_after_s: RETRY_AFTER_S,
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the job database failed a request; answering 503");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "ledger_unavailable",
            "the job database is not available; try again",
        )
    }
}

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Refused => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "queue_full",
                "the queue is full; try again later",
            ),
            error => {
                tracing::error!(%error, "the broker failed a request; answering 503");
                Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "broker_unavailable",
                    "the broker is not available; try again",
                )
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        };
        let body = json!({"error": {
            "message": self.reason.message,
            "type": kind,
            "param": self.param,
            "code": self.reason.code,
        }});
        let mut response = (self.status, Json(body)).into_response();
        if matches!(
            self.status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        ) {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(self.retry_after_s));
        }
        response
    }
}
