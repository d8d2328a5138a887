//! Text to tokens and back.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use tokenizers::Tokenizer;

use super::{PromptError, spelling::Spelling};

/// Where the special tokens of a prompt come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// The tokenizer adds its own, as at the beginning of plain text.
    Add,
    /// The text has them already.
    Written,
}

/// A model's tokenizer. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct Vocabulary(Arc<Inner>);

struct Inner {
    tokenizer: Tokenizer,
    /// Made when it is first asked for.
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
    /// [`PromptError::BadFile`] when it is not understood.
    pub fn from_json(json: &[u8]) -> Result<Self, PromptError> {
        let bad =
            |error| PromptError::BadFile(format!("tokenizer.json is not understood: {error}"));
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(bad)?;
        // Training-time settings; a prompt must never be cut or filled up silently.
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

    /// The text of tokens, without special tokens; bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`PromptError::Tokenizer`].
    pub fn decode(&self, tokens: &[u32]) -> Result<String, PromptError> {
        // Some decoders panic where there is nothing to decode.
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

    /// A token's bytes: a character may be spread over several tokens. None of a token that is not
    /// there.
    pub fn token_bytes(&self, token: u32) -> &[u8] {
        self.spelling().bytes(token)
    }

    /// True for a token that is no text, as those of beginnings and ends.
    pub fn is_special(&self, token: u32) -> bool {
        self.spelling().is_special(token)
    }

    /// Spaces that decoding takes away at the beginning of a text; `None` where a text is more than
    /// its tokens' bytes.
    pub(super) fn leading_spaces(&self) -> Option<usize> {
        self.spelling().leading_spaces()
    }

    fn spelling(&self) -> &Spelling {
        let make = || Spelling::of(&self.0.tokenizer, self.len());
        self.0.spelling.get_or_init(make)
    }

    /// True when there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_returns_what_was_written() {
        let json = include_bytes!("../../tests/fixtures/models/tiny-llama/tokenizer.json");
        let vocabulary = Vocabulary::from_json(json).expect("the fixture is a tokenizer");
        let text = "naïve café 日本語 🙂";
        let tokens = vocabulary.encode(text, Specials::Written).expect("encodes");
        assert_eq!(vocabulary.decode(&tokens).as_deref(), Ok(text));
        assert_eq!(vocabulary.count(text, Specials::Add), Ok(tokens.len() + 1));
        assert_eq!(vocabulary.len(), 384);
    }
}
