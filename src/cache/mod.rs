//! Answers are reused.
//!
//! Comes in: a request and the model that would serve it. Goes out: the key under which an equal
//! request finds its answer ([`key`]). The entries themselves, with single flight, rest in the
//! ledger. It never decides by likeness: only requests that must be answered alike share a key.

pub mod key;

pub use key::cache_key;
