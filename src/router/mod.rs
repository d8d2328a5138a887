//! Jobs get a tier.
//!
//! Comes in: bodies from `jobs.in`, in micro-batches. Goes out: admitted jobs on their tier's queue,
//! and replies for those that need no model (cached, rejected, expired).
//!
//! [`Router`] is the role: `run` is its loop and `batch` the way of one batch. [`intake`] reads messages;
//! [`policy`] turns a score into a tier by the thresholds that [`target`] keeps; [`model_registry`]
//! knows which models are served; `semantic_reuse` finds paraphrases of answered questions;
//! [`learning`] turns outcomes into training pairs. `scheduling` defers jobs and releases them fairly.
//! `tasks` run beside the loop: the dead-letter consumer, single-flight takeover, the rescuer of stuck
//! jobs, the observer of load and targets, and the copies made for learning. The router never runs a
//! generating model and never reads an answer's text.

mod batch;
pub mod intake;
pub mod learning;
pub mod model_registry;
pub mod policy;
mod role;
mod run;
mod scheduling;
mod semantic_reuse;
pub mod target;
mod tasks;

pub use role::Router;
pub use run::RouterError;
pub use tasks::observer::PAST_MAX as PAST_DECISIONS_MAX;
