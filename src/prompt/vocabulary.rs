//! Text to tokens and back.

use std::fmt;

use tokenizers::Tokenizer;

use super::PromptFault;

/// Where the special tokens of a prompt come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// The tokenizer adds its own, as at the beginning of plain text.
    Add,
    /// The text has them already.
    Written,
}

/// A model's tokenizer.
pub struct Vocabulary(Tokenizer);

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vocabulary({} tokens)", self.0.get_vocab_size(true))
    }
}

impl Vocabulary {
    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// [`PromptFault::BadFile`] when it is not understood.
    pub fn from_json(json: &[u8]) -> Result<Self, PromptFault> {
        let bad =
            |fault| PromptFault::BadFile(format!("tokenizer.json is not understood: {fault}"));
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(bad)?;
        // Training-time settings; a prompt must never be cut or filled up silently.
        tokenizer.with_truncation(None).map_err(bad)?;
        tokenizer.with_padding(None);
        Ok(Self(tokenizer))
    }

    /// The tokens of a text.
    ///
    /// # Errors
    /// [`PromptFault::Tokenizer`].
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>, PromptFault> {
        let encoding = self
            .0
            .encode_fast(text, specials == Specials::Add)
            .map_err(|fault| PromptFault::Tokenizer(fault.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The number of tokens of a text.
    ///
    /// # Errors
    /// [`PromptFault::Tokenizer`].
    pub fn count(&self, text: &str, specials: Specials) -> Result<usize, PromptFault> {
        self.encode(text, specials).map(|tokens| tokens.len())
    }

    /// The text of tokens, without special tokens; bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`PromptFault::Tokenizer`].
    pub fn decode(&self, tokens: &[u32]) -> Result<String, PromptFault> {
        self.0
            .decode(tokens, true)
            .map_err(|fault| PromptFault::Tokenizer(fault.to_string()))
    }

    /// The largest token id, plus one.
    pub fn len(&self) -> usize {
        let vocabulary = self.0.get_vocab(true);
        vocabulary
            .values()
            .max()
            .map_or(0, |last| *last as usize + 1)
    }

    /// True when there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Turns tokens into text as they arrive and never gives half a character away.
///
/// A token may hold part of a character, and some tokenizers spell a token differently at the
/// beginning of a text; so a window of tokens is decoded with and without the newest, and what the
/// newest adds is given once it no longer ends in the replacement character (text-generation-inference
/// and vLLM do the same).
#[derive(Clone, Debug, Default)]
pub struct Detokenizer {
    /// The window; the first `shown` of them are given already and only set the scene.
    window: Vec<u32>,
    shown: usize,
}

impl Detokenizer {
    /// A character has at most four bytes, so a fifth token decides it.
    const CHARACTER_TOKENS: usize = 4;

    /// Takes a token and gives the text that is certain now.
    ///
    /// # Errors
    /// [`PromptFault::Tokenizer`].
    pub fn push(&mut self, vocabulary: &Vocabulary, token: u32) -> Result<String, PromptFault> {
        self.window.push(token);
        let shown = vocabulary.decode(&self.window[..self.shown])?;
        let whole = vocabulary.decode(&self.window)?;
        let ends_whole = !whole.ends_with(char::REPLACEMENT_CHARACTER);
        if ends_whole && whole.len() > shown.len() {
            return Ok(self.give(self.window.len(), &shown, whole));
        }
        // Bytes that never become a character must not hold the rest back for ever.
        let held = self.window.len() - self.shown;
        if !ends_whole && held > 2 * Self::CHARACTER_TOKENS {
            for back in Self::CHARACTER_TOKENS..held {
                let upto = self.window.len() - back;
                let settled = vocabulary.decode(&self.window[..upto])?;
                if whole.starts_with(&settled) {
                    return Ok(self.give(upto, &shown, settled));
                }
            }
        }
        Ok(String::new())
    }

    /// Gives what is left at the end; half a character becomes U+FFFD.
    ///
    /// # Errors
    /// [`PromptFault::Tokenizer`].
    pub fn finish(&mut self, vocabulary: &Vocabulary) -> Result<String, PromptFault> {
        let shown = vocabulary.decode(&self.window[..self.shown])?;
        let whole = vocabulary.decode(&self.window)?;
        Ok(self.give(self.window.len(), &shown, whole))
    }

    /// Gives `text` (the decoded first `upto` tokens) less what was shown, and moves the window on.
    fn give(&mut self, upto: usize, shown: &str, text: String) -> String {
        let piece = text.get(shown.len()..).unwrap_or_default().to_owned();
        self.window.drain(..self.shown);
        self.shown = upto - self.shown;
        piece
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vocabulary() -> Vocabulary {
        let json = include_bytes!("../../tests/fixtures/models/tiny-llama/tokenizer.json");
        Vocabulary::from_json(json).expect("the fixture is a tokenizer")
    }

    fn pieces(vocabulary: &Vocabulary, tokens: &[u32]) -> Vec<String> {
        let mut detokenizer = Detokenizer::default();
        let mut pieces: Vec<_> = tokens
            .iter()
            .map(|token| detokenizer.push(vocabulary, *token).expect("decodes"))
            .collect();
        pieces.push(detokenizer.finish(vocabulary).expect("decodes"));
        pieces
    }

    #[test]
    fn counts_and_returns_what_was_written() {
        let vocabulary = vocabulary();
        let text = "naïve café 日本語 🙂";
        let tokens = vocabulary.encode(text, Specials::Written).expect("encodes");
        assert_eq!(vocabulary.decode(&tokens).as_deref(), Ok(text));
        assert_eq!(vocabulary.count(text, Specials::Add), Ok(tokens.len() + 1));
        assert_eq!(vocabulary.len(), 384);
    }

    #[test]
    fn special_tokens_leave_no_text() {
        let vocabulary = vocabulary();
        let tokens = vocabulary
            .encode("a<|eot_id|>b", Specials::Written)
            .expect("encodes");
        assert_eq!(pieces(&vocabulary, &tokens).concat(), "ab");
    }

    #[test]
    fn bytes_that_never_become_a_character_are_given_after_a_few_tokens() {
        let vocabulary = vocabulary();
        let json: serde_json::Value = serde_json::from_slice(include_bytes!(
            "../../tests/fixtures/models/tiny-llama/tokenizer.json"
        ))
        .expect("JSON");
        // Byte 0x80, a continuation byte, in the byte-level alphabet.
        let stray = json["model"]["vocab"]["Ģ"]
            .as_u64()
            .expect("every byte is a token") as u32;
        let mut detokenizer = Detokenizer::default();
        let mut given = String::new();
        for _ in 0..200 {
            given += &detokenizer.push(&vocabulary, stray).expect("decodes");
            assert!(detokenizer.window.len() < 40, "the window is bounded");
        }
        given += &detokenizer.finish(&vocabulary).expect("decodes");
        assert_eq!(given, "\u{fffd}".repeat(200));
    }

    proptest! {
        #[test]
        fn text_comes_out_whole_and_in_whole_characters(text in "\\PC{0,40}") {
            let vocabulary = vocabulary();
            let tokens = vocabulary.encode(&text, Specials::Written).expect("encodes");
            let pieces = pieces(&vocabulary, &tokens);
            prop_assert_eq!(pieces.concat(), vocabulary.decode(&tokens).expect("decodes"));
            let halves = pieces.iter().any(|piece| piece.contains(char::REPLACEMENT_CHARACTER));
            prop_assert_eq!(halves, text.contains(char::REPLACEMENT_CHARACTER));
        }

        #[test]
        fn any_tokens_give_the_text_that_decoding_them_at_once_gives(tokens in prop::collection::vec(0u32..384, 0..80)) {
            let vocabulary = vocabulary();
            prop_assert_eq!(pieces(&vocabulary, &tokens).concat(), vocabulary.decode(&tokens).expect("decodes"));
        }
    }
}
