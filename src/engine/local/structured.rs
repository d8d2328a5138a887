//! Structured outputs: answers in JSON, or valid under a JSON schema.
//!
//! Before each token, a grammar computes which tokens may follow; the sampler chooses among them.
//! Each sequence has its own grammar. Without the feature `structured`, such requests are rejected.

#[cfg(not(feature = "structured"))]
mod absent;
#[cfg(feature = "structured")]
mod guided;
mod state;

#[cfg(not(feature = "structured"))]
pub(super) use absent::{Grammar, GrammarCompiler};
#[cfg(feature = "structured")]
pub(super) use guided::{Grammar, GrammarCompiler};
pub(super) use state::GrammarState;
