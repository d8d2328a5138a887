//! Answers that must be JSON, or what a JSON schema describes.
//!
//! A grammar tells, before each token, which tokens may come next; the sampler chooses among them.
//! Each sequence has a grammar of its own, so none influences another. Without the feature
//! `structured` a request for such an answer is refused.

#[cfg(not(feature = "structured"))]
mod absent;
#[cfg(feature = "structured")]
mod guided;

#[cfg(not(feature = "structured"))]
pub(super) use absent::{Grammar, Grammars};
#[cfg(feature = "structured")]
pub(super) use guided::{Grammar, Grammars};

/// How an answer stands to its grammar after a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// More may or must come.
    Open,
    /// Nothing can be added: the answer is whole.
    Whole,
    /// The grammar became too large to go on with.
    Stuck,
}
