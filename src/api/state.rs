//! What all handlers share.

use std::time::Duration;

use axum::{extract::FromRequestParts, http::request::Parts};

use crate::{
    broker::Broker, config::ApiConfig, job::RequestLimits, shutdown::Shutdown, store::Store,
};

use super::{
    access::{Access, Caller},
    answers::Answers,
    error::ApiError,
};

/// The HTTP interface over a broker and a job database.
#[derive(Clone, Debug)]
pub struct Api {
    pub(super) broker: Broker,
    pub(super) store: Store,
    pub(super) config: ApiConfig,
    pub(super) limits: RequestLimits,
    pub(super) answers: Answers,
    pub(super) access: Access,
    /// How long requests that wait for an answer may take after the server is told to stop.
    pub(super) drain: Duration,
    /// Requested when that time is over.
    pub(super) closing: Shutdown,
}

impl Api {
    /// Makes an interface that gives waiting requests up to `drain` once it is told to stop.
    pub fn new(
        (broker, store): (Broker, Store),
        config: ApiConfig,
        limits: RequestLimits,
        drain: Duration,
    ) -> Self {
        Self {
            answers: Answers::new(config.waiting_max),
            access: Access::new(config.keys),
            drain,
            closing: Shutdown::new(),
            broker,
            store,
            config,
            limits,
        }
    }
}

impl FromRequestParts<Api> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        api.access.caller(&parts.headers, &api.store).await
    }
}
