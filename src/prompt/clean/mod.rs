//! Lossless clean-up (`context: lossless`).
//!
//! Comes in: the text of a user turn. Goes out: the text without tokens that carry no information, and
//! what it was recognised as ([`Kind`]):
//!
//! - HTML becomes its text ([`html`]), pretty-printed JSON loses the whitespace between its tokens
//!   ([`json`]), prose and Markdown lose noise and repeated paragraphs ([`plain`]);
//! - fenced code, text between triple quotes and indented lines stay byte for byte;
//! - the whole text stays if it holds bare code ([`code`]) or if the request is about the form of the
//!   text ([`intent`]): to quote, count, keep, compare or reformat it.
//!
//! System and assistant turns are never touched. Cleaning is idempotent, unless a page quotes markup.

pub mod code;
pub mod html;
pub mod intent;
pub mod json;
pub mod plain;
mod tags;

use std::{borrow::Cow, ops::Range};

/// Shortest JSON document on a single line that is worth minifying, in bytes.
const INLINE_JSON_BYTES_MIN: usize = 200;
/// Longest label before a document on the same line, in characters.
const LABEL_CHARS_MAX: usize = 120;
/// Brackets that start no document, after which the search stops: a text of brackets must not cost
/// quadratic time.
const JSON_MISSES_MAX: usize = 16;

/// What a text was recognised as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// HTML, converted to text.
    Html,
    /// JSON, minified.
    Json,
    /// Markdown.
    Markdown,
    /// Prose.
    Text,
    /// Bare code, left unchanged.
    Code,
    /// Left unchanged because the request is about the form of the text.
    Verbatim,
}

impl Kind {
    /// The name used on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Html => "html",
            Self::Json => "json",
            Self::Markdown => "markdown",
            Self::Text => "text",
            Self::Code => "code",
            Self::Verbatim => "verbatim",
        }
    }
}

/// A text after clean-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cleaned<'a> {
    /// The text; borrowed if unchanged.
    pub text: Cow<'a, str>,
    /// What it was recognised as.
    pub kind: Kind,
}

/// A part of the text and its treatment.
enum Part {
    /// Copied byte for byte.
    Verbatim(Range<usize>),
    /// Prose or Markdown.
    Prose(Range<usize>),
    Html(Range<usize>),
    /// A document, minified.
    Json(String),
}

/// Cleans a text. `elsewhere` holds the rest of the request (system prompt, other turns), which may forbid
/// it.
pub fn clean<'a>(text: &'a str, elsewhere: &str) -> Cleaned<'a> {
    let parts = parts(text);
    let has_html = parts.iter().any(|part| matches!(part, Part::Html(_)));
    let has_json = parts.iter().any(|part| matches!(part, Part::Json(_)));
    let mut prose = String::new();
    for part in &parts {
        if let Part::Prose(range) = part {
            prose.push_str(&text[range.clone()]);
            prose.push_str("\n\n");
        }
    }
    let untouched = |kind| Cleaned {
        text: Cow::Borrowed(text),
        kind,
    };
    if intent::is_format_sensitive(&prose, has_html)
        || intent::is_format_sensitive(elsewhere, has_html)
    {
        return untouched(Kind::Verbatim);
    }
    if code::holds_code(&prose) {
        return untouched(Kind::Code);
    }
    let kind = if has_html {
        Kind::Html
    } else if has_json {
        Kind::Json
    } else if is_markdown(&prose) {
        Kind::Markdown
    } else {
        Kind::Text
    };
    let mut out = String::with_capacity(text.len());
    for part in parts {
        match part {
            Part::Verbatim(range) => out.push_str(&text[range]),
            Part::Prose(range) => out.push_str(&plain::tidy(&text[range])),
            Part::Html(range) => out.push_str(&html::to_text(&text[range])),
            Part::Json(document) => out.push_str(&document),
        }
    }
    if out == text {
        return untouched(kind);
    }
    Cleaned {
        text: Cow::Owned(out),
        kind,
    }
}

/// Splits a text into parts, in order and without gaps.
fn parts(text: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    for (range, is_open) in fences(text) {
        if is_open {
            open_parts(text, range, &mut parts);
        } else {
            parts.push(Part::Verbatim(range));
        }
    }
    parts
}

