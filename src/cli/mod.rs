//! The command line.
//!
//! Comes in: arguments. Goes out: exit codes (0 success, 1 failure, 2 invalid usage or configuration,
//! 130 interrupted). One file per command; `console` holds what they share.

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

use crate::{
    bench,
    console::{options::UsageError, terminal::eprint_line},
};

/// Job queue, complexity router and batched inference for LLM prompts
#[derive(Debug, Parser)]
#[command(name = "promptyard", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    // Commands without a comment here are described at their arguments; a comment would hide that.
    Run(run::RunArgs),
    /// Run router, workers and HTTP interface in one process
    Up(roles::UpArgs),
    /// Run the router
    Route(roles::RouteArgs),
    /// Run workers
    Work(roles::WorkArgs),
    /// Run the HTTP interface
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
    /// List, set or reset tenants' weights and limits
    #[command(subcommand)]
    Tenant(tenant::TenantCommand),
    /// Create, list or revoke API keys of the HTTP interface
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Create or upgrade the job database's tables
    Migrate(admin::MigrateArgs),
    /// Check or show the configuration
    #[command(subcommand)]
    Config(admin::ConfigCommand),
    /// Train, evaluate and inspect the router
    #[command(subcommand)]
    Router(router::RouterCommand),
    /// Inspect the answer cache, remove entries, or test semantic reuse
    #[command(subcommand)]
    Cache(cache::CacheCommand),
    /// Test prompt clean-up and context pruning
    #[command(subcommand)]
    Prompt(prompt::PromptCommand),
    /// Measure promptyard on this machine
    #[command(subcommand)]
    Bench(bench::BenchCommand),
}

/// Runs the command line and returns its exit code.
///
/// It starts the runtime itself: with an async `main`, every command would be compiled in the binary
/// crate, where it is polled.
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    let outcome = tokio::runtime::Runtime::new()
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(execute(command)));
    outcome.unwrap_or_else(|error| {
        if is_broken_pipe(&error) {
            return ExitCode::SUCCESS;
        }
        eprint_line(&format!("error: {error:#}"));
        ExitCode::from(if error.is::<UsageError>() { 2 } else { 1 })
    })
}

/// Runs a command; its future is boxed, so that each command is compiled once, in this crate.
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

/// Whether the reader of our output has gone, as with `| head`; that is no error.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// The command tree, for documentation and tests.
pub fn command() -> clap::Command {
    Cli::command()
}
