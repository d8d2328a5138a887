//! Conversations become tokens, and tokens text again.
//!
//! Comes in: messages, and the tokenizer and chat template that a model carries. Goes out: the
//! conversation without what its producer allows to be left out ([`prepare`]), the prompt as the
//! model was trained to read it ([`ChatTemplate`]), its tokens and their number
//! ([`Vocabulary`]), and an answer's text, piece by piece ([`Detokenizer`]). It knows no model's
//! weights and does no I/O.

pub mod clean;
mod context;
mod detokenizer;
mod estimate;
pub mod prune;
mod spelling;
mod template;
mod vocabulary;

pub use context::{CONTEXT_RULES, Prepared, prepare};
pub use detokenizer::Detokenizer;
pub use estimate::estimate_tokens;
pub use template::{ChatTemplate, SpecialTokens};
pub use vocabulary::{Specials, Vocabulary};

/// Why a conversation cannot become a prompt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// The model's files cannot be used: no request can be served.
    #[error("{0}")]
    BadFile(String),
    /// The template refuses this conversation, in its own words.
    #[error("the model's chat template refuses the conversation: {0}")]
    Refused(String),
    /// The tokenizer fails on this text.
    #[error("the model's tokenizer fails: {0}")]
    Tokenizer(String),
}
