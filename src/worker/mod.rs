//! Jobs get their answers: claim, generate, commit, reply, acknowledge; or escalate, or retry.
//!
//! Comes in: routed jobs of one tier. Goes out: terminal rows and replies, or the job again on another
//! queue. [`Worker`] is the role and `run_loop` its loop. `claim` records attempts, `batch_order`
//! chooses jobs that share a prompt prefix, `work_stealing` fetches jobs from affinity queues,
//! `semantic_check` asks the model whether a near question's answer serves, and `generate` prepares
//! the prompt. At an attempt's end `attempt` puts together its settlement: `confidence` rates the
//! answer, `cancellation` handles attempts that were stopped, and `disposition` holds the pure rule
//! from the engine's result to what follows. `settle` commits in groups. A worker never chooses the
//! tier of a new job.

mod attempt;
mod batch_order;
mod cancellation;
mod claim;
mod confidence;
mod disposition;
mod generate;
mod role;
mod run_loop;
mod semantic_check;
mod settle;
mod work_stealing;

pub use role::{Worker, WorkerError};
