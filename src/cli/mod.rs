//! What people type.
//!
//! Comes in: the command line. Goes out: exit codes (0 done, 1 something failed, 2 wrong usage or
//! configuration, 130 interrupted). One file for each command; `options` holds what they share.

mod admin;
mod cache;
mod cancel;
mod chaos;
mod dead;
mod key;
mod labels;
mod prompt;
mod results;
mod roles;
mod router;
mod run;
mod status;
mod submit;
mod summary;
mod tenant;

use std::{pin::Pin, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};

use crate::{bench, console::options};

pub use crate::console::options::{Common, UsageError};

/// A marshalling yard for prompts: queue, complexity routing, dynamic batching, durable answers.
#[derive(Debug, Parser)]
#[command(name = "promptyard", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    // `run` and `submit` are told at length beside their arguments; words here would hide those.
    Run(run::RunArgs),
    /// Run all roles until stopped
    Up(roles::UpArgs),
    /// Run the router until stopped
    Route(roles::RouteArgs),
    /// Run workers until stopped
    Work(roles::WorkArgs),
    /// Serve HTTP until stopped
    Serve(roles::ServeArgs),
    Submit(submit::SubmitArgs),
    /// Print answers as OpenAI batch output lines
    Results(results::ResultsArgs),
    /// Show queues, workers and rates
    Status(status::StatusArgs),
    Cancel(cancel::CancelArgs),
    /// List, show, redrive or discard dead letters
    #[command(subcommand)]
    Dead(dead::DeadCommand),
    Chaos(chaos::ChaosArgs),
    /// Say what tenants are entitled to: weights, quotas, limits
    #[command(subcommand)]
    Tenant(tenant::TenantCommand),
    /// Make, list and revoke keys of the HTTP interface
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Bring the ledger's tables up to date
    Migrate(admin::MigrateArgs),
    /// Check or show the configuration
    #[command(subcommand)]
    Config(admin::ConfigCommand),
    /// Fit the router, judge it, or ask it about prompts of your own
    #[command(subcommand)]
    Router(router::RouterCommand),
    /// StealRound at kept answers, remove them, or judge semantic reuse on pairs of your own
    #[command(subcommand)]
    Cache(cache::CacheCommand),
    /// Clean up and prune prompts of your own
    #[command(subcommand)]
    Prompt(prompt::PromptCommand),
    /// Measure promptyard on this machine
    #[command(subcommand)]
    Bench(bench::BenchCommand),
}

/// Exit code of a command that was interrupted.
pub const INTERRUPTED: u8 = 130;

/// Runs the command line; the exit code tells how it went.
///
/// It starts the runtime itself: an async `main` would leave every command to be compiled where it
/// is polled, with the binary.
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    let outcome = tokio::runtime::Runtime::new()
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(execute(command)));
    outcome.unwrap_or_else(|error| {
        if is_broken_pipe(&error) {
            return ExitCode::SUCCESS;
        }
        options::complain(&format!("error: {error:#}"));
        ExitCode::from(if error.is::<UsageError>() { 2 } else { 1 })
    })
}

/// The command's future, boxed so that the commands are compiled apart.
fn execute(command: Command) -> Pin<Box<dyn Future<Output = anyhow::Result<ExitCode>>>> {
    match command {
        Command::Run(args) => Box::pin(run::run(args)),
        Command::Up(args) => Box::pin(roles::up(args)),
        Command::Route(args) => Box::pin(roles::route(args)),
        Command::Work(args) => Box::pin(roles::work(args)),
        Command::Serve(args) => Box::pin(roles::serve(args)),
        Command::Submit(args) => Box::pin(submit::submit(args)),
        Command::Results(args) => Box::pin(results::results(args)),
        Command::Status(args) => Box::pin(status::status(args)),
        Command::Cancel(args) => Box::pin(cancel::cancel(args)),
        Command::Dead(command) => Box::pin(dead::dead(command)),
        Command::Chaos(args) => Box::pin(chaos::chaos(args)),
        Command::Tenant(command) => Box::pin(tenant::tenant(command)),
        Command::Key(command) => Box::pin(key::key(command)),
        Command::Migrate(args) => Box::pin(admin::migrate(args)),
        Command::Config(command) => Box::pin(async { admin::config(command) }),
        Command::Router(command) => Box::pin(router::router(command)),
        Command::Cache(command) => Box::pin(cache::cache(command)),
        Command::Prompt(command) => Box::pin(async { prompt::prompt(command) }),
        Command::Bench(command) => Box::pin(bench::bench(command)),
    }
}

/// True when whoever read our output has stopped reading: no error of ours.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// The command tree, for documentation and tests.
pub fn command() -> clap::Command {
    Cli::command()
}
