//! Reuse of answers.
//!
//! Comes in: a request and the model that would serve it. Goes out: the key under which an equal
//! request finds its answer ([`key`]). The entries themselves and single flight are in the
//! database. Only requests that must be answered alike share a key; similarity never decides. [`semantic`]
//! finds paraphrases, for requests that allow it.

pub mod key;
pub mod semantic;

pub use key::{cache_key, question_of, scope_key};
