//! Small JSON bodies of ours; errors never quote what was sent.

use std::time::Duration;

use axum::{body::Body, http::StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use super::error::ApiError;
use crate::job::Reason;

/// Largest of these bodies in bytes: a thousand ids, or the longest comment, escaped.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Longest that a body may take to come in: a connection that trickles holds nothing up for longer.
const BODY_WAIT: Duration = Duration::from_secs(30);

/// Reads a body whole.
pub(super) async fn read_bytes(body: Body, bytes_max: usize) -> Result<Vec<u8>, ApiError> {
    match timeout(BODY_WAIT, axum::body::to_bytes(body, bytes_max)).await {
        Ok(Ok(bytes)) => Ok(bytes.to_vec()),
        Ok(Err(_)) => Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("the body could not be read within {bytes_max} bytes"),
        )),
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "body_too_slow",
            format!("the body did not come in within {} s", BODY_WAIT.as_secs()),
        )),
    }
}

/// Reads a body of ours; `expected` tells what it is to be.
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
    // Its own words might quote what was sent.
    T::deserialize(value).map_err(|_| {
        ApiError::invalid(Reason::new("invalid_value", format!("expected {expected}")))
    })
}
