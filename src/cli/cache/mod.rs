//! `cache`: the answers that are kept, and whether one question's would serve another.

mod compare;
mod entries;

use std::process::ExitCode;

use clap::Subcommand;

/// StealRound at kept answers, remove them, or judge semantic reuse on pairs of your own.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Compare texts: lines {"id", "a", "b"} in, cosine and verdict out
    #[command(long_about = compare::ABOUT)]
    Compare(compare::CompareArgs),
    /// Show how many answers are kept, and of what use they were
    Stats(entries::StatsArgs),
    /// Remove kept answers, so that the same requests are computed again
    Drop(entries::DropArgs),
}

/// Runs `cache`.
///
/// # Errors
/// When a file, the embedder or the ledger cannot be used, or the usage is wrong.
pub async fn cache(command: CacheCommand) -> anyhow::Result<ExitCode> {
    match command {
        CacheCommand::Compare(args) => compare::compare_file(&args),
        CacheCommand::Stats(args) => entries::stats(args).await,
        CacheCommand::Drop(args) => entries::drop(args).await,
    }
}
