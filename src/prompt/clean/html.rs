//! Converts HTML to the text that a reader of the page sees.
//!
//! Comes in: a page or a fragment. Goes out: its text ([`to_text`]). Markup, scripts, styles and
//! comments are removed; every word, number and preformatted line stays, in order. Tags are split as in
//! browsers (quoted attributes, raw-text elements) and no tree is built.

use std::collections::HashSet;

use super::tags::{BLOCK, Tag, UNSEEN, attribute, element_end, next_tag};

/// Shortest line that is dropped if it repeats an earlier one, in bytes.
const REPEAT_BYTES_MIN: usize = 32;

/// Converts a page to text.
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

/// The text so far, line by line.
#[derive(Debug, Default)]
struct Page {
    lines: Vec<String>,
    line: String,
    /// Pending whitespace, written as one space if the line continues.
    gap: bool,
    /// Open elements with significant whitespace.
    verbatim: usize,
    /// Cells in the current table row; `None` outside of rows.
    cells: Option<usize>,
    /// True for a line of a table, list or preformatted text, which may repeat.
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
            // Inline code: spaces are significant.
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
            // Blocks within a table cell stay on its line.
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

    /// Adds the value of a visible attribute.
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
        // Menus, banners and footers repeat; rows and list entries are data and may repeat.
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

/// Increments or decrements the number of open elements.
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
