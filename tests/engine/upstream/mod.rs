//! The upstream engine against a small server that answers as real ones do.

mod load;
mod log;
mod server;
mod stream;
mod whole;
