//! Reading request bodies; errors never quote the body.

use std::time::Duration;

use axum::{body::Body, http::StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use super::error::ApiError;
use crate::job::Reason;

/// Largest JSON body of [`read_json`] in bytes: a thousand ids, or the longest comment, escaped.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Longest time to receive a body, so that a slow client cannot hold a request open.
const BODY_WAIT: Duration = Duration::from_secs(30);

/// Reads a whole body.
pub(super) async fn read_bytes(body: Body, bytes_max: usize) -> Result<Vec<u8>, ApiError> {
    match timeout(BODY_WAIT, axum::body::to_bytes(body, bytes_max)).await {
        Ok(Ok(bytes)) => Ok(bytes.to_vec()),
        Ok(Err(_)) => Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("the body is larger than {bytes_max} bytes or could not be read"),
        )),
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "body_too_slow",
            format!("the body did not arrive within {} s", BODY_WAIT.as_secs()),
        )),
    }
}

/// Reads a small JSON body; `expected` describes it in the error message.
pub(super) async fn read_json<T: DeserializeOwned>(
    body: Body,
    expected: &str,
) -> Result<T, ApiError> {
    let bytes = read_bytes(body, BODY_BYTES_MAX).await?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let message = format!("the body is not valid JSON at line {line} column {column}");
        ApiError::invalid(Reason::new("invalid_json", message))
    })?;
    // serde's message might quote the body.
    T::deserialize(value).map_err(|_| {
        ApiError::invalid(Reason::new("invalid_value", format!("expected {expected}")))
    })
}
