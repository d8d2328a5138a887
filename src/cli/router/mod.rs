//! `router`: trains, evaluates and inspects the router.

mod calibrate;
mod evaluate;
mod explain;
mod explain_job;
mod labelled;
mod pairs;
mod promote;
mod score;
mod simulate;
mod target;
mod train;
mod weights;

use std::process::ExitCode;

use clap::Subcommand;

/// Train, evaluate and inspect the router.
#[derive(Debug, Subcommand)]
pub enum RouterCommand {
    /// Score prompts: lines {"id", "prompt"} in, lines {"id", "score"} out, higher for large
    Score(score::ScoreArgs),
    Train(train::TrainArgs),
    Evaluate(evaluate::EvaluateArgs),
    Calibrate(calibrate::CalibrateArgs),
    /// Explain a prompt's score, or why a job was routed to its tier
    Explain(explain::ExplainArgs),
    /// Simulate what a routing target delivers on a file of prompts
    Simulate(simulate::SimulateArgs),
    /// Print the jobs that both tiers answered, as lines for `router train`
    Pairs(pairs::PairsArgs),
    Promote(promote::PromoteArgs),
    /// List, set or unset the routing targets of a running fleet
    ///
    /// A target set here overrides router.target and router.targets until it is unset. Routers follow
    /// within seconds.
    #[command(subcommand)]
    Target(target::TargetCommand),
}

/// Runs `router`.
pub async fn router(command: RouterCommand) -> anyhow::Result<ExitCode> {
    match command {
        RouterCommand::Score(args) => score::score(&args),
        RouterCommand::Train(args) => train::train(&args).await,
        RouterCommand::Evaluate(args) => evaluate::evaluate(&args).await,
        RouterCommand::Calibrate(args) => calibrate::calibrate(args),
        RouterCommand::Explain(args) => explain::explain(&args).await,
        RouterCommand::Simulate(args) => simulate::simulate(&args),
        RouterCommand::Pairs(args) => pairs::pairs(args).await,
        RouterCommand::Promote(args) => promote::promote(args).await,
        RouterCommand::Target(command) => target::target(command).await,
    }
}
