//! `/v1/dead` and `/v1/tenants`, for operators.

use axum::{
    Json,
    body::Body,
    extract::{Path, Query, State},
    http::StatusCode,
};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    job::{Reason, Tenant},
    store::{DeadFilter, DeadLetter, DeadResolution, Scope, TenantLimits},
};

use super::{access::Caller, error::ApiError, operations::redrive, read::read_json, state::Api};

/// Most dead letters listed, redriven or discarded by one request.
const LETTERS_MAX: usize = 10_000;
/// Default of the `limit` parameter.
const LETTERS_DEFAULT: usize = 100;

/// Parameters of `GET /v1/dead`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    reason: Option<String>,
    tenant: Option<Tenant>,
    before: Option<DateTime<Utc>>,
    limit: Option<usize>,
}

/// Dead letters to redrive or discard.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SelectRequest {
    #[serde(default)]
    ids: Vec<Uuid>,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    tenant: Option<Tenant>,
    #[serde(default)]
    before: Option<DateTime<Utc>>,
    #[serde(default)]
    all: bool,
}

/// Lists dead letters, the oldest first.
pub(super) async fn list_dead(
    State(api): State<Api>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<Json<Value>, ApiError> {
    caller.needs(Scope::Admin)?;
    let filter = DeadFilter {
        reason: query.reason,
        tenant: caller.rows_of(query.tenant)?,
        died_before: query.before,
        ..DeadFilter::default()
    };
    let limit = query.limit.unwrap_or(LETTERS_DEFAULT).min(LETTERS_MAX);
    let letters = api.store.dead_letters(&filter, limit).await?;
    let data: Vec<_> = letters.iter().map(DeadLetter::to_json).collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

async fn select(api: &Api, caller: &Caller, body: Body) -> Result<Vec<DeadLetter>, ApiError> {
    caller.needs(Scope::Admin)?;
    let request: SelectRequest = read_json(
        body,
        "an object with ids, reason, tenant or before (RFC 3339), or \"all\": true",
    )
    .await?;
    let filter = DeadFilter {
        ids: request.ids,
        reason: request.reason,
        tenant: request.tenant,
        died_before: request.before,
    };
    if filter == DeadFilter::default() && !request.all {
        return Err(ApiError::invalid(Reason::new(
            "missing_field",
            "name ids, reason, tenant or before, or set \"all\": true",
        )));
    }
    let filter = DeadFilter {
        tenant: caller.rows_of(filter.tenant.clone())?,
        ..filter
    };
    Ok(api.store.dead_letters(&filter, LETTERS_MAX).await?)
}

/// Resubmits dead letters as new jobs.
pub(super) async fn redrive_dead(
    State(api): State<Api>,
    caller: Caller,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let letters = select(&api, &caller, body).await?;
    let (count, failed) = redrive(&api.broker, &api.store, &letters).await?;
    Ok(Json(json!({"redriven": count, "failed": failed.len()})))
}

/// Discards dead letters.
pub(super) async fn discard_dead(
    State(api): State<Api>,
    caller: Caller,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let letters = select(&api, &caller, body).await?;
    let ids: Vec<Uuid> = letters.iter().map(|letter| letter.id).collect();
    let resolution = DeadResolution::Discarded;
    let count = api.store.resolve_dead(&ids, resolution).await?;
    Ok(Json(json!({"discarded": count})))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsRequest {
    #[serde(default)]
    weight: Option<f64>,
    #[serde(default)]
    tokens_per_minute: Option<u32>,
    #[serde(default)]
    running_max: Option<u32>,
    #[serde(default)]
    requests_per_minute: Option<u32>,
}

/// Lists the tenants that have limits or weights set.
pub(super) async fn list_tenants(
    State(api): State<Api>,
    caller: Caller,
) -> Result<Json<Value>, ApiError> {
    caller.needs(Scope::Admin)?;
    caller.needs_all_tenants()?;
    let limits = api.store.tenants().await?;
    let data: Vec<_> = limits.iter().map(TenantLimits::to_json).collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

/// Sets a tenant's weight and limits; omitted fields get their defaults.
pub(super) async fn set_tenant(
    State(api): State<Api>,
    caller: Caller,
    Path(name): Path<String>,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    caller.needs(Scope::Admin)?;
    caller.needs_all_tenants()?;
    let tenant = read_tenant(name)?;
    let request: LimitsRequest = read_json(
        body,
        "an object with weight, tokens_per_minute, running_max, requests_per_minute, numbers above 0",
    )
    .await?;
    let limits = TenantLimits {
        weight: request.weight.unwrap_or(1.0),
        tokens_per_minute: request.tokens_per_minute,
        running_max: request.running_max,
        requests_per_minute: request.requests_per_minute,
        ..TenantLimits::of(tenant)
    };
    limits.check().map_err(ApiError::invalid)?;
    api.store.set_tenant(&limits).await?;
    Ok(Json(limits.to_json()))
}

/// Resets a tenant to the defaults.
pub(super) async fn forget_tenant(
    State(api): State<Api>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    caller.needs(Scope::Admin)?;
    caller.needs_all_tenants()?;
    api.store.forget_tenant(&read_tenant(name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn read_tenant(name: String) -> Result<Tenant, ApiError> {
    Tenant::try_from(name).map_err(|error| {
        ApiError::invalid(Reason::new("invalid_value", format!("tenant: {error}")))
    })
}
