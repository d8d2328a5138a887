//! `key`: keys of the HTTP interface.

use std::process::ExitCode;

use anyhow::anyhow;
use chrono::Utc;
use clap::{Args, Subcommand};
use serde_json::json;
use uuid::Uuid;

use crate::{
    console::options::{Common, UsageError, complain, open_database, read_span, say},
    job::Tenant,
    store::{ApiKey, KeyDigest, Scopes, new_key},
};

use crate::console::table::table;

/// Make, list and revoke keys of the HTTP interface (asked for with `api.keys=true`).
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key and print it: it is not kept and cannot be shown again
    Create(CreateArgs),
    /// List keys, the oldest first; never the keys themselves
    List(ListArgs),
    /// Revoke a key: it is refused within seconds
    Revoke(RevokeArgs),
}

/// Arguments of `key create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// What it is for
    #[arg(long)]
    name: String,
    /// The only tenant it is good for
    #[arg(long, value_name = "NAME")]
    tenant: Option<Tenant>,
    /// What it allows: submit, read, admin
    #[arg(long, value_name = "SCOPES", default_value = "submit,read")]
    scopes: Scopes,
    /// How long it is good: 90d, 12h; for ever, if not said
    #[arg(long, value_name = "SPAN")]
    expires: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `key list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print a JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `key revoke`.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// The key, as listed
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
            Some(at.ok_or_else(|| UsageError(format!("--expires {text}: too far ahead")))?)
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
    say(secret.expose())?;
    complain(&format!("key {} made; it cannot be shown again", key.id));
    Ok(ExitCode::SUCCESS)
}

async fn list(args: ListArgs) -> anyhow::Result<ExitCode> {
    let (_, store) = open_database(&args.common).await?;
    let keys = store.keys().await?;
    store.close().await;
    if args.json {
        for key in &keys {
            say(&to_json(key).to_string())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if keys.is_empty() {
        complain("no keys");
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["ID", "NAME", "TENANT", "SCOPES", "CREATED", "STATE"]);
    for key in &keys {
        rows.add_row([
            key.id.to_string(),
            key.name.clone(),
            key.tenant
                .as_ref()
                .map_or("all".to_owned(), Tenant::to_string),
            key.scopes.to_string(),
            key.created_at.format("%F %T").to_string(),
            state(key),
        ]);
    }
    say(&rows.to_string())?;
    Ok(ExitCode::SUCCESS)
}

fn state(key: &ApiKey) -> String {
    match (key.revoked_at, key.expires_at) {
        (Some(_), _) => "revoked".to_owned(),
        (None, Some(at)) if at <= Utc::now() => "expired".to_owned(),
        (None, Some(at)) => format!("good until {}", at.format("%F %T")),
        (None, None) => "good".to_owned(),
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
        return Err(anyhow!("there is no good key {}", args.id));
    }
    complain("revoked");
    Ok(ExitCode::SUCCESS)
}
