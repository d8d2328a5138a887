//! Jobs come in over HTTP.
//!
//! Comes in: OpenAI-shaped requests. Goes out: jobs on `jobs.in`, and the answers that the ledger
//! gets. [`server`] holds the routes, `access` knows who may do what, `cancel` takes jobs back, `feedback`
//! takes words about answers, `admin` is for operators, [`answers`] waits for many jobs with one query,
//! [`error`] is OpenAI's error shape. It never routes and never runs a model.

mod access;
mod admin;
pub mod answers;
mod cancel;
pub mod error;
mod feedback;
mod read;
pub mod server;
mod tls;

pub use server::{Api, ServeError};
