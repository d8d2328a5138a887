//! `tenant`: tenants' weights and limits.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::{
    console::{
        options::{Common, UsageError, open_database},
        table::Listing,
        terminal::{eprint_line, print_line},
    },
    job::Tenant,
    store::TenantLimits,
};

/// List, set or reset tenants' weights and limits; a running fleet follows within seconds
#[derive(Debug, Subcommand)]
pub enum TenantCommand {
    /// List tenants whose weight or limits are set
    List(ListArgs),
    /// Set a tenant's weight or limits
    Set(SetArgs),
    /// Reset a tenant to the defaults: weight 1, no limits
    Reset(ResetArgs),
}

/// Arguments of `tenant list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `tenant set`.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// Tenant
    name: Tenant,
    /// Share of the models' time, relative to other waiting tenants' weights
    #[arg(long, value_name = "NUMBER")]
    weight: Option<f64>,
    /// Most prompt and answer tokens per minute, or none
    #[arg(long, value_name = "N|none")]
    tokens_per_minute: Option<LimitArg>,
    /// Most jobs running at once, or none
    #[arg(long, value_name = "N|none")]
    running_max: Option<LimitArg>,
    /// Most HTTP requests per minute, or none
    #[arg(long, value_name = "N|none")]
    requests_per_minute: Option<LimitArg>,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `tenant reset`.
#[derive(Debug, Args)]
pub struct ResetArgs {
    /// Tenant
    name: Tenant,
    #[command(flatten)]
    common: Common,
}

/// A limit; `none` removes it.
#[derive(Clone, Copy, Debug)]
struct LimitArg(Option<u32>);

impl std::str::FromStr for LimitArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self(None)),
            number => match number.parse() {
                Ok(number) if number > 0 => Ok(Self(Some(number))),
                _ => Err("expected a whole number from 1, or none".to_owned()),
            },
        }
    }
}

/// Runs `tenant`.
pub async fn tenant(command: TenantCommand) -> anyhow::Result<ExitCode> {
    match command {
        TenantCommand::List(args) => list(args).await,
        TenantCommand::Set(args) => set(args).await,
        TenantCommand::Reset(args) => reset(args).await,
    }
}

async fn list(args: ListArgs) -> anyhow::Result<ExitCode> {
    let (_, store) = open_database(&args.common).await?;
    let limits = store.tenants().await?;
    store.close().await;
    let listing = Listing {
        header: ["TENANT", "WEIGHT", "TOKENS/MIN", "RUNNING", "REQUESTS/MIN"],
        empty: "all tenants have the defaults: weight 1, no limits",
    };
    let limit = |limit: Option<u32>| limit.map_or("-".to_owned(), |limit| limit.to_string());
    listing.print(&limits, args.json, TenantLimits::to_json, |one| {
        [
            one.tenant.to_string(),
            one.weight.to_string(),
            limit(one.tokens_per_minute),
            limit(one.running_max),
            limit(one.requests_per_minute),
        ]
    })
}

async fn set(args: SetArgs) -> anyhow::Result<ExitCode> {
    let (_, store) = open_database(&args.common).await?;
    let known = store.tenants().await?;
    let mut limits = known
        .into_iter()
        .find(|limits| limits.tenant == args.name)
        .unwrap_or_else(|| TenantLimits::of(args.name));
    limits.weight = args.weight.unwrap_or(limits.weight);
    for (limit, new) in [
        (&mut limits.tokens_per_minute, args.tokens_per_minute),
        (&mut limits.running_max, args.running_max),
        (&mut limits.requests_per_minute, args.requests_per_minute),
    ] {
        if let Some(LimitArg(new)) = new {
            *limit = new;
        }
    }
    if let Err(reason) = limits.check() {
        return Err(UsageError(reason.message).into());
    }
    store.set_tenant(&limits).await?;
    store.close().await;
    print_line(&limits.to_json().to_string())?;
    Ok(ExitCode::SUCCESS)
}

async fn reset(args: ResetArgs) -> anyhow::Result<ExitCode> {
    let (_, store) = open_database(&args.common).await?;
    let changed = store.forget_tenant(&args.name).await?;
    store.close().await;
    eprint_line(if changed {
        "the tenant is reset to the defaults"
    } else {
        "the tenant already has the defaults"
    });
    Ok(ExitCode::SUCCESS)
}
