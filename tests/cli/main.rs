//! Commands that need no server, and files that must fit the binary: help texts, examples, compose
//! files, dashboards, the fuzz corpus.
#![expect(clippy::unwrap_used, reason = "tests")]

mod compose;
mod examples;
mod fuzz_corpus;
mod interface;
mod observability;
mod router;
#[expect(dead_code, reason = "other test binaries use the rest")]
#[path = "../support/mod.rs"]
mod support;
