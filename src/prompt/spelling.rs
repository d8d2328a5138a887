//! How each token of a vocabulary is spelt in bytes.
//!
//! Tokenizers write bytes as text in two ways: byte-level BPE maps each of the 256 to a printable
//! character (GPT-2's table), byte fallback writes those it has no word for as `<0x0A>` and spaces
//! as `▁` (SentencePiece). The decoder of `tokenizer.json` tells which it is.

use serde_json::Value;
use tokenizers::Tokenizer;

/// The bytes of every token, one after another.
#[derive(Debug)]
pub(super) struct Spelling {
    bytes: Vec<u8>,
    /// Where each token ends.
    ends: Vec<usize>,
    /// Tokens that are no text: those of the chat template, of beginnings and ends.
    special: Vec<u32>,
    /// Spaces that decoding takes away at the beginning of a text; `None` where the decoder does
    /// more than put bytes together, so that they are not the whole truth.
    leading_spaces: Option<usize>,
}

/// The alphabet of a tokenizer.
#[derive(Debug)]
enum Alphabet {
    ByteLevel,
    /// Also of tokenizers without bytes: a word is its own text, but for the letter of the space.
    Words {
        space: Option<char>,
    },
}

impl Spelling {
    /// Spells every token out.
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

    /// Spaces that decoding takes away at the beginning of a text; `None` where a text is more than
    /// its tokens' bytes.
    pub(super) fn leading_spaces(&self) -> Option<usize> {
        self.leading_spaces
    }

    /// A token's bytes; none of a token that is not there.
    pub(super) fn bytes(&self, token: u32) -> &[u8] {
        let token = token as usize;
        let Some(end) = self.ends.get(token) else {
            return &[];
        };
        let from = token.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[from..*end]
    }

    /// True for a token that is no text.
    pub(super) fn is_special(&self, token: u32) -> bool {
        self.special.binary_search(&token).is_ok()
    }
}

/// A decoder's alphabet, and the spaces that it takes away at a text's beginning, where it does
/// nothing else besides.
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
                        // The decoder takes such a word as it stands.
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

/// The byte that a letter of the byte-level alphabet stands for: printable ones of Latin-1 for
/// themselves, the others, in order, as the letters from U+0100 on.
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
    fn tokens_spell_what_they_were_made_of() {
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
    fn words_and_fallback_bytes_are_spelt_with_spaces() {
        let vocabulary = crate::prompt::detokenizer::tests::words();
        let text = " to be ü🙂";
        // The tokenizer puts a space before the text, which decoding takes away again.
        assert_eq!(spelt(&vocabulary, "to be ü🙂"), text.as_bytes());
    }
}
