//! `router target`: routing targets of a running fleet.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::{
    config::{RouteTarget, RouteTargets, TargetScope},
    console::{
        options::{Common, UsageError, open_database},
        table::Listing,
        terminal::{eprint_line, print_line},
    },
    store::ScopedTarget,
};

/// List, set or unset targets, which override `router.target` and `router.targets`.
#[derive(Debug, Subcommand)]
pub enum TargetCommand {
    /// List the targets that override the configuration
    List(ListArgs),
    /// Set a target, replacing an earlier one
    Set(SetArgs),
    /// Remove a target, so that the configuration applies again
    Unset(UnsetArgs),
}

/// Arguments of `router target list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `router target set`.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// Jobs to apply to: all, tenant:NAME or tag:NAME
    #[arg(value_parser = read_scope)]
    scope: TargetScope,
    /// Target: threshold, threshold:0.4, share:30%, quality:99% or latency:2s
    target: RouteTarget,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `router target unset`.
#[derive(Debug, Args)]
pub struct UnsetArgs {
    /// Jobs to apply to: all, tenant:NAME or tag:NAME
    scope: TargetScope,
    #[command(flatten)]
    common: Common,
}

/// Parses a scope that jobs can have.
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
    let listing = Listing {
        header: ["SCOPE", "TARGET", "SINCE"],
        empty: "no target is set; the routers' configuration applies",
    };
    listing.print(&targets, args.json, ScopedTarget::to_json, |one| {
        [
            one.scope.to_string(),
            one.target.to_string(),
            one.changed_at.format("%Y-%m-%d %H:%M:%SZ").to_string(),
        ]
    })
}

async fn set(args: SetArgs) -> anyhow::Result<ExitCode> {
    let (_, store) = open_database(&args.common).await?;
    let known = store.route_targets().await?;
    let is_known = known.iter().any(|one| one.scope == args.scope);
    if !is_known && known.len() >= RouteTargets::ENTRIES_MAX {
        let message = format!(
            "{} targets are set, which is the limit; unset one first",
            known.len()
        );
        return Err(UsageError(message).into());
    }
    store.set_route_target(&args.scope, args.target).await?;
    store.close().await;
    print_line(&format!(
        "{}: {}; routers follow within seconds",
        args.scope, args.target
    ))?;
    Ok(ExitCode::SUCCESS)
}

async fn unset(args: UnsetArgs) -> anyhow::Result<ExitCode> {
    let (_, store) = open_database(&args.common).await?;
    let changed = store.unset_route_target(&args.scope).await?;
    store.close().await;
    eprint_line(&if changed {
        format!("{}: the configuration applies again", args.scope)
    } else {
        format!("{}: no target was set", args.scope)
    });
    Ok(ExitCode::SUCCESS)
}
