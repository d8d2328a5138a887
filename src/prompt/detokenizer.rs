//! Incremental detokenization: the text of an answer as its tokens arrive, in whole characters.

use super::{PromptError, Vocabulary};

/// Turns tokens into text as they arrive and never emits part of a character.
///
/// With byte-level BPE and SentencePiece tokenizers a text is the concatenation of its tokens' bytes:
/// bytes are buffered until they form whole characters, and invalid ones become U+FFFD as in
/// [`String::from_utf8_lossy`]. With other decoders a window of tokens is decoded instead.
#[derive(Clone, Debug, Default)]
pub struct Detokenizer {
    tail: Tail,
    window: Window,
}

impl Detokenizer {
    /// Adds a token and returns the text that is now final.
    ///
    /// # Errors
    /// [`PromptError::Tokenizer`].
    pub fn push(&mut self, vocabulary: &Vocabulary, token: u32) -> Result<String, PromptError> {
        match vocabulary.leading_spaces() {
            Some(leading) => Ok(self.tail.push(vocabulary, token, leading)),
            None => self.window.push(vocabulary, token),
        }
    }

    /// Returns the rest at the end; an incomplete character becomes U+FFFD.
    ///
    /// # Errors
    /// [`PromptError::Tokenizer`].
    pub fn finish(&mut self, vocabulary: &Vocabulary) -> Result<String, PromptError> {
        match vocabulary.leading_spaces() {
            Some(_) => Ok(self.tail.finish()),
            None => self.window.finish(vocabulary),
        }
    }
}

/// Bytes that do not form a whole character yet, at most three.
#[derive(Clone, Debug, Default)]
struct Tail {
    bytes: Vec<u8>,
    /// Leading spaces removed so far.
    taken: usize,
    /// True once other text has followed.
    begun: bool,
}

impl Tail {
    fn push(&mut self, vocabulary: &Vocabulary, token: u32, leading: usize) -> String {
        if vocabulary.is_special(token) {
            return String::new();
        }
        let mut bytes = vocabulary.token_bytes(token);
        while !self.begun && !bytes.is_empty() {
            match bytes.strip_prefix(b" ") {
                Some(rest) if self.taken < leading => {
                    self.taken += 1;
                    bytes = rest;
                }
                _ => self.begun = true,
            }
        }
        self.bytes.extend_from_slice(bytes);
        self.give()
    }

    /// Takes the whole characters; an incomplete one stays buffered.
    fn give(&mut self) -> String {
        let mut text = String::new();
        let mut rest = self.bytes.as_slice();
        loop {
            let error = match str::from_utf8(rest) {
                Ok(whole) => {
                    text.push_str(whole);
                    rest = &[];
                    break;
                }
                Err(error) => error,
            };
            let (whole, after) = rest.split_at(error.valid_up_to());
            text.push_str(&String::from_utf8_lossy(whole));
            rest = after;
            let Some(stray) = error.error_len() else {
                break;
            };
            text.push(char::REPLACEMENT_CHARACTER);
            rest = &rest[stray..];
        }
        self.bytes = rest.to_vec();
        text
    }

