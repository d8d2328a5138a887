//! The upstream engine against a small server that answers as real ones do.
#![expect(
    clippy::unwrap_used,
    reason = "a test whose server does not start fails"
)]

#[path = "engine_upstream/load.rs"]
mod load;
#[path = "engine_upstream/log.rs"]
mod log;
#[path = "engine_upstream/server.rs"]
mod server;
#[path = "engine_upstream/stream.rs"]
mod stream;
#[path = "engine_upstream/whole.rs"]
mod whole;
