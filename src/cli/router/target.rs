//! `router target`: what a running fleet is to deliver.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::{
    config::{RouteTarget, RouteTargets, TargetScope},
    console::options::{Common, UsageError, complain, open_database, say},
    console::table::table,
};

/// What is done to targets; one that is set goes before `router.target` and `router.targets`.
#[derive(Debug, Subcommand)]
pub enum TargetCommand {
    /// List the targets that were set; where none was, the configuration holds
    List(ListArgs),
    /// Set a target, in place of an earlier one
    Set(SetArgs),
    /// Remove a target, so that the configuration holds again
    Unset(UnsetArgs),
}

/// Arguments of `router target list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print a JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `router target set`.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// Whose jobs: all, tenant:NAME or tag:NAME
    #[arg(value_parser = read_scope)]
    scope: TargetScope,
    /// What is to be delivered: threshold, threshold:0.4, share:30%, quality:99% or latency:2s
    target: RouteTarget,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `router target unset`.
#[derive(Debug, Args)]
pub struct UnsetArgs {
    /// Whose jobs: all, tenant:NAME or tag:NAME
    scope: TargetScope,
    #[command(flatten)]
    common: Common,
}

/// Reads a scope that jobs can have.
fn read_scope(text: &str) -> Result<TargetScope, String> {
    let scope: TargetScope = text.parse()?;
    scope.check()?;
    Ok(scope)
}

/// Runs `router target`.
pub async fn target(command: TargetCommand) -> anyhow::Result<ExitCode> {
    match command {
        TargetCommand::List(args) => list(args).await,
        TargetCommand::Set(args) => set(args).await,
        TargetCommand::Unset(args) => unset(args).await,
    }
}

async fn list(args: ListArgs) -> anyhow::Result<ExitCode> {
    let (_, store) = open_database(&args.common).await?;
    let targets = store.route_targets().await?;
    store.close().await;
    if args.json {
        for one in &targets {
            say(&one.to_json().to_string())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if targets.is_empty() {
        complain("no target is set: the routers' configuration holds");
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["SCOPE", "TARGET", "SINCE"]);
    for one in &targets {
        rows.add_row([
            one.scope.to_string(),
            one.target.to_string(),
            one.changed_at.format("%Y-%m-%d %H:%M:%SZ").to_string(),
        ]);
    }
    say(&rows.to_string())?;
    Ok(ExitCode::SUCCESS)
}

async fn set(args: SetArgs) -> anyhow::Result<ExitCode> {
    let (_, store) = open_database(&args.common).await?;
    let known = store.route_targets().await?;
    let is_known = known.iter().any(|one| one.scope == args.scope);
    if !is_known && known.len() >= RouteTargets::ENTRIES_MAX {
        let message = format!("{} targets are set, the most there may be", known.len());
        return Err(UsageError(message).into());
    }
    store.set_route_target(&args.scope, args.target).await?;
    store.close().await;
    say(&format!(
        "{}: {}; routers follow within seconds",
        args.scope, args.target
    ))?;
    Ok(ExitCode::SUCCESS)
}

async fn unset(args: UnsetArgs) -> anyhow::Result<ExitCode> {
    let (_, store) = open_database(&args.common).await?;
    let changed = store.unset_route_target(&args.scope).await?;
    store.close().await;
    complain(&if changed {
        format!("{}: the configuration holds again", args.scope)
    } else {
        format!("{}: no target was set", args.scope)
    });
    Ok(ExitCode::SUCCESS)
}
