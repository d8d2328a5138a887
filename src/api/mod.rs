//! Jobs come in over HTTP.
//!
//! Comes in: OpenAI-shaped requests. Goes out: jobs on `jobs.in`, and the answers that the ledger
//! gets. [`server`] holds the routes, `feedback` takes words about answers, [`answers`] waits for many jobs with one query, [`error`]
//! is OpenAI's error shape. It never routes and never runs a model.

pub mod answers;
pub mod error;
mod feedback;
pub mod server;

pub use server::{Api, ApiFault};