    fn finish(&mut self) -> String {
        let bytes = std::mem::take(&mut self.bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// A window of tokens: those whose text is not final yet, and the ones before them.
///
/// A token may hold part of a character, and some tokenizers decode a token differently at the start
/// of a text. The window is therefore decoded with and without its newest token, and the difference is
/// emitted once it no longer ends in the replacement character, as in text-generation-inference and
/// vLLM.
#[derive(Clone, Debug, Default)]
struct Window {
    /// The first `shown` tokens were emitted already and only provide context.
    tokens: Vec<u32>,
    shown: usize,
}

impl Window {
    /// A character has at most four bytes, so the fifth token completes it.
    const CHARACTER_TOKENS: usize = 4;

    fn push(&mut self, vocabulary: &Vocabulary, token: u32) -> Result<String, PromptError> {
        self.tokens.push(token);
        let shown = vocabulary.decode(&self.tokens[..self.shown])?;
        let whole = vocabulary.decode(&self.tokens)?;
        let ends_whole = !whole.ends_with(char::REPLACEMENT_CHARACTER);
        if ends_whole && whole.len() > shown.len() {
            return self.give(vocabulary, self.tokens.len(), &shown, whole);
        }
        // Invalid bytes must not hold back the rest forever.
        let held = self.tokens.len() - self.shown;
        if !ends_whole && held > 2 * Self::CHARACTER_TOKENS {
            for back in Self::CHARACTER_TOKENS..held {
                let upto = self.tokens.len() - back;
                let settled = vocabulary.decode(&self.tokens[..upto])?;
                if whole.starts_with(&settled) {
                    return self.give(vocabulary, upto, &shown, settled);
                }
            }
        }
        Ok(String::new())
    }

    fn finish(&mut self, vocabulary: &Vocabulary) -> Result<String, PromptError> {
        let shown = vocabulary.decode(&self.tokens[..self.shown])?;
        let whole = vocabulary.decode(&self.tokens)?;
        self.give(vocabulary, self.tokens.len(), &shown, whole)
    }

    /// Returns `text` (the first `upto` tokens decoded) without the part already emitted, and advances the
    /// window.
    fn give(
        &mut self,
        vocabulary: &Vocabulary,
        upto: usize,
        shown: &str,
        text: String,
    ) -> Result<String, PromptError> {
        let piece = match text.strip_prefix(shown) {
            Some(piece) => piece.to_owned(),
            // With byte fallback, an invalid byte turns the whole run of bytes before it into U+FFFD.
            // Emitted text stays; the rest is emitted as it is.
            None => vocabulary.decode(&self.tokens[self.shown..upto])?,
        };
        self.tokens.drain(..self.shown);
        self.shown = upto - self.shown;
        Ok(piece)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::prompt::Specials;

    fn vocabulary() -> Vocabulary {
        let json = include_bytes!("../../tests/fixtures/models/tiny-llama/tokenizer.json");
        Vocabulary::from_json(json).expect("the fixture is a tokenizer")
    }

    /// A tokenizer like those of Llama 2, Mistral and Gemma: `▁` for the space, byte fallback for unknown
    /// words.
    pub(in crate::prompt) fn words() -> Vocabulary {
        let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
        let words = ["▁", "t", "o", "b", "e", "é", "▁t", "▁to", "▁b", "▁be"];
        let words = words.iter().map(|word| (*word).to_owned());
        let named = ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter();
        let vocab: serde_json::Map<String, serde_json::Value> = named
            .chain(bytes)
            .chain(words)
            .zip(0..)
            .map(|(word, token)| (word, token.into()))
            .collect();
        let special = |id: u32, content: &str| {
            serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        };
        let space = serde_json::json!({"String": "▁"});
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "pre_tokenizer": null,
            "post_processor": null,
            "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": space, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>",
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
                "byte_fallback": true, "ignore_merges": false, "vocab": vocab,
                "merges": ["▁ t", "▁t o", "▁ b", "▁b e"]}
        });
        Vocabulary::from_json(json.to_string().as_bytes()).expect("a tokenizer")
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
    fn special_tokens_leave_no_text() {
        let vocabulary = vocabulary();
        let tokens = vocabulary
            .encode("a<|eot_id|>b", Specials::Written)
            .expect("encodes");
        assert_eq!(pieces(&vocabulary, &tokens).concat(), "ab");
    }

    #[test]
    fn invalid_bytes_are_emitted_after_a_few_tokens() {
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
            assert!(detokenizer.tail.bytes.len() < 4, "what is held is bounded");
        }
        given += &detokenizer.finish(&vocabulary).expect("decodes");
        assert_eq!(given, "\u{fffd}".repeat(200));
    }

    /// A decoder that does more than concatenate bytes: every word ends in a marker.
    #[test]
    fn other_decoders_use_a_window() {
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
            "decoder": {"type": "BPEDecoder", "suffix": "</w>"},
            "model": {"type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": "</w>", "fuse_unk": false,
                "byte_fallback": false, "ignore_merges": false, "merges": [],
                "vocab": {"t": 0, "o": 1, "o</w>": 2, "é</w>": 3}}
        });
        let vocabulary = Vocabulary::from_json(json.to_string().as_bytes()).expect("a tokenizer");
        assert_eq!(vocabulary.leading_spaces(), None);
        let tokens = vocabulary
            .encode("to to é", Specials::Written)
            .expect("encodes");
        let whole = vocabulary.decode(&tokens).expect("decodes");
        assert_eq!(pieces(&vocabulary, &tokens).concat(), whole);
        assert_eq!(whole, "to to é");
    }

    #[test]
    fn leading_space_of_the_tokenizer_is_removed() {
        let vocabulary = words();
        let tokens = vocabulary
            .encode("to be é🙂 t", Specials::Written)
            .expect("encodes");
        let pieces = pieces(&vocabulary, &tokens);
        assert_eq!(pieces.concat(), "to be é🙂 t");
        assert_eq!(pieces[..2], ["to", " be"]);
    }

    proptest! {
        #[test]
        fn words_and_fallback_bytes_come_out_whole(text in "[tobe é🙂ü日\u{fffd}\n]{0,30}") {
            let vocabulary = words();
            let tokens = vocabulary.encode(&text, Specials::Written).expect("encodes");
            let pieces = pieces(&vocabulary, &tokens);
            prop_assert_eq!(pieces.concat(), vocabulary.decode(&tokens).expect("decodes"));
            prop_assert_eq!(pieces.concat(), text.clone());
            let halves = pieces.iter().any(|piece| piece.contains(char::REPLACEMENT_CHARACTER));
            prop_assert_eq!(halves, text.contains(char::REPLACEMENT_CHARACTER));
        }

        /// The library's decoder withdraws whole characters when an invalid byte follows; emitted text stays.
        #[test]
        fn invalid_fallback_bytes_lose_nothing_else(tokens in prop::collection::vec(3u32..269, 0..60)) {
            let vocabulary = words();
            let given = pieces(&vocabulary, &tokens).concat();
            let whole = vocabulary.decode(&tokens).expect("decodes");
            if !whole.contains(char::REPLACEMENT_CHARACTER) {
                prop_assert_eq!(&given, &whole);
            }
            let bytes = tokens.iter().map(|token| vocabulary.token_bytes(*token));
            let bytes = bytes.collect::<Vec<_>>().concat();
            let bytes = bytes.strip_prefix(b" ").unwrap_or(&bytes);
            prop_assert_eq!(given, String::from_utf8_lossy(bytes));
        }

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
        fn any_tokens_give_the_text_of_decoding_them_at_once(tokens in prop::collection::vec(0u32..384, 0..80)) {
            let vocabulary = vocabulary();
            prop_assert_eq!(pieces(&vocabulary, &tokens).concat(), vocabulary.decode(&tokens).expect("decodes"));
        }
    }
}
