//! `key`: API keys of the HTTP interface.

use std::process::ExitCode;

use anyhow::anyhow;
use chrono::Utc;
use clap::{Args, Subcommand};
use serde_json::json;
use uuid::Uuid;

use crate::{
    console::{
        options::{Common, UsageError, open_database, read_span},
        table::Listing,
        terminal::{eprint_line, print_line},
    },
    job::Tenant,
    store::{ApiKey, KeyDigest, Scopes, new_key},
};

/// Create, list or revoke API keys, which requests need if `api.keys=true`
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Create a key and print it; it cannot be shown again
    Create(CreateArgs),
    /// List keys, oldest first, without their secrets
    List(ListArgs),
    /// Revoke a key, which is refused within seconds
    Revoke(RevokeArgs),
}

/// Arguments of `key create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name, to recognise the key by
    #[arg(long)]
    name: String,
    /// Restrict the key to this tenant
    #[arg(long, value_name = "NAME")]
    tenant: Option<Tenant>,
    /// Scopes: submit, read, admin
    #[arg(long, value_name = "SCOPES", default_value = "submit,read")]
    scopes: Scopes,
    /// Validity, such as 12h or 90d [default: unlimited]
    #[arg(long, value_name = "SPAN")]
    expires: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `key list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `key revoke`.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Id of the key, as listed
    id: Uuid,
    #[command(flatten)]
    common: Common,
}

/// Runs `key`.
pub async fn key(command: KeyCommand) -> anyhow::Result<ExitCode> {
    match command {
        KeyCommand::Create(args) => create(args).await,
        KeyCommand::List(args) => list(args).await,
        KeyCommand::Revoke(args) => revoke(args).await,
    }
}

async fn create(args: CreateArgs) -> anyhow::Result<ExitCode> {
    let created_at = Utc::now();
    let expires_at = match args.expires.as_deref() {
        None => None,
        Some(text) => {
            let span = read_span("--expires", text)?;
            let at = created_at.checked_add_signed(span);
            Some(at.ok_or_else(|| UsageError(format!("--expires {text}: too far in the future")))?)
        }
    };
    let (_, store) = open_database(&args.common).await?;
    let secret = new_key();
    let key = ApiKey {
        id: Uuid::now_v7(),
        name: args.name,
        tenant: args.tenant,
        scopes: args.scopes,
        created_at,
        expires_at,
        revoked_at: None,
    };
    store.add_key(&key, KeyDigest::of(secret.expose())).await?;
    store.close().await;
    print_line(secret.expose())?;
    eprint_line(&format!("created key {}; it cannot be shown again", key.id));
    Ok(ExitCode::SUCCESS)
}

async fn list(args: ListArgs) -> anyhow::Result<ExitCode> {
    let (_, store) = open_database(&args.common).await?;
    let keys = store.keys().await?;
    store.close().await;
    let listing = Listing {
        header: ["ID", "NAME", "TENANT", "SCOPES", "CREATED", "STATE"],
        empty: "no keys",
    };
    listing.print(&keys, args.json, to_json, |key| {
        [
            key.id.to_string(),
            key.name.clone(),
            key.tenant
                .as_ref()
                .map_or("all".to_owned(), Tenant::to_string),
            key.scopes.to_string(),
            key.created_at.format("%F %T").to_string(),
            state(key),
        ]
    })
}

fn state(key: &ApiKey) -> String {
    match (key.revoked_at, key.expires_at) {
        (Some(_), _) => "revoked".to_owned(),
        (None, Some(at)) if at <= Utc::now() => "expired".to_owned(),
        (None, Some(at)) => format!("valid until {}", at.format("%F %T")),
        (None, None) => "valid".to_owned(),
    }
}

fn to_json(key: &ApiKey) -> serde_json::Value {
    json!({
        "id": key.id,
        "name": key.name,
        "tenant": key.tenant,
        "scopes": key.scopes.to_string(),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
    })
}

async fn revoke(args: RevokeArgs) -> anyhow::Result<ExitCode> {
    let (_, store) = open_database(&args.common).await?;
    let is_new = store.revoke_key(args.id).await?;
    store.close().await;
    if !is_new {
        return Err(anyhow!("there is no valid key {}", args.id));
    }
    eprint_line("revoked");
    Ok(ExitCode::SUCCESS)
}
