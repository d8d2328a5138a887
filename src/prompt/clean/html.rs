//! HTML becomes the text that a reader of the page would see.
//!
//! Comes in: a page or a fragment of one. Goes out: what it says ([`to_text`]). Markup, scripts, styles and comments go; every word, number
//! and preformatted line stays, in order. It reads tags the way browsers split them (quoted
//! attributes, raw-text elements) and builds no tree.

use std::collections::HashSet;

use super::tags::{BLOCK, Tag, UNSEEN, attribute, element_end, next_tag};

/// Shortest line that is dropped when it repeats an earlier one.
const REPEAT_BYTES_MIN: usize = 32;

/// What a page says.
pub fn to_text(html: &str) -> String {
    let mut page = Page::default();
    let (mut at, mut unclosed) = (0, 0);
    while let Some(tag) = next_tag(html, at) {
        page.text(&html[at..tag.range.start]);
        at = tag.range.end;
        if UNSEEN.contains(&tag.name.as_str()) && !tag.closes {
            at = element_end(html, &tag, &mut unclosed);
        } else {
            page.tag(&tag);
        }
    }
    page.text(&html[at..]);
    page.finish()
}

/// The text as it grows, line by line.
#[derive(Debug, Default)]
struct Page {
    lines: Vec<String>,
    line: String,
    /// Whitespace waits to become one space, if the line goes on.
    gap: bool,
    /// Open elements within which whitespace counts.
    verbatim: usize,
    /// Cells of the table row so far; `None` outside rows.
    cells: Option<usize>,
    /// The line holds data of a table, a list or preformatted text: it may repeat.
    is_data: bool,
    seen: HashSet<String>,
}

impl Page {
    fn text(&mut self, raw: &str) {
        let text = html_escape::decode_html_entities(raw);
        if self.verbatim > 0 {
            self.flush_gap();
            self.is_data = true;
            self.line.push_str(&text);
            return;
        }
        for character in text.chars() {
            if character.is_whitespace() && character != '\u{a0}' {
                self.gap = true;
            } else {
                self.flush_gap();
                self.line.push(character);
            }
        }
    }

    fn flush_gap(&mut self) {
        if self.gap && !self.line.is_empty() && !self.line.ends_with(' ') {
            self.line.push(' ');
        }
        self.gap = false;
    }

    fn tag(&mut self, tag: &Tag<'_>) {
        match tag.name.as_str() {
            "pre" | "textarea" => {
                self.end_line();
                self.verbatim = step(self.verbatim, tag.closes);
            }
            // A line of code: its spaces count.
            "code" | "kbd" | "samp" => {
                self.flush_gap();
                self.verbatim = step(self.verbatim, tag.closes);
            }
            "br" if self.verbatim > 0 => self.line.push('\n'),
            "tr" => {
                self.end_line();
                self.cells = (!tag.closes).then_some(0);
            }
            "td" | "th" => self.cell(tag.closes),
            // Within a table's cell blocks stay on its line.
            name if self.cells.is_some() && BLOCK.contains(&name) && name != "table" => {
                self.gap = true;
            }
            "li" => {
                self.end_line();
                if !tag.closes {
                    self.line.push_str("- ");
                    self.is_data = true;
                }
            }
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => {
                self.end_line();
                if !tag.closes {
                    self.line.push_str("# ");
                }
            }
            "img" => self.attribute(tag, "alt"),
            "input" if attribute(tag.attributes, "type") != Some("hidden") => {
                self.attribute(tag, "value");
            }
            "table" => {
                self.end_line();
                self.cells = None;
            }
            name if BLOCK.contains(&name) => self.end_line(),
            _ => {}
        }
    }

    fn cell(&mut self, closes: bool) {
        let Some(cells) = self.cells.as_mut().filter(|_| !closes) else {
            self.gap = true;
            return;
        };
        *cells += 1;
        self.is_data = true;
        if *cells > 1 {
            // An empty cell keeps its place.
            self.gap = false;
            let trimmed = self.line.trim_end_matches(' ').len();
            self.line.truncate(trimmed);
            self.line.push_str(" | ");
        }
    }

    /// The value of an attribute that a reader sees.
    fn attribute(&mut self, tag: &Tag<'_>, name: &str) {
        if let Some(value) = attribute(tag.attributes, name) {
            self.gap = true;
            self.text(value);
            self.gap = true;
        }
    }

    fn end_line(&mut self) {
        let is_data = std::mem::take(&mut self.is_data);
        self.gap = false;
        let line = std::mem::take(&mut self.line);
        let line = if is_data {
            line.trim_end_matches([' ', '\n']).trim_start_matches('\n')
        } else {
            line.trim()
        };
        if line.is_empty() || matches!(line.trim(), "-" | "#") {
            return;
        }
        // Menus, banners and footers come again; rows and entries are data and may.
        let repeats = line.len() >= REPEAT_BYTES_MIN && !is_data && !self.seen.insert(line.into());
        if !repeats {
            self.lines.push(line.to_owned());
        }
    }

    fn finish(mut self) -> String {
        self.end_line();
        self.lines.join("\n")
    }
}

/// One element more that is open, or one less.
fn step(open: usize, closes: bool) -> usize {
    if closes {
        open.saturating_sub(1)
    } else {
        open + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn character_references_are_decoded_and_unknown_ones_stay() {
        assert_eq!(
            to_text("<p>a &amp; b &lt;c&gt; &#233;&#xE9;&eacute; &hellip; R&D &nosuch; &</p>"),
            "a & b <c> ééé … R&D &nosuch; &"
        );
    }
}
