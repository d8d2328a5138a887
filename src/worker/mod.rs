//! Answers settle: claim → engine → commit → reply → acknowledge, or escalate, or retry.
//!
//! Comes in: routed jobs of one tier. Goes out: terminal rows and replies, or the job once more on
//! another queue. `run` owns the loop, `verdict` is the pure rule from an engine's outcome to
//! what happens next, `settle` commits in groups. A worker never chooses a tier for a fresh job.

mod run;
mod settle;
mod verdict;

pub use run::{Worker, WorkerFault};
pub use verdict::{Next, judge};
