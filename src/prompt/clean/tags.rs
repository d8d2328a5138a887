//! Splits tags as browsers do and finds HTML within a text.
//!
//! Not a conforming tokenizer on purpose: that would swallow text behind an unterminated tag, which
//! lossless clean-up must keep.

use std::{collections::HashSet, ops::Range};

/// Inline elements.
const INLINE: &[&str] = &[
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em",
    "font", "i", "img", "input", "ins", "kbd", "label", "mark", "picture", "q", "s", "samp",
    "small", "source", "span", "strike", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr",
];
/// Block elements, which start and end a line.
pub(super) const BLOCK: &[&str] = &[
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "br",
    "button",
    "caption",
    "center",
    "col",
    "colgroup",
    "dd",
    "details",
    "dialog",
    "div",
    "dl",
    "dt",
    "fieldset",
    "figcaption",
    "figure",
    "footer",
    "form",
    "frame",
    "frameset",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "head",
    "header",
    "hgroup",
    "hr",
    "html",
    "iframe",
    "legend",
    "li",
    "link",
    "main",
    "menu",
    "meta",
    "nav",
    "ol",
    "optgroup",
    "option",
    "p",
    "pre",
    "search",
    "section",
    "select",
    "summary",
    "table",
    "tbody",
    "td",
    "textarea",
    "tfoot",
    "th",
    "thead",
    "title",
    "tr",
    "ul",
];
/// Elements whose content is invisible.
pub(super) const UNSEEN: &[&str] = &[
    "audio", "base", "canvas", "embed", "math", "noscript", "object", "script", "style", "svg",
    "template", "video",
];
/// Signs of a program or a template, which must stay unchanged.
const TEMPLATES: &[&str] = &[
    "{{",
    "{%",
    "<%",
    "<?php",
    "<?xml",
    "classname=",
    "v-if=",
    "v-for=",
    " ng-",
    "={",
    "@click",
    "xmlns=",
    "<script setup",
];
/// Minimum number of tags in a fragment without `<html>` or `<body>`.
const FRAGMENT_TAGS_MIN: usize = 6;
/// Unclosed elements after which the search for closing tags stops.
const UNCLOSED_MAX: usize = 16;

/// A tag in the text.
#[derive(Debug)]
pub(super) struct Tag<'a> {
    pub range: Range<usize>,
    pub name: String,
    pub closes: bool,
    pub attributes: &'a str,
}

/// The next tag, comment or declaration from `at` on; comments have the name `!`.
pub(super) fn next_tag(text: &str, mut at: usize) -> Option<Tag<'_>> {
    let bytes = text.as_bytes();
    loop {
        at += text.get(at..)?.find('<')?;
        let start = at;
        let rest = &text[start..];
        if rest.starts_with("<!--") {
            let end = rest.find("-->").map_or(text.len(), |end| start + end + 3);
            return Some(unseen_tag(start..end));
        }
        let closes = bytes.get(start + 1) == Some(&b'/');
        let name_at = start + 1 + usize::from(closes);
        match bytes.get(name_at) {
            Some(b'!' | b'?') if !closes => {
                let end = rest.find('>').map_or(text.len(), |end| start + end + 1);
                return Some(unseen_tag(start..end));
            }
            Some(byte) if byte.is_ascii_alphabetic() => {}
            _ => {
                at = start + 1;
                continue;
            }
        }
        let name_end = name_at
            + bytes[name_at..]
                .iter()
                .take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b':'))
                .count();
        let Some(end) = tag_end(bytes, name_end) else {
            at = start + 1;
            continue;
        };
        return Some(Tag {
            name: text[name_at..name_end].to_ascii_lowercase(),
            closes,
            attributes: &text[name_end..end - 1],
            range: start..end,
        });
    }
}

fn unseen_tag<'a>(range: Range<usize>) -> Tag<'a> {
    Tag {
        range,
        name: "!".to_owned(),
        closes: false,
        attributes: "",
    }
}

/// The end of a tag, `>` included; quoted attribute values may contain `>`.
fn tag_end(bytes: &[u8], mut at: usize) -> Option<usize> {
    let mut quote = None;
    loop {
        let byte = *bytes.get(at)?;
        match quote {
            Some(open) if byte == open => quote = None,
            Some(_) => {}
            None if byte == b'>' => return Some(at + 1),
            None if byte == b'<' => return None,
            // A quote starts a value only after `=`.
            None if matches!(byte, b'"' | b'\'') => {
                let before = bytes[..at].iter().rev().find(|b| !b.is_ascii_whitespace());
                quote = (before == Some(&b'=')).then_some(byte);
            }
            None => {}
        }
        at += 1;
    }
}

