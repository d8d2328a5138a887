//! Conversations become tokens, and tokens text again.
//!
//! Comes in: messages, and the tokenizer and chat template of a model. Goes out: the cleaned or
//! pruned conversation, if its producer allows that ([`prepare`]), the rendered prompt
//! ([`ChatTemplate`]), its tokens ([`Vocabulary`]), and an answer's text piece by piece
//! ([`Detokenizer`]). It knows no model weights.

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
    /// The model's files are unusable, so that no request can be served.
    #[error("{0}")]
    BadFile(String),
    /// The template raised an exception for this conversation.
    #[error("the model's chat template rejects the conversation: {0}")]
    Refused(String),
    /// The tokenizer failed on this text.
    #[error("the model's tokenizer fails: {0}")]
    Tokenizer(String),
}
