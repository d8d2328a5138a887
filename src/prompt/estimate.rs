//! Estimates the number of tokens of a text without a tokenizer.

/// Letters per token within a word, for English text and vocabularies of 50k to 150k tokens.
const LETTERS_PER_TOKEN: usize = 6;
/// Digits per token within a number.
const DIGITS_PER_TOKEN: usize = 3;

/// Estimates the number of tokens of a text: splits it like the pre-tokenizer of byte-pair encoders
/// (a word with the space before it, three digits, runs of punctuation, spaces and line ends) and counts
/// one token for every six letters of a word. Used where no model's tokenizer is available.
pub fn estimate_tokens(text: &str) -> usize {
    let mut tokens = 0;
    let mut characters = text.chars().peekable();
    while let Some(first) = characters.next() {
        let class = Class::of(first);
        let mut length = 1;
        while let Some(next) = characters.peek() {
            if Class::of(*next) != class {
                break;
            }
            characters.next();
            length += 1;
        }
        tokens += match class {
            Class::Letter => usize::div_ceil(length, LETTERS_PER_TOKEN),
            // Han, kana and hangul: about one token per character.
            Class::Ideograph => length,
            Class::Digit => usize::div_ceil(length, DIGITS_PER_TOKEN),
            Class::Sign => usize::div_ceil(length, 2),
            // A single space belongs to the word that follows.
            Class::Space => usize::from(length > 1),
            Class::Newline => 1,
        };
    }
    tokens
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Ideograph,
    Digit,
    Sign,
    Space,
    Newline,
}

impl Class {
    fn of(character: char) -> Self {
        match character {
            '\n' | '\r' => Self::Newline,
            c if c.is_whitespace() => Self::Space,
            c if c.is_numeric() => Self::Digit,
            '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{ac00}'..='\u{d7af}' => {
                Self::Ideograph
            }
            c if c.is_alphabetic() => Self::Letter,
            _ => Self::Sign,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_are_close_to_tokenizers() {
        for (text, tokens) in [
            ("", 0),
            ("Hello world", 2),
            ("a, b", 3),
            ("internationalization", 4),
            ("1234567", 3),
            ("{\"a\":1}", 5),
            ("line\n    indented", 5),
            ("日本語", 3),
        ] {
            assert_eq!(estimate_tokens(text), tokens, "{text:?}");
        }
    }
}
