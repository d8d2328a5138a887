//! Removes the whitespace between the tokens of a JSON document.
//!
//! Strings and numbers are copied byte for byte: `1.0` stays `1.0`, a number of forty digits keeps
//! them all, and keys keep their order and duplicates. The grammar is RFC 8259 as serde_json reads it;
//! text that departs from it (comments, trailing commas, single quotes) is not a document.

use serde_json::{Deserializer, value::RawValue};

/// A document found at the start of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its length in bytes.
    pub len: usize,
    /// The document without whitespace between its tokens.
    pub minified: String,
}

/// Reads the object or array at the start of `text`; `None` if there is none. Nesting is not limited,
/// since serde_json validates raw values without recursion.
pub fn document(text: &str) -> Option<Document> {
    if !text.starts_with(['{', '[']) {
        return None;
    }
    let mut values = Deserializer::from_str(text).into_iter::<&RawValue>();
    let document = values.next()?.ok()?.get();
    Some(Document {
        len: document.len(),
        minified: minify(document),
    })
}

/// Copies a valid document without the whitespace outside of its strings.
fn minify(document: &str) -> String {
    let mut out = String::with_capacity(document.len());
    let (mut in_string, mut is_escaped) = (false, false);
    for character in document.chars() {
        if in_string {
            in_string = is_escaped || character != '"';
            is_escaped = !is_escaped && character == '\\';
        } else if character.is_ascii_whitespace() {
            continue;
        } else {
            in_string = character == '"';
        }
        out.push(character);
    }
    out
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
        let deep = "[".repeat(1_000) + &"]".repeat(1_000);
        assert_eq!(document(&deep).map(|found| found.len), Some(deep.len()));
    }
}
