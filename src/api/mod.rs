//! The HTTP interface.
//!
//! Comes in: OpenAI-shaped requests. Goes out: jobs on `jobs.in`, and their answers once the job
//! database has them. [`Api`] is what the handlers share; `routes` maps paths to the handlers in
//! `jobs`, `cancel`, `feedback` and `admin`; `access` checks keys and rate limits; `answers` waits
//! for many jobs with one query; `server` listens, with or without TLS; `operations` is shared with the
//! command line. It never routes and never runs a model.

mod access;
mod admin;
mod answers;
mod cancel;
mod error;
mod feedback;
mod job_view;
mod jobs;
mod operations;
mod read;
mod routes;
mod server;
mod state;
mod tls;

pub use operations::{Cancellation, redrive};
pub use server::{ServeError, serve};
pub use state::Api;
