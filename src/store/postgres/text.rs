//! Texts as Postgres can hold them: it has no U+0000, producers and models do.
//!
//! U+FDD0, which Unicode reserves for such inner uses, marks what was replaced, so nothing is lost.

use std::borrow::Cow;

use crate::store::row::Row;

const MARK: char = '\u{FDD0}';

/// The text to store.
pub(super) fn encode(text: &str) -> Cow<'_, str> {
    if !text.contains(['\0', MARK]) {
        return Cow::Borrowed(text);
    }
    let mut stored = String::with_capacity(text.len() + 8);
    for letter in text.chars() {
        match letter {
            '\0' => stored.extend([MARK, '0']),
            MARK => stored.extend([MARK, '1']),
            other => stored.push(other),
        }
    }
    Cow::Owned(stored)
}

/// The text that was stored.
pub(super) fn decode(stored: String) -> String {
    if !stored.contains(MARK) {
        return stored;
    }
    let mut text = String::with_capacity(stored.len());
    let mut letters = stored.chars();
    while let Some(letter) = letters.next() {
        match letter {
            MARK => text.push(if letters.next() == Some('0') {
                '\0'
            } else {
                MARK
            }),
            other => text.push(other),
        }
    }
    text
}

/// A row with the texts that were stored.
pub(super) fn decode_row(row: Row) -> Row {
    row.map_texts(decode)
}

/// JSON as `jsonb` takes it. It holds no prompt text, so a replaced letter is no loss.
pub(super) fn encode_json(json: &str) -> String {
    json.replace("\\u0000", "\\ufffd")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Every text comes back as it was, and none is stored with a NUL.
        #[test]
        fn loses_nothing(text in "[\0\u{FDD0}01a😀]{0,12}") {
            let stored = encode(&text).into_owned();
            prop_assert!(!stored.contains('\0'));
            prop_assert_eq!(decode(stored), text);
        }
    }
}
