//! Promptyard: a job queue, complexity router and batched inference for LLM prompts.
//!
//! Producers put prompts on a queue. A router sends each to a small or a large model by how much it
//! needs. Workers run the models on batches and escalate answers of low confidence to the large one.
//! Every answer ends, with its cost, as a row that analysts can query.
//!
//! ```text
//! any AMQP client ──┬─▶ jobs.in ─▶ router ─┬─▶ jobs.small ─▶ worker ─┬─▶ job database ─▶ analysts' views
//! OpenAI SDK ─▶ api ┘                      │                  │      ├─▶ reply queue
//!                                          │        low confidence   │
//!                                          │                  ▼      │
//!                                          ├─▶ jobs.large ─▶ worker ─┤
//!                                          └─ answer cache hit ──────┘
//! ```
//!
//! # Layout
//!
//! The modules from the bottom up; each imports only from lower rows (`tests/architecture.rs`):
//!
//! | module | purpose |
//! |---|---|
//! | [`job`] | what every stage shares: jobs, requests, answers, and their states |
//! | [`config`], [`metrics`], `telemetry`, `shutdown`, `clock` | settings, metrics, logs, graceful stop, time |
//! | [`scoring`] | prompt → features → score; training and evaluation of the scorer |
//! | [`broker`] | queues: RabbitMQ, or tables of a SQLite file |
//! | [`store`] | the job database: Postgres, or a SQLite file |
//! | [`prompt`] | messages → chat template → tokens, and back; clean-up and pruning |
//! | [`batching`] | waiting sequences → the next step's plan |
//! | `cache` | request → the key under which its answer may be reused |
//! | [`engine`] | conversation → answer, in this process or on a server |
//! | `affinity` | prompt prefix → the worker whose prefix cache has it |
//! | [`router`] | bodies → admitted jobs on a tier's queue |
//! | `api` | HTTP requests → jobs on the queue, and their answers |
//! | `worker` | routed job → claim, generate, commit, reply, acknowledge |
//! | [`fleet`] | starts roles in order and drains them together |
//! | [`console`], `bench`, [`cli`] | the command line: shared parts, benchmarks, commands |
//!
//! ARCHITECTURE.md has the invariants and the path of one prompt.

mod affinity;
mod api;
pub mod batching;
mod bench;
pub mod broker;
mod cache;
pub mod cli;
mod clock;
pub mod config;
#[doc(hidden)]
pub mod console;
pub mod engine;
pub mod fleet;
pub mod job;
pub mod metrics;
pub mod prompt;
pub mod router;
pub mod scoring;
mod shutdown;
pub mod store;
mod telemetry;
mod worker;

pub use broker::Broker;
pub use config::Config;
pub use fleet::{Fleet, Roles};
pub use job::{Job, JobId, JobRecord, JobState, Tier};
pub use shutdown::Shutdown;
pub use store::Store;