/// The ranges of a text, and whether each lies outside of fences (```` ``` ````, `~~~`) and
/// triple quotes.
pub(super) fn fences(text: &str) -> Vec<(Range<usize>, bool)> {
    let (mut stretches, mut from, mut at) = (Vec::new(), 0, 0);
    let mut fence: Option<&str> = None;
    for line in text.split_inclusive('\n') {
        let (start, end) = (at, at + line.len());
        at = end;
        let trimmed = line.trim_start().trim_start_matches(['>', ' ']);
        match fence {
            None => {
                let quotes = line.find("\"\"\"").or_else(|| line.find("'''"));
                let marker = ["```", "~~~"].into_iter().find(|m| trimmed.starts_with(m));
                // A fence starts with its line, a quotation at its quotes.
                let opening = marker
                    .map(|marker| (start, marker))
                    .or_else(|| quotes.map(|at| (start + at, &line[at..at + 3])));
                let Some((opening, marker)) = opening else {
                    continue;
                };
                let closes_here =
                    marker.starts_with(['"', '\'']) && text[opening + 3..end].contains(marker);
                if from < opening {
                    stretches.push((from..opening, true));
                }
                from = opening;
                if closes_here {
                    stretches.push((from..end, false));
                    from = end;
                } else {
                    fence = Some(marker);
                }
            }
            Some(marker) => {
                let closes = if marker.starts_with(['"', '\'']) {
                    line.contains(marker)
                } else {
                    trimmed.starts_with(marker)
                        && trimmed.trim().chars().all(|c| marker.starts_with(c))
                };
                if closes {
                    stretches.push((from..end, false));
                    (from, fence) = (end, None);
                }
            }
        }
    }
    if from < text.len() {
        // An unclosed fence runs to the end.
        stretches.push((from..text.len(), fence.is_none()));
    }
    stretches
}

/// Finds HTML, then JSON, outside of fences.
fn open_parts(text: &str, range: Range<usize>, parts: &mut Vec<Part>) {
    match tags::region(&text[range.clone()]) {
        Some(found) => {
            let (from, to) = (range.start + found.start, range.start + found.end);
            json_parts(text, range.start..from, parts);
            parts.push(Part::Html(from..to));
            json_parts(text, to..range.end, parts);
        }
        None => json_parts(text, range, parts),
    }
}

fn json_parts(text: &str, range: Range<usize>, parts: &mut Vec<Part>) {
    let (mut from, mut at, mut misses) = (range.start, range.start, 0);
    while let Some(found) = text[at..range.end].find(['{', '[']) {
        let start = at + found;
        at = start + 1;
        if misses > JSON_MISSES_MAX || !may_begin(&text[range.start..start]) {
            continue;
        }
        let Some(document) = json::document(&text[start..range.end]) else {
            misses += 1;
            continue;
        };
        let end = start + document.len;
        let written = &text[start..end];
        let is_long = written.contains('\n') || written.len() >= INLINE_JSON_BYTES_MIN;
        if is_long && may_end(&text[end..range.end]) {
            if from < start {
                parts.push(Part::Prose(from..start));
            }
            parts.push(Part::Json(document.minified));
            from = end;
        }
        at = end;
    }
    if from < range.end {
        parts.push(Part::Prose(from..range.end));
    }
}

/// True if a document may start here: at the start of a line or after a short label with a colon; after
/// `=` or `(` it is code.
fn may_begin(before: &str) -> bool {
    let lead = before.trim_end_matches([' ', '\t']);
    if lead.is_empty() || lead.ends_with(['\n', '\r']) {
        return true;
    }
    if !lead.ends_with(':') {
        return false;
    }
    let label = lead.char_indices().rev().take(LABEL_CHARS_MAX);
    for (_, character) in label {
        match character {
            '\n' => return true,
            '"' | '{' | '=' | '(' => return false,
            _ => {}
        }
    }
    lead.chars().take(LABEL_CHARS_MAX).count() < LABEL_CHARS_MAX
}

/// True if a document may end here: at the end of a line or before prose; before `;` or `)` it is code.
fn may_end(after: &str) -> bool {
    let line = after.lines().next().unwrap_or_default().trim_start();
    line.is_empty() || after.starts_with(' ') && line.starts_with(char::is_alphabetic)
}

fn is_markdown(prose: &str) -> bool {
    prose.lines().any(|line| {
        let line = line.trim_start();
        line.starts_with("# ")
            || line.starts_with("## ")
            || line.starts_with("### ")
            || line.starts_with("* ")
            || line.starts_with("- ")
            || line.starts_with('|')
            || line.contains("](")
            || line.contains("**")
    })
}

#[cfg(test)]
mod tests;
