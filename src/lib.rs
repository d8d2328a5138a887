//! promptyard: a marshalling yard for prompts.

pub mod config;
pub mod job;
pub mod metrics;
