//! How many tokens a text is likely to have, without a tokenizer.

/// Letters of a word that one token holds, in English text under vocabularies of 50k to 150k.
const LETTERS_PER_TOKEN: usize = 6;
/// Digits of a number that one token holds.
const DIGITS_PER_TOKEN: usize = 3;

/// Estimates the tokens of a text by splitting it as byte-pair tokenizers first do (a word with the
/// space before it, three digits, a run of punctuation, a run of spaces, line ends) and counting one token for every
/// six letters of a word. Router and worker share it where no model's tokenizer is at hand.
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
            // Han, kana and hangul: about a token each.
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
    fn words_numbers_and_signs_count_as_tokenizers_count_them() {
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