/// The end of the element that `opening` starts, closing tag included. `unclosed` counts elements without
/// a closing tag: a text of opening tags must not cost quadratic time.
pub(super) fn element_end(text: &str, opening: &Tag<'_>, unclosed: &mut usize) -> usize {
    let raw = matches!(opening.name.as_str(), "script" | "style");
    let (mut at, mut depth) = (opening.range.end, 1_usize);
    if *unclosed >= UNCLOSED_MAX {
        return at;
    }
    while let Some(tag) = next_tag(text, at) {
        at = tag.range.end;
        if tag.name != opening.name {
            if raw {
                at = tag.range.start + 1;
            }
            continue;
        }
        if tag.closes {
            depth -= 1;
        } else if !raw && !tag.attributes.ends_with('/') {
            depth += 1;
        }
        if depth == 0 {
            return tag.range.end;
        }
    }
    // Skip only the tag itself, so that no text is lost.
    *unclosed += 1;
    opening.range.end
}

/// The range of a page or fragment: from its first known tag to the end of its last. `None` for text
/// without HTML, other markup, templates and programs.
pub fn region(text: &str) -> Option<Range<usize>> {
    let (mut from, mut to) = (None, 0);
    let (mut known, mut unknown, mut closing) = (0_usize, 0_usize, 0_usize);
    let (mut is_page, mut blocks) = (false, HashSet::new());
    let (mut at, mut unclosed, mut quotes) = (0, 0, Backticks::default());
    while let Some(tag) = next_tag(text, at) {
        at = tag.range.end;
        let is_doctype = tag.name == "!"
            && text[tag.range.clone()]
                .get(..9)
                .is_some_and(|head| head.eq_ignore_ascii_case("<!doctype"));
        if quotes.hold(text, tag.range.start) || tag.name == "!" && !is_doctype && from.is_none() {
            continue;
        }
        let name = tag.name.as_str();
        let is_unseen = UNSEEN.contains(&name);
        if is_unseen && !tag.closes {
            at = element_end(text, &tag, &mut unclosed);
        }
        let is_block = BLOCK.contains(&name);
        if is_doctype || is_block || is_unseen || INLINE.contains(&name) {
            known += 1;
            closing += usize::from(tag.closes);
            is_page |= is_doctype || matches!(name, "html" | "body");
            if is_block {
                blocks.insert(tag.name);
            }
            from.get_or_insert(tag.range.start);
            to = at;
        } else if name != "!" && !name.contains('-') {
            unknown += 1;
        }
    }
    let range = from?..to;
    let is_fragment = known >= FRAGMENT_TAGS_MIN && blocks.len() >= 2;
    let is_program = {
        let lower = text[range.clone()].to_ascii_lowercase();
        let seen = without_unseen(&lower);
        TEMPLATES.iter().any(|sign| seen.contains(sign))
    };
    let is_html = (is_page || is_fragment) && closing * 4 >= known && unknown * 5 <= known;
    (is_html && !is_program).then_some(range)
}

/// The markup without invisible elements such as scripts and styles.
fn without_unseen(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut at, mut kept, mut unclosed) = (0, 0, 0);
    while let Some(tag) = next_tag(text, at) {
        at = tag.range.end;
        if UNSEEN.contains(&tag.name.as_str()) && !tag.closes {
            out.push_str(&text[kept..tag.range.start]);
            at = element_end(text, &tag, &mut unclosed);
            kept = at;
        }
    }
    out.push_str(&text[kept..]);
    out
}

/// Counts backticks on the current line: an odd number before a tag makes it Markdown inline code.
#[derive(Debug, Default)]
struct Backticks {
    at: usize,
    count: usize,
}

impl Backticks {
    /// Advances to `at`, which never decreases, and returns whether inline code is open there.
    fn hold(&mut self, text: &str, at: usize) -> bool {
        for byte in text.as_bytes()[self.at..at].iter() {
            match byte {
                b'\n' => self.count = 0,
                b'`' => self.count += 1,
                _ => {}
            }
        }
        self.at = at;
        self.count % 2 == 1
    }
}

/// The value of an attribute, as written.
pub(super) fn attribute<'a>(attributes: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = attributes;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '/');
        if rest.is_empty() {
            return None;
        }
        let end = rest
            .find(|c: char| c.is_whitespace() || matches!(c, '=' | '/'))
            .unwrap_or(rest.len());
        let found = &rest[..end];
        rest = rest[end..].trim_start();
        let mut value = "";
        if let Some(after) = rest.strip_prefix('=') {
            let after = after.trim_start();
            let quote = after.chars().next().filter(|c| matches!(c, '"' | '\''));
            let (start, close) = match quote {
                Some(quote) => (1, after[1..].find(quote).map(|at| at + 1)),
                None => (0, after.find(char::is_whitespace)),
            };
            let close = close.unwrap_or(after.len());
            value = &after[start..close];
            rest = &after[(close + usize::from(quote.is_some())).min(after.len())..];
        } else if end == 0 {
            // A character that cannot start a name.
            rest = &rest[rest.chars().next().map_or(0, char::len_utf8)..];
        }
        if found.eq_ignore_ascii_case(name) {
            return Some(value);
        }
    }
}
