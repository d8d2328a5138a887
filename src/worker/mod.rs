//! Answers settle: claim → engine → commit → reply → acknowledge, or escalate, or retry.
//!
//! Comes in: routed jobs of one tier. Goes out: terminal rows and replies, or the job once more on
//! another queue. `run` is the role, `yard` its loop, `claims` how jobs enter it, `candidate` asks whether a near
//! question's answer serves, `affinity queues` from which
//! queues beside its tier's, `order` which of them together, `context` what is left out of a prompt, `doubt` tells how sure an answer is, `verdict` is the pure rule from an
//! engine's outcome to what happens next, `settle` commits in groups. A worker never chooses a tier
//! for a fresh job.

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

pub use disposition::{Disposition, judge};
pub use role::{Worker, WorkerError};
