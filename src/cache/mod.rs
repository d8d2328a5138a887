//! Answers are reused.
//!
//! Comes in: a request and the model that would serve it. Goes out: the key under which an equal
//! request finds its answer ([`key`]). The entries themselves, with single flight, rest in the
//! ledger. A key never decides by likeness: only requests that must be answered alike share one.
//! [`semantic`] finds and judges questions that ask the same in other words, for requests that allow it.

pub mod key;
pub mod semantic;

pub use key::{cache_key, question_of, scope_key};
