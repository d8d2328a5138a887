//! Whitespace between the tokens of a JSON document, taken out.
//!
//! Nothing is parsed into values: strings and numbers are copied byte for byte, so `1.0` stays
//! `1.0`, a number of forty digits keeps them all, and keys keep order and duplicates. The grammar
//! is RFC 8259; whatever departs from it (comments, trailing commas, single quotes) is no document.

/// Deepest nesting that is read; deeper ones are left as they are.
const DEPTH_MAX: usize = 256;

/// A document found at the beginning of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Bytes it takes up.
    pub len: usize,
    /// The same document without whitespace between its tokens.
    pub minified: String,
}

/// Reads the object or array that `text` begins with; `None` when it begins with none.
pub fn document(text: &str) -> Option<Document> {
    if !text.starts_with(['{', '[']) {
        return None;
    }
    let mut scanner = Scanner {
        text,
        at: 0,
        out: String::with_capacity(text.len().min(1 << 16)),
    };
    scanner.value(0)?;
    Some(Document {
        len: scanner.at,
        minified: scanner.out,
    })
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
    out: String,
}

impl Scanner<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Copies the bytes up to `end`.
    fn copy_to(&mut self, end: usize) -> Option<()> {
        self.out.push_str(self.text.get(self.at..end)?);
        self.at = end;
        Some(())
    }

    /// Takes one given byte.
    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek() == Some(byte)).then_some(())?;
        self.copy_to(self.at + 1)
    }

    fn value(&mut self, depth: usize) -> Option<()> {
        match self.peek()? {
            b'{' => self.members(depth, b'}'),
            b'[' => self.members(depth, b']'),
            b'"' => self.string(),
            b'-' | b'0'..=b'9' => self.number(),
            _ => {
                let rest = &self.text[self.at..];
                let word = ["true", "false", "null"]
                    .into_iter()
                    .find(|word| rest.starts_with(word))?;
                self.copy_to(self.at + word.len())
            }
        }
    }

    /// The members of an object or the elements of an array, with their brackets.
    fn members(&mut self, depth: usize, close: u8) -> Option<()> {
        if depth >= DEPTH_MAX {
            return None;
        }
        self.copy_to(self.at + 1)?;
        self.skip_space();
        if self.peek() == Some(close) {
            return self.take(close);
        }
        loop {
            if close == b'}' {
                self.string()?;
                self.skip_space();
                self.take(b':')?;
                self.skip_space();
            }
            self.value(depth + 1)?;
            self.skip_space();
            if self.peek() != Some(b',') {
                return self.take(close);
            }
            self.take(b',')?;
            self.skip_space();
        }
    }

    fn string(&mut self) -> Option<()> {
        if self.peek() != Some(b'"') {
            return None;
        }
        let bytes = self.text.as_bytes();
        let mut end = self.at + 1;
        loop {
            match bytes.get(end)? {
                b'"' => return self.copy_to(end + 1),
                b'\\' => {
                    end += match bytes.get(end + 1)? {
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => 2,
                        b'u' => {
                            let digits = bytes.get(end + 2..end + 6)?;
                            digits.iter().all(u8::is_ascii_hexdigit).then_some(6)?
                        }
                        _ => return None,
                    };
                }
                0..=0x1f => return None,
                _ => end += 1,
            }
        }
    }

    fn number(&mut self) -> Option<()> {
        let bytes = self.text.as_bytes();
        let mut end = self.at;
        let digits = |mut end: usize| {
            let start = end;
            while bytes.get(end).is_some_and(u8::is_ascii_digit) {
                end += 1;
            }
            (end > start).then_some(end)
        };
        if bytes.get(end) == Some(&b'-') {
            end += 1;
        }
        end = if bytes.get(end) == Some(&b'0') {
            end + 1
        } else {
            digits(end)?
        };
        if bytes.get(end) == Some(&b'.') {
            end = digits(end + 1)?;
        }
        if matches!(bytes.get(end), Some(b'e' | b'E')) {
            end += 1;
            if matches!(bytes.get(end), Some(b'+' | b'-')) {
                end += 1;
            }
            end = digits(end)?;
        }
        self.copy_to(end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BRACKETS: [char; 2] = ['{', '['];

    /// Text of a JSON value written with arbitrary whitespace, and the same without any.
    fn written() -> impl Strategy<Value = (String, String)> {
        let number = prop_oneof![
            "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,6})?([eE][+-]?[0-9]{1,3})?",
            Just("1.0".to_owned()),
            Just("-0".to_owned()),
            Just("1E400".to_owned()),
            Just("18446744073709551616".to_owned()),
        ];
        let string = prop_oneof![
            "[ -!#-\\[\\]-~é日🙂]{0,12}",
            Just("\\u00e9 \\\" \\\\ \\n  two".to_owned()),
        ]
        .prop_map(|inner| format!("\"{inner}\""));
        let word = prop_oneof![Just("true"), Just("false"), Just("null")].prop_map(str::to_owned);
        let leaf = prop_oneof![number, string.clone(), word].prop_map(|text| (text.clone(), text));
        let space = || "[ \t\r\n]{0,3}";
        leaf.prop_recursive(4, 40, 5, move |inner| {
            let element = (space(), inner.clone(), space());
            let member = (space(), string.clone(), space(), space(), inner, space());
            prop_oneof![
                prop::collection::vec(element, 0..5).prop_map(|elements| {
                    let join = |parts: Vec<String>| format!("[{}]", parts.join(","));
                    let wide = elements.iter().map(|(a, (v, _), b)| format!("{a}{v}{b}"));
                    let tight = elements.iter().map(|(_, (_, v), _)| v.clone());
                    (join(wide.collect()), join(tight.collect()))
                }),
                // Keys may repeat: nothing here knows of values.
                prop::collection::vec(member, 0..5).prop_map(|members| {
                    let join = |parts: Vec<String>| format!("{{{}}}", parts.join(","));
                    let wide = members
                        .iter()
                        .map(|(a, k, b, c, (v, _), d)| format!("{a}{k}{b}:{c}{v}{d}"));
                    let tight = members
                        .iter()
                        .map(|(_, k, _, _, (_, v), _)| format!("{k}:{v}"));
                    (join(wide.collect()), join(tight.collect()))
                }),
            ]
        })
    }

    proptest! {
        /// Every token stays byte for byte; only whitespace between tokens goes.
        #[test]
        fn only_whitespace_between_tokens_goes((wide, tight) in written()) {
            match document(&wide) {
                Some(found) => {
                    prop_assert_eq!(found.len, wide.len());
                    prop_assert_eq!(&found.minified, &tight);
                    // An independent reader sees the same value (as far as it can hold numbers).
                    if let Ok(before) = serde_json::from_str::<serde_json::Value>(&wide) {
                        let after: serde_json::Value = serde_json::from_str(&found.minified).expect("JSON");
                        prop_assert_eq!(before, after);
                    }
                }
                None => prop_assert!(!wide.starts_with(BRACKETS), "not read: {wide:?}"),
            }
        }

        /// What is taken for a document is one for an independent reader, too.
        #[test]
        fn what_serde_refuses_is_no_document(text in "[\\[{][\\[\\]{}:,\"\\\\ \n0-9.eE+a-z-]{0,14}") {
            if let Some(found) = document(&text) {
                let whole = serde_json::from_str::<serde::de::IgnoredAny>(&text[..found.len]);
                prop_assert!(whole.is_ok(), "{text:?}");
            }
        }
    }

    #[test]
    fn a_document_ends_where_it_ends_and_others_are_none() {
        let found = document("{ \"a\" : [ 1.0 , 2 ] } and more").expect("a document");
        assert_eq!(
            (found.len, found.minified.as_str()),
            (21, "{\"a\":[1.0,2]}")
        );
        for text in [
            "{'a': 1}",
            "{\"a\": 1,}",
            "[1, 2",
            "[01]",
            "[1.]",
            "[+1]",
            "{\"a\" 1}",
            "[\"\\x\"]",
            "[\"a\nb\"]",
            "[nul]",
            "[// no\n1]",
        ] {
            assert_eq!(document(text), None, "{text}");
        }
        let deep = "[".repeat(DEPTH_MAX + 2) + &"]".repeat(DEPTH_MAX + 2);
        assert_eq!(document(&deep), None);
    }
}
