//! The engines: the local one on tiny checkpoints, against Hugging Face transformers and against
//! itself; the upstream one against a small server; the embedder and the chat templates.
#![expect(clippy::unwrap_used, reason = "tests")]

mod chat_templates;
mod checkpoints;
mod device;
mod embedder;
mod generation;
mod local;
mod numerics;
mod prefix;
#[expect(dead_code, reason = "other test binaries use the rest")]
#[path = "../support/mod.rs"]
mod support;
mod upstream;
