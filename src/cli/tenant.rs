//! `tenant`: what tenants are entitled to.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::{
    console::options::{Common, UsageError, complain, open_database, say},
    job::Tenant,
    store::TenantLimits,
};

use crate::console::table::table;

/// Say what tenants are entitled to: a running fleet follows within seconds.
#[derive(Debug, Subcommand)]
pub enum TenantCommand {
    /// List the tenants of which something was said
    List(ListArgs),
    /// Change what a tenant is entitled to
    Set(SetArgs),
    /// Give a tenant the defaults again: weight 1, no limits
    Reset(ResetArgs),
}

/// Arguments of `tenant list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print a JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `tenant set`.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// The tenant
    name: Tenant,
    /// Share of the models' work beside other tenants' weights while several wait
    #[arg(long, value_name = "NUMBER")]
    weight: Option<f64>,
    /// Most prompt and answer tokens that go to the models within a minute, or none
    #[arg(long, value_name = "N|none")]
    tokens_per_minute: Option<Limit>,
    /// Most jobs that are with the workers at once, or none
    #[arg(long, value_name = "N|none")]
    running_max: Option<Limit>,
    /// Most requests that the HTTP interface accepts within a minute, or none
    #[arg(long, value_name = "N|none")]
    requests_per_minute: Option<Limit>,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `tenant reset`.
#[derive(Debug, Args)]
pub struct ResetArgs {
    /// The tenant
    name: Tenant,
    #[command(flatten)]
    common: Common,
}

/// A limit, or that there is none.
#[derive(Clone, Copy, Debug)]
struct Limit(Option<u32>);

impl std::str::FromStr for Limit {
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
    let terms = store.tenants().await?;
    store.close().await;
    if args.json {
        for one in &terms {
            say(&one.to_json().to_string())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if terms.is_empty() {
        complain("every tenant has the defaults: weight 1, no limits");
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["TENANT", "WEIGHT", "TOKENS/MIN", "RUNNING", "REQUESTS/MIN"]);
    let limit = |limit: Option<u32>| limit.map_or("-".to_owned(), |limit| limit.to_string());
    for one in &terms {
        rows.add_row([
            one.tenant.to_string(),
            one.weight.to_string(),
            limit(one.tokens_per_minute),
            limit(one.running_max),
            limit(one.requests_per_minute),
        ]);
    }
    say(&rows.to_string())?;
    Ok(ExitCode::SUCCESS)
}

async fn set(args: SetArgs) -> anyhow::Result<ExitCode> {
    let (_, store) = open_database(&args.common).await?;
    let known = store.tenants().await?;
    let mut terms = known
        .into_iter()
        .find(|terms| terms.tenant == args.name)
        .unwrap_or_else(|| TenantLimits::of(args.name));
    terms.weight = args.weight.unwrap_or(terms.weight);
    for (limit, said) in [
        (&mut terms.tokens_per_minute, args.tokens_per_minute),
        (&mut terms.running_max, args.running_max),
        (&mut terms.requests_per_minute, args.requests_per_minute),
    ] {
        if let Some(Limit(said)) = said {
            *limit = said;
        }
    }
    if let Err(reason) = terms.check() {
        return Err(UsageError(reason.message).into());
    }
    store.set_tenant(&terms).await?;
    store.close().await;
    say(&terms.to_json().to_string())?;
    Ok(ExitCode::SUCCESS)
}

async fn reset(args: ResetArgs) -> anyhow::Result<ExitCode> {
    let (_, store) = open_database(&args.common).await?;
    let changed = store.forget_tenant(&args.name).await?;
    store.close().await;
    complain(if changed {
        "the tenant has the defaults again"
    } else {
        "the tenant had the defaults already"
    });
    Ok(ExitCode::SUCCESS)
}
