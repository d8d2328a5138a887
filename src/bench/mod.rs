//! `promptyard bench`: repeatable measurements, each against a limit or a baseline of the same run.
//!
//! One file per command. They share `load` (models and requests), `timing` and `steps` (steps of a
//! model), `trace` (request traces), `statistics` and `report`.

mod affinity;
mod batching;
mod cascade;
mod clean;
mod device;
mod endurance;
mod engine;
mod latency;
mod load;
mod perplexity;
mod prefix;
mod prune;
mod report;
mod reuse;
mod route;
mod score;
mod statistics;
mod steps;
mod timing;
mod tokens;
mod trace;

use std::process::ExitCode;

use clap::Subcommand;
use tokio::task::spawn_blocking;

/// Measure promptyard on this machine.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Measure the router against a bare broker hop: consume, republish with confirm, acknowledge
    Route(route::RouteBenchArgs),
    /// Measure how much context pruning cuts, and whether the paragraph with the answer stays
    Prune(prune::PruneBenchArgs),
    /// Measure the in-process engine's prefill and decode speed against the machine's limits
    Engine(timing::EngineBenchArgs),
    /// Compare continuous batching with static batches and with one request at a time
    Batching(batching::BatchingBenchArgs),
    /// Measure the engine's overhead on a single request, and how a long prompt delays running answers
    Latency(latency::LatencyBenchArgs),
    /// Measure the prefix cache's hit rate on a trace, and the time to first token that it saves
    Prefix(prefix::PrefixBenchArgs),
    /// Measure how much lossless clean-up removes, and how long it takes
    Clean(clean::CleanBenchArgs),
    /// Measure the latency of reused answers against computed ones
    Reuse(reuse::ReuseBenchArgs),
    /// Measure how many prompt tokens each saving avoids on a file, and what it does to the answers
    Tokens(tokens::TokensBenchArgs),
    /// Measure resident memory while many sequences pass through the engine
    Endurance(endurance::EnduranceBenchArgs),
    Cascade(cascade::CascadeArgs),
    /// Measure perplexity and argmax flips of reduced-precision weights against f32
    Perplexity(perplexity::PerplexityArgs),
    /// Measure how long scoring a prompt takes on one core
    Score(score::ScoreBenchArgs),
}

/// Runs `bench`.
///
/// # Errors
/// When an argument, a file, a model or a server cannot be used.
pub async fn bench(command: BenchCommand) -> anyhow::Result<ExitCode> {
    match command {
        BenchCommand::Route(args) => route::bench_route(args).await,
        BenchCommand::Prune(args) => blocking(move || prune::bench_prune(&args)).await,
        BenchCommand::Engine(args) => blocking(move || engine::bench_engine(&args)).await,
        BenchCommand::Batching(args) => blocking(move || batching::bench_batching(&args)).await,
        BenchCommand::Latency(args) => latency::bench_latency(&args).await,
        BenchCommand::Prefix(args) => blocking(move || prefix::bench_prefix(&args)).await,
        BenchCommand::Clean(args) => blocking(move || clean::bench_clean(&args)).await,
        BenchCommand::Reuse(args) => reuse::bench_reuse(args).await,
        BenchCommand::Tokens(args) => blocking(move || tokens::bench_tokens(&args)).await,
        BenchCommand::Endurance(args) => endurance::bench_endurance(&args).await,
        BenchCommand::Cascade(args) => cascade::bench_cascade(args).await,
        BenchCommand::Perplexity(args) => {
            blocking(move || perplexity::bench_perplexity(&args)).await
        }
        BenchCommand::Score(args) => blocking(move || score::bench_score(&args)).await,
    }
}

/// Runs a command that computes or blocks, off the runtime's threads.
async fn blocking(
    command: impl FnOnce() -> anyhow::Result<ExitCode> + Send + 'static,
) -> anyhow::Result<ExitCode> {
    spawn_blocking(command).await?
}
