//! promptyard: a marshalling yard for prompts.

pub mod cache;
pub mod config;
pub mod job;
pub mod metrics;
pub mod shutdown;
pub mod store;
pub mod telemetry;
