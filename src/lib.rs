//! promptyard: a marshalling yard for prompts.

pub mod api;
pub mod batching;
pub mod broker;
pub mod cache;
pub mod cli;
pub mod config;
pub mod engine;
pub mod fleet;
pub mod job;
pub mod metrics;
pub mod prompt;
pub mod routing;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod worker;
