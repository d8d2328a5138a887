//! Suites that every broker and every database pass: what [`promptyard::broker::Broker`] and
//! [`promptyard::store::Store`] promise, and which requests may share an answer.
#![expect(clippy::unwrap_used, reason = "tests")]

mod broker;
mod reuse;
mod store;
#[expect(dead_code, reason = "other test binaries use the rest")]
#[path = "../support/mod.rs"]
mod support;
