//! Splits a text into tokens, a question and answer choices.

use std::ops::Range;

/// Bytes read from the head of a text.
const HEAD_BYTES: usize = 6 << 10;
/// Bytes read from the tail of a text that is longer than both.
const TAIL_BYTES: usize = 2 << 10;

/// The kind of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// A run of letters, with apostrophes within.
    Word,
    /// A run of digits, with points and commas within.
    Number,
    /// Any other character that is not white space.
    Mark,
}

/// A token of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its kind.
    pub kind: TokenKind,
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

/// The part of a text that is read, split.
#[derive(Debug)]
pub struct ParsedPrompt<'a> {
    /// Bytes of the whole text.
    pub bytes: usize,
    /// Head and tail of the text; the tail is empty for short ones.
    pub parts: [&'a str; 2],
    /// Tokens of the head.
    pub tokens: Vec<Token>,
    /// Tokens of the tail.
    pub tail_tokens: Vec<Token>,
    /// The head up to the first answer choice.
    pub question: &'a str,
    /// Lines that begin an answer choice, without their label.
    pub choices: Vec<&'a str>,
}

impl<'a> ParsedPrompt<'a> {
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

/// Splits a text into tokens.
pub fn tokens(text: &str) -> Vec<Token> {
    let mut found = Vec::with_capacity(text.len() / 4);
    let mut chars = text.char_indices().peekable();
    while let Some((start, c)) = chars.next() {
        let mut end = start + c.len_utf8();
        let kind = if c.is_ascii_digit() {
            while let Some(&(at, next)) = chars.peek() {
                let continues = next.is_ascii_digit()
                    || (matches!(next, '.' | ',')
                        && text.as_bytes().get(at + 1).is_some_and(u8::is_ascii_digit));
                if !continues {
                    break;
                }
                end = at + 1;
                chars.next();
            }
            TokenKind::Number
        } else if c.is_alphabetic() {
            while let Some(&(at, next)) = chars.peek() {
                let continues = next.is_alphabetic()
                    || (next == '\''
                        && text[at + 1..]
                            .chars()
                            .next()
                            .is_some_and(char::is_alphabetic));
                if !continues {
                    break;
                }
                end = at + next.len_utf8();
                chars.next();
            }
            TokenKind::Word
        } else if c.is_whitespace() {
            continue;
        } else {
            TokenKind::Mark
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
    // Label and punctuation are one byte each.
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
    fn splits_words_numbers_and_marks() {
        let text = "Don't pay 1,200.50, ok?";
        let found: Vec<_> = tokens(text)
            .into_iter()
            .map(|token| &text[Range::from(token)])
            .collect();
        assert_eq!(found, ["Don't", "pay", "1,200.50", ",", "ok", "?"]);
    }

    #[test]
    fn the_question_ends_at_the_first_choice() {
        let seen = ParsedPrompt::of("What is it?\nA. red\n(b) blue\n3) 7\nAnswer:");
        assert_eq!(seen.question, "What is it?\n");
        assert_eq!(seen.choices, ["red", "blue", "7"]);
        assert_eq!(seen.question_tokens().len(), 4);
    }

    #[test]
    fn head_and_tail_of_a_long_text_are_read() {
        let text = format!("begin {} end", "é ".repeat(10_000));
        let seen = ParsedPrompt::of(&text);
        assert!(seen.parts[0].starts_with("begin") && seen.parts[1].ends_with("end"));
        assert!(seen.parts[0].len() + seen.parts[1].len() <= HEAD_BYTES + TAIL_BYTES + 4);
    }
}
