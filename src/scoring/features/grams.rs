//! Hashes of words and runs of words, and the shape of the requested answer.

use super::{
    Counts,
    text::{ParsedPrompt, Token, TokenKind},
};

/// Hash of up to three words in a row.
pub type Gram = u32;

/// Longest run of words.
const ORDER: usize = 3;
/// Letters of a word that are hashed, so that inflections share a gram.
const STEM_CHARS: usize = 5;
/// Numbers with more digits than this share a gram.
const DIGITS_MAX: usize = 6;
/// Start of the FNV-1a hash, 64 bits.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
/// Factor of the FNV-1a hash, 64 bits.
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// The shape of the requested answer. Words weigh differently in each: `calculate` before four choices
/// differs from `calculate` in a word problem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AnswerShape {
    /// No choices (0), up to five (1), more (2).
    pub choices: u8,
    /// Whether the choices are mostly figures.
    pub numeric: bool,
}

impl AnswerShape {
    /// The shape that the counts imply.
    pub fn of(counts: &Counts) -> Self {
        Self {
            choices: match counts.choices as u32 {
                0 => 0,
                1..=5 => 1,
                _ => 2,
            },
            numeric: counts.choice_digits > 0.25,
        }
    }
}

/// The distinct grams of a text, ascending.
pub fn of(seen: &ParsedPrompt<'_>) -> Vec<Gram> {
    let count = seen.tokens.len() + seen.tail_tokens.len();
    let mut grams = Vec::with_capacity(count * ORDER);
    add(seen.parts[0], &seen.tokens, &mut grams);
    add(seen.parts[1], &seen.tail_tokens, &mut grams);
    grams.sort_unstable();
    grams.dedup();
    grams
}

/// The gram of a caller's tag; it differs from every word's.
pub fn of_tag(tag: &str) -> Gram {
    let bytes = tag.bytes().fold(step(FNV_OFFSET, 0xff), step);
    finish(bytes)
}

fn add(text: &str, tokens: &[Token], grams: &mut Vec<Gram>) {
    let mut last = [0_u64; ORDER - 1];
    for (at, token) in tokens.iter().enumerate() {
        let word = hash(&text[token.start..token.end], token.kind);
        let mut run = word;
        grams.push(finish(run));
        for previous in last.iter().take(at) {
            run = step(run.rotate_left(17), 0xfe) ^ previous.wrapping_mul(FNV_PRIME);
            grams.push(finish(run));
        }
        last.rotate_right(1);
        last[0] = word;
    }
}

fn hash(word: &str, kind: TokenKind) -> u64 {
    match kind {
        TokenKind::Number => {
            let digits = word.bytes().filter(u8::is_ascii_digit).count();
            let is_decimal = word.contains('.');
            step(
                step(FNV_OFFSET, 0xfd),
                digits.min(DIGITS_MAX) as u8 | u8::from(is_decimal) << 4,
            )
        }
        TokenKind::Mark => word.bytes().fold(FNV_OFFSET, step),
        TokenKind::Word if word.is_ascii() => word
            .bytes()
            .take(STEM_CHARS)
            .map(|byte| byte.to_ascii_lowercase())
            .fold(FNV_OFFSET, step),
        TokenKind::Word => {
            let mut bytes = [0; 4];
            word.chars()
                .flat_map(char::to_lowercase)
                .take(STEM_CHARS)
                .fold(FNV_OFFSET, |hash, c| {
                    c.encode_utf8(&mut bytes).bytes().fold(hash, step)
                })
        }
    }
}

fn step(hash: u64, byte: u8) -> u64 {
    (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME)
}

/// Mixes 64 bits into 32 (MurmurHash3's finalizer).
fn finish(mut hash: u64) -> Gram {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    (hash >> 32) as u32
}

#[cfg(test)]
mod tests {
    use crate::scoring::features::grams::*;

    fn grams(text: &str) -> Vec<Gram> {
        of(&ParsedPrompt::of(text))
    }

    #[test]
    fn runs_of_up_to_three_words() {
        assert_eq!(grams("").len(), 0);
        assert_eq!(grams("one").len(), 1);
        assert_eq!(grams("one two").len(), 3);
        assert_eq!(grams("one two three").len(), 6);
        assert_eq!(grams("one two three four").len(), 9);
        assert_ne!(grams("one two"), grams("two one"));
    }

    #[test]
    fn case_inflection_and_figures_do_not_matter() {
        assert_eq!(grams("Calculate 37"), grams("calculating 52"));
        assert_ne!(grams("37"), grams("371"));
        assert_eq!(grams("Écoles"), grams("écoles"));
    }
}
