//! `/v1/dead` and `/v1/tenants`: what operators do over HTTP.

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
    broker::wire::redriven,
    job::{Reason, Tenant},
    store::{DeadFilter, DeadLetter, DeadResolution, Scope, TenantLimits},
};

use super::{access::Caller, error::ApiError, read::read_json, server::Api};

/// Most letters listed, redriven or discarded at once.
const LETTERS_MAX: usize = 10_000;
/// Letters listed where no number is asked for.
const LETTERS_DEFAULT: usize = 100;

/// What `GET /v1/dead` asks.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listed {
    reason: Option<String>,
    tenant: Option<Tenant>,
    before: Option<DateTime<Utc>>,
    limit: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Meant {
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
    Query(listed): Query<Listed>,
) -> Result<Json<Value>, ApiError> {
    caller.needs(Scope::Admin)?;
    let filter = DeadFilter {
        reason: listed.reason,
        tenant: caller.rows_of(listed.tenant)?,
        died_before: listed.before,
        ..DeadFilter::default()
    };
    let limit = listed.limit.unwrap_or(LETTERS_DEFAULT).min(LETTERS_MAX);
    let letters = api.store().dead_letters(&filter, limit).await?;
    let data: Vec<_> = letters.iter().map(DeadLetter::to_json).collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

async fn select(api: &Api, caller: &Caller, body: Body) -> Result<Vec<DeadLetter>, ApiError> {
    caller.needs(Scope::Admin)?;
    let meant: Meant = read_json(
        body,
        "an object with ids, reason, tenant or before (RFC 3339), or \"all\": true",
    )
    .await?;
    let filter = DeadFilter {
        ids: meant.ids,
        reason: meant.reason,
        tenant: meant.tenant,
        died_before: meant.before,
    };
    if filter == DeadFilter::default() && !meant.all {
        return Err(ApiError::invalid(Reason::new(
            "missing_field",
            "name ids, reason, tenant or before, or say \"all\": true",
        )));
    }
    let filter = DeadFilter {
        tenant: caller.rows_of(filter.tenant.clone())?,
        ..filter
    };
    Ok(api.store().dead_letters(&filter, LETTERS_MAX).await?)
}

/// Submits dead letters again, as new jobs.
pub(super) async fn redrive_dead(
    State(api): State<Api>,
    caller: Caller,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let letters = select(&api, &caller, body).await?;
    // Publishing comes first: should the marking fail, the key of the new job keeps a second redrive
    // from running it twice.
    let messages = letters
        .iter()
        .map(|letter| redriven(letter.id, &letter.body))
        .collect();
    let outcomes = api.broker().publish(messages).await;
    let published: Vec<Uuid> = letters
        .iter()
        .zip(outcomes)
        .filter(|(_, outcome)| outcome.is_ok())
        .map(|(letter, _)| letter.id)
        .collect();
    let resolution = DeadResolution::Redriven;
    let count = api.store().resolve_dead(&published, resolution).await?;
    let failed = letters.len() - published.len();
    Ok(Json(json!({"redriven": count, "failed": failed})))
}

/// Throws dead letters away.
pub(super) async fn discard_dead(
    State(api): State<Api>,
    caller: Caller,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let letters = select(&api, &caller, body).await?;
    let ids: Vec<Uuid> = letters.iter().map(|letter| letter.id).collect();
    let resolution = DeadResolution::Discarded;
    let count = api.store().resolve_dead(&ids, resolution).await?;
    Ok(Json(json!({"discarded": count})))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Terms {
    #[serde(default)]
    weight: Option<f64>,
    #[serde(default)]
    tokens_per_minute: Option<u32>,
    #[serde(default)]
    running_max: Option<u32>,
    #[serde(default)]
    requests_per_minute: Option<u32>,
}

/// Lists the tenants of which something was said.
pub(super) async fn list_tenants(
    State(api): State<Api>,
    caller: Caller,
) -> Result<Json<Value>, ApiError> {
    caller.needs(Scope::Admin)?;
    caller.needs_all_tenants()?;
    let terms = api.store().tenants().await?;
    let data: Vec<_> = terms.iter().map(TenantLimits::to_json).collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

/// Says what a tenant is entitled to; what is left out is the default.
pub(super) async fn set_tenant(
    State(api): State<Api>,
    caller: Caller,
    Path(name): Path<String>,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    caller.needs(Scope::Admin)?;
    caller.needs_all_tenants()?;
    let tenant = read_tenant(name)?;
    let said: Terms = read_json(
        body,
        "an object with weight, tokens_per_minute, running_max, requests_per_minute, numbers above 0",
    )
    .await?;
    let terms = TenantLimits {
        weight: said.weight.unwrap_or(1.0),
        tokens_per_minute: said.tokens_per_minute,
        running_max: said.running_max,
        requests_per_minute: said.requests_per_minute,
        ..TenantLimits::of(tenant)
    };
    terms.check().map_err(ApiError::invalid)?;
    api.store().set_tenant(&terms).await?;
    Ok(Json(terms.to_json()))
}

/// Gives a tenant the defaults again.
pub(super) async fn forget_tenant(
    State(api): State<Api>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    caller.needs(Scope::Admin)?;
    caller.needs_all_tenants()?;
    api.store().forget_tenant(&read_tenant(name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn read_tenant(name: String) -> Result<Tenant, ApiError> {
    Tenant::try_from(name).map_err(|error| {
        ApiError::invalid(Reason::new("invalid_value", format!("tenant: {error}")))
    })
}
