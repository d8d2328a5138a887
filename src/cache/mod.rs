//! Answers are reused.
//!
//! Comes in: a request and the model that would serve it. Goes out: the key under which an equal
//! request finds its answer ([`key`]). The entries themselves, with single flight, rest in the
//! ledger. A key never decides by likeness: only requests that must be answered alike share one.
//! [`semantic`] judges whether two texts ask the same; so far only `cache compare` asks it.

pub mod key;
pub mod semantic;

pub use key::cache_key;
