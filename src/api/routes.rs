//! Paths and their handlers.

use std::time::Instant;

use axum::{
    Router,
    extract::{MatchedPath, Request},
    http::StatusCode,
    middleware::{self, Next},
    response::Response,
    routing::{get, post, put},
};
use metrics::{counter, histogram};

use crate::metrics::{HTTP_REQUESTS, HTTP_SECONDS};

use super::{
    admin,
    cancel::{cancel_job, cancel_jobs},
    error::ApiError,
    feedback::give_feedback,
    jobs::{complete_chat, show_job, submit_job},
    state::Api,
};

/// All routes of the interface.
pub(super) fn routes(api: Api) -> Router {
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
        .with_state(api)
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
