//! Tokenization: text to tokens and back.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use tokenizers::Tokenizer;

use super::{PromptError, spelling::Spelling};

/// Where the special tokens of a prompt come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// Added by the tokenizer, as for plain text.
    Add,
    /// Already in the text.
    Written,
}

/// A model's tokenizer. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct Vocabulary(Arc<Inner>);

struct Inner {
    tokenizer: Tokenizer,
    /// Computed on first use.
    spelling: OnceLock<Spelling>,
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Vocabulary({} tokens)",
            self.0.tokenizer.get_vocab_size(true)
        )
    }
}

impl Vocabulary {
    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// [`PromptError::BadFile`] when it cannot be parsed.
    pub fn from_json(json: &[u8]) -> Result<Self, PromptError> {
        let bad = |error| PromptError::BadFile(format!("tokenizer.json cannot be parsed: {error}"));
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(bad)?;
        // Training-time settings: a prompt must never be truncated or padded.
        tokenizer.with_truncation(None).map_err(bad)?;
        tokenizer.with_padding(None);
        Ok(Self(Arc::new(Inner {
            tokenizer,
            spelling: OnceLock::new(),
        })))
    }

    /// The tokens of a text.
    ///
    /// # Errors
    /// [`PromptError::Tokenizer`].
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>, PromptError> {
        let encoding = self
            .0
            .tokenizer
            .encode_fast(text, specials == Specials::Add)
            .map_err(|error| PromptError::Tokenizer(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The number of tokens of a text.
    ///
    /// # Errors
    /// [`PromptError::Tokenizer`].
    pub fn count(&self, text: &str, specials: Specials) -> Result<usize, PromptError> {
        self.encode(text, specials).map(|tokens| tokens.len())
    }

    /// The text of tokens without special tokens; invalid UTF-8 becomes U+FFFD.
    ///
    /// # Errors
    /// [`PromptError::Tokenizer`].
    pub fn decode(&self, tokens: &[u32]) -> Result<String, PromptError> {
        // Some decoders panic on empty input.
        if tokens.is_empty() {
            return Ok(String::new());
        }
        self.0
            .tokenizer
            .decode(tokens, true)
            .map_err(|error| PromptError::Tokenizer(error.to_string()))
    }

    /// The largest token id, plus one.
    pub fn len(&self) -> usize {
        let vocabulary = self.0.tokenizer.get_vocab(true);
        vocabulary
            .values()
            .max()
            .map_or(0, |last| *last as usize + 1)
    }

    /// A token's bytes, possibly part of a character; empty for an unknown token.
    pub fn token_bytes(&self, token: u32) -> &[u8] {
        self.spelling().bytes(token)
    }

    /// True for a special token, which produces no text.
    pub fn is_special(&self, token: u32) -> bool {
        self.spelling().is_special(token)
    }

    /// Spaces that decoding removes at the start of a text; `None` if a text is more than its tokens'
    /// bytes.
    pub(super) fn leading_spaces(&self) -> Option<usize> {
        self.spelling().leading_spaces()
    }

    fn spelling(&self) -> &Spelling {
        let make = || Spelling::of(&self.0.tokenizer, self.len());
        self.0.spelling.get_or_init(make)
    }

    /// True if the vocabulary is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_round_trips() {
        let json = include_bytes!("../../tests/fixtures/models/tiny-llama/tokenizer.json");
        let vocabulary = Vocabulary::from_json(json).expect("the fixture is a tokenizer");
        let text = "naïve café 日本語 🙂";
        let tokens = vocabulary.encode(text, Specials::Written).expect("encodes");
        assert_eq!(vocabulary.decode(&tokens).as_deref(), Ok(text));
        assert_eq!(vocabulary.count(text, Specials::Add), Ok(tokens.len() + 1));
        assert_eq!(vocabulary.len(), 384);
    }
}
