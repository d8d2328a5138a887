//! `cache`: inspects the answer cache, removes entries, and tests semantic reuse.

mod compare;
mod entries;

use std::process::ExitCode;

use clap::Subcommand;

/// Inspect the answer cache, remove entries, or test semantic reuse
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Test whether answers would be reused: lines {"id", "a", "b"} in, cosine and verdict out
    #[command(long_about = compare::ABOUT)]
    Compare(compare::CompareArgs),
    /// Show the number of cached answers, their size and their hits
    Stats(entries::StatsArgs),
    /// Remove cached answers, so that their requests are computed again
    Drop(entries::DropArgs),
}

/// Runs `cache`.
///
/// # Errors
/// When a file, the embedder or the job database cannot be used, or the usage is invalid.
pub async fn cache(command: CacheCommand) -> anyhow::Result<ExitCode> {
    match command {
        CacheCommand::Compare(args) => compare::compare_file(&args),
        CacheCommand::Stats(args) => entries::stats(args).await,
        CacheCommand::Drop(args) => entries::drop(args).await,
    }
}
