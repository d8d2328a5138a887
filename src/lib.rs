//! A marshalling yard for prompts. Producers put prompts on a queue; a router sorts them by what
//! they need; workers make them up into batches on a small or a large model; every answer, and
//! what it cost, ends as a row that analysts can query.
//!
//! ```text
//! any AMQP client ─┐                        ┌─▶ jobs.small ─▶ worker ─┐   ▲ escalates what the
//! OpenAI SDK ─▶ api ┴▶ jobs.in ─▶ router ───┤                         ├───┘ small model cannot do
//!                                  │        └─▶ jobs.large ─▶ worker ─┤
//!                                  └── answer cache hit ─────────────▶ ledger ─▶ analysts' views
//!                                                                      └─▶ reply queue
//! ```
//!
//! # Layout
//!
//! The modules, in the order the data takes:
//!
//! | module | comes in → goes out |
//! |---|---|
//! | [`job`] | the words every stage shares: a job, its life, its answer; the request contract |
//! | [`clock`], [`config`], [`metrics`], [`telemetry`], [`shutdown`] | time, settings, figures, logs, the stop |
//! | [`api`] | HTTP requests → jobs on the queue, answers when they are there |
//! | [`broker`] | messages wait: RabbitMQ, or tables of a SQLite file |
//! | [`prompt`] | messages → the model's chat template → tokens, and back |
//! | [`cache`] | a request → the key under which its answer may be reused |
//! | [`routing`] | bodies → admitted jobs on a tier's queue |
//! | [`batching`] | waiting sequences → the next step's plan |
//! | [`engine`] | a conversation → an answer |
//! | [`worker`] | a routed job → claim, engine, commit, reply, acknowledge |
//! | [`store`] | the ledger: Postgres, or a SQLite file |
//! | [`fleet`] | roles, opened in order and drained together |
//! | [`cli`] | what people type |
//!
//! Imports point one way only; `tests/architecture.rs` holds it. ARCHITECTURE.md tells the
//! invariants and what happens to one prompt.

pub mod affinity;
pub mod api;
pub mod batching;
pub mod bench;
pub mod broker;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod config;
pub mod console;
pub mod engine;
pub mod fleet;
pub mod job;
pub mod metrics;
pub mod prompt;
pub mod router;
pub mod scoring;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod worker;

pub use config::Config;
pub use fleet::{Fleet, Roles};
pub use job::{Job, JobId, JobRecord, JobState, Tier};
