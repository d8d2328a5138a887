//! The bytes of each token of a vocabulary.
//!
//! Tokenizers encode bytes as text in two ways: byte-level BPE maps each of the 256 bytes to a
//! printable character (GPT-2's table); byte fallback writes unknown ones as `<0x0A>` and spaces as `▁`
//! (SentencePiece). The decoder in `tokenizer.json` shows which one is used.

use serde_json::Value;
use tokenizers::Tokenizer;

/// The bytes of all tokens, concatenated.
#[derive(Debug)]
pub(super) struct Spelling {
    bytes: Vec<u8>,
    /// End offset of each token.
    ends: Vec<usize>,
    /// Special tokens, which produce no text.
    special: Vec<u32>,
    /// Spaces that decoding removes at the start of a text; `None` if the decoder does more than
    /// concatenate bytes.
    leading_spaces: Option<usize>,
}

/// How a tokenizer encodes bytes as text.
#[derive(Debug)]
enum Alphabet {
    ByteLevel,
    /// Also used for tokenizers without bytes: a word is its own text, except for the space marker.
    Words {
        space: Option<char>,
    },
}

impl Spelling {
    /// Computes the bytes of every token.
    pub(super) fn of(tokenizer: &Tokenizer, tokens: usize) -> Self {
        let decoder = tokenizer.get_decoder().map(serde_json::to_value);
        let decoder = decoder.and_then(Result::ok).unwrap_or_default();
        let (alphabet, leading_spaces) = read_decoder(&decoder);
        let added = tokenizer.get_added_tokens_decoder();
        let mut spelling = Self {
            bytes: Vec::new(),
            ends: Vec::with_capacity(tokens),
            special: Vec::new(),
            leading_spaces,
        };
        for token in 0..tokens as u32 {
            match (added.get(&token), tokenizer.id_to_token(token)) {
                (Some(added), _) if added.special => {
                    spelling.bytes.extend_from_slice(added.content.as_bytes());
                    spelling.special.push(token);
                }
                (_, Some(word)) => alphabet.spell(&word, &mut spelling.bytes),
                (_, None) => {}
            }
            spelling.ends.push(spelling.bytes.len());
        }
        spelling
    }

    /// Spaces that decoding removes at the start of a text; `None` if a text is more than its tokens'
    /// bytes.
    pub(super) fn leading_spaces(&self) -> Option<usize> {
        self.leading_spaces
    }

    /// A token's bytes; empty for an unknown token.
    pub(super) fn bytes(&self, token: u32) -> &[u8] {
        let token = token as usize;
        let Some(end) = self.ends.get(token) else {
            return &[];
        };
        let from = token.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[from..*end]
    }

    /// True for a special token.
    pub(super) fn is_special(&self, token: u32) -> bool {
        self.special.binary_search(&token).is_ok()
    }
}

/// The byte encoding of a decoder and the leading spaces it removes; `None` if it does anything else.
fn read_decoder(decoder: &Value) -> (Alphabet, Option<usize>) {
    let parts = match decoder["type"].as_str() {
        Some("Sequence") => decoder["decoders"].as_array().cloned().unwrap_or_default(),
        _ => vec![decoder.clone()],
    };
    let kind = |part: &Value| part["type"].as_str().unwrap_or_default().to_owned();
    if parts.iter().any(|part| kind(part) == "ByteLevel") {
        return (Alphabet::ByteLevel, (parts.len() == 1).then_some(0));
    }
    let (mut space, mut leading, mut is_plain) = (None, 0, true);
    for part in &parts {
        match kind(part).as_str() {
            "Metaspace" => {
                space = first_char(&part["replacement"]);
                leading = usize::from(part["prepend_scheme"] != "never");
            }
            "Replace" if part["content"] == " " => {
                space = first_char(&part["pattern"]["String"]);
            }
            "Strip" if part["content"] == " " && part["stop"] == 0 => {
                leading = part["start"].as_u64().unwrap_or(0) as usize;
            }
            "ByteFallback" | "Fuse" => {}
            _ => is_plain = false,
        }
    }
    (Alphabet::Words { space }, is_plain.then_some(leading))
}

impl Alphabet {
    fn spell(&self, word: &str, bytes: &mut Vec<u8>) {
        let from = bytes.len();
        match self {
            Self::ByteLevel => {
                for letter in word.chars() {
                    let Some(byte) = byte_of(letter) else {
                        // The decoder copies such a word unchanged.
                        bytes.truncate(from);
                        bytes.extend_from_slice(word.as_bytes());
                        return;
                    };
                    bytes.push(byte);
                }
            }
            Self::Words { space } => {
                let hex = word.strip_prefix("<0x").and_then(|w| w.strip_suffix('>'));
                let byte = hex.filter(|hex| hex.len() == 2);
                if let Some(Ok(byte)) = byte.map(|hex| u8::from_str_radix(hex, 16)) {
                    bytes.push(byte);
                    return;
                }
                for letter in word.chars() {
                    let letter = if Some(letter) == *space { ' ' } else { letter };
                    bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
                }
            }
        }
    }
}

fn first_char(text: &Value) -> Option<char> {
    text.as_str()?.chars().next()
}

/// The byte that a character of the byte-level alphabet encodes: printable Latin-1 characters encode
/// themselves, the remaining bytes follow in order from U+0100.
fn byte_of(letter: char) -> Option<u8> {
    let is_own = |letter: u32| matches!(letter, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let code = u32::from(letter);
    if is_own(code) {
        return u8::try_from(code).ok();
    }
    let nth = code.checked_sub(0x100)? as usize;
    (0..=255_u8)
        .filter(|byte| !is_own(u32::from(*byte)))
        .nth(nth)
}

#[cfg(test)]
mod tests {
    use crate::prompt::{Specials, Vocabulary};

    fn spelt(vocabulary: &Vocabulary, text: &str) -> Vec<u8> {
        let tokens = vocabulary.encode(text, Specials::Written).expect("encodes");
        let bytes = tokens.iter().map(|token| vocabulary.token_bytes(*token));
        bytes.collect::<Vec<_>>().concat()
    }

    #[test]
    fn token_bytes_concatenate_to_the_text() {
        let json = include_bytes!("../../tests/fixtures/models/tiny-llama/tokenizer.json");
        let vocabulary = Vocabulary::from_json(json).expect("the fixture is a tokenizer");
        let text = "naïve café\n\t 日本語 🙂 \u{7f}\u{a0}\u{ad}";
        assert_eq!(spelt(&vocabulary, text), text.as_bytes());
        let end = vocabulary
            .encode("<|eot_id|>", Specials::Written)
            .expect("encodes");
        assert!(vocabulary.is_special(end[0]));
        assert_eq!(vocabulary.token_bytes(end[0]), b"<|eot_id|>");
        assert_eq!(vocabulary.token_bytes(384), b"");
    }

    #[test]
    fn fallback_bytes_and_spaces_are_decoded() {
        let vocabulary = crate::prompt::detokenizer::tests::words();
        let text = " to be ü🙂";
        // The tokenizer prepends a space, which decoding removes.
        assert_eq!(spelt(&vocabulary, "to be ü🙂"), text.as_bytes());
    }
}
