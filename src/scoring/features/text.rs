//! A text cut into what the counts and the hashes read: tokens, a question, answer choices.

use std::ops::Range;

/// Bytes read of the beginning of a text.
const HEAD_BYTES: usize = 6 << 10;
/// Bytes read of the end of a text that is longer than head and tail.
const TAIL_BYTES: usize = 2 << 10;

/// What kind of token it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A run of letters, with apostrophes within.
    Word,
    /// A run of digits, with points and commas within.
    Number,
    /// Any other character that is not white space.
    Mark,
}

/// A token: its kind and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its kind.
    pub kind: Kind,
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

/// The part of a text that is read, and how it divides.
#[derive(Debug)]
pub struct Seen<'a> {
    /// Bytes of the whole text.
    pub bytes: usize,
    /// PromptPrefix and end of the text.
    pub parts: [&'a str; 2],
    /// Tokens of the first part.
    pub tokens: Vec<Token>,
    /// Tokens of the second part.
    pub tail_tokens: Vec<Token>,
    /// The first part up to the first answer choice.
    pub question: &'a str,
    /// Lines that open an answer choice, without their label.
    pub choices: Vec<&'a str>,
}

impl<'a> Seen<'a> {
    /// Reads a text.
    pub fn of(text: &'a str) -> Self {
        let (head, tail) = if text.len() <= HEAD_BYTES + TAIL_BYTES {
            (text, "")
        } else {
            let head = text.floor_char_boundary(HEAD_BYTES);
            let tail = text.floor_char_boundary(text.len() - TAIL_BYTES);
            (&text[..head], &text[tail..])
        };
        let mut choices = Vec::new();
        let mut question = head.len();
        let mut start = 0;
        for line in head.split('\n') {
            if let Some(choice) = choice_of(line) {
                question = question.min(start);
                choices.push(choice);
            }
            start += line.len() + 1;
        }
        choices.extend(tail.split('\n').filter_map(choice_of));
        Self {
            bytes: text.len(),
            parts: [head, tail],
            tokens: tokens(head),
            tail_tokens: tokens(tail),
            question: &head[..question],
            choices,
        }
    }

    /// Tokens of the question.
    pub fn question_tokens(&self) -> &[Token] {
        let end = self
            .tokens
            .partition_point(|token| token.end <= self.question.len());
        &self.tokens[..end]
    }
}

/// Cuts a text into tokens.
pub fn tokens(text: &str) -> Vec<Token> {
    let mut found = Vec::with_capacity(text.len() / 4);
    let mut chars = text.char_indices().peekable();
    while let Some((start, c)) = chars.next() {
        let mut end = start + c.len_utf8();
        let kind = if c.is_ascii_digit() {
            while let Some(&(at, next)) = chars.peek() {
                let goes_on = next.is_ascii_digit()
                    || (matches!(next, '.' | ',')
                        && text.as_bytes().get(at + 1).is_some_and(u8::is_ascii_digit));
                if !goes_on {
                    break;
                }
                end = at + 1;
                chars.next();
            }
            Kind::Number
        } else if c.is_alphabetic() {
            while let Some(&(at, next)) = chars.peek() {
                let goes_on = next.is_alphabetic()
                    || (next == '\''
                        && text[at + 1..]
                            .chars()
                            .next()
                            .is_some_and(char::is_alphabetic));
                if !goes_on {
                    break;
                }
                end = at + next.len_utf8();
                chars.next();
            }
            Kind::Word
        } else if c.is_whitespace() {
            continue;
        } else {
            Kind::Mark
        };
        found.push(Token { kind, start, end });
    }
    found
}

/// The text of an answer choice: `A. …`, `(b) …`, `3) …`.
fn choice_of(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let line = line.strip_prefix('(').unwrap_or(line);
    let mut chars = line.chars();
    let (label, close) = (chars.next()?, chars.next()?);
    let is_label = matches!(label, 'A'..='J' | 'a'..='j' | '1'..='9');
    let is_choice = is_label
        && matches!(close, '.' | ')' | ':')
        && chars.next().is_none_or(char::is_whitespace);
    // Label and sign are one byte each.
    is_choice.then(|| line[2..].trim())
}

/// Byte range of a token, to slice the text with.
impl From<Token> for Range<usize> {
    fn from(token: Token) -> Self {
        token.start..token.end
    }
}

#[cfg(test)]
mod tests {
    use crate::scoring::features::text::*;

    #[test]
    fn numbers_words_and_marks() {
        let text = "Don't pay 1,200.50, ok?";
        let found: Vec<_> = tokens(text)
            .into_iter()
            .map(|token| &text[Range::from(token)])
            .collect();
        assert_eq!(found, ["Don't", "pay", "1,200.50", ",", "ok", "?"]);
    }

    #[test]
    fn the_question_ends_where_the_choices_begin() {
        let seen = Seen::of("What is it?\nA. red\n(b) blue\n3) 7\nAnswer:");
        assert_eq!(seen.question, "What is it?\n");
        assert_eq!(seen.choices, ["red", "blue", "7"]);
        assert_eq!(seen.question_tokens().len(), 4);
    }

    #[test]
    fn a_long_text_is_read_at_both_ends() {
        let text = format!("begin {} end", "é ".repeat(10_000));
        let seen = Seen::of(&text);
        assert!(seen.parts[0].starts_with("begin") && seen.parts[1].ends_with("end"));
        assert!(seen.parts[0].len() + seen.parts[1].len() <= HEAD_BYTES + TAIL_BYTES + 4);
    }
}
