//! Removes noise from prose and Markdown: repeated blank lines, trailing spaces, table padding, comments
//! and repeated paragraphs.
//!
//! Indented lines, lines with a tab and spaces within lines stay byte for byte.

use std::collections::HashSet;

/// Shortest paragraph that is dropped if it repeats an earlier one, in bytes.
const REPEAT_BYTES_MIN: usize = 100;

/// Removes noise from a text.
pub fn tidy(text: &str) -> String {
    let text = without_comments(text);
    let allows_drops = !is_pattern(&text);
    let blocks = blocks(&text);
    let last = blocks.iter().rposition(|block| !block.is_blank);
    let (mut out, mut seen) = (String::with_capacity(text.len()), HashSet::new());
    for (at, block) in blocks.iter().enumerate() {
        if block.is_blank {
            // A leading newline may end the line before this text.
            if !out.ends_with("\n\n") {
                out.push('\n');
            }
            continue;
        }
        let is_new = seen.insert(block.text.trim());
        // The last paragraph is probably the question and is never dropped.
        if allows_drops && !is_new && Some(at) != last && is_prose(block.text) {
            continue;
        }
        tidy_block(block.text, &mut out);
    }
    out
}

/// Consecutive non-blank lines, or one blank line.
pub(in crate::prompt) struct Block<'a> {
    pub text: &'a str,
    pub is_blank: bool,
}

/// Splits a text at blank lines, without gaps.
pub(in crate::prompt) fn blocks(text: &str) -> Vec<Block<'_>> {
    let (mut blocks, mut from, mut at) = (Vec::new(), 0, 0);
    for line in text.split_inclusive('\n') {
        if line.trim().is_empty() {
            if from < at {
                blocks.push(Block {
                    text: &text[from..at],
                    is_blank: false,
                });
            }
            blocks.push(Block {
                text: line,
                is_blank: true,
            });
            from = at + line.len();
        }
        at += line.len();
    }
    if from < at {
        blocks.push(Block {
            text: &text[from..],
            is_blank: false,
        });
    }
    blocks
}

/// A long paragraph that is neither a question nor a heading.
fn is_prose(block: &str) -> bool {
    let text = block.trim();
    text.len() >= REPEAT_BYTES_MIN
        && !text.contains('?')
        && !text.ends_with(':')
        && !block.starts_with([' ', '\t'])
}

/// True for examples, dialogues and logs, which repeat on purpose: the same `Word:` starts several lines.
fn is_pattern(text: &str) -> bool {
    let mut labels = HashSet::new();
    text.lines()
        .filter_map(|line| {
            let (label, _) = line.split_once(':')?;
            (label.len() <= 24 && !label.is_empty()).then(|| label.trim())
        })
        .any(|label| !labels.insert(label))
}

fn tidy_block(block: &str, out: &mut String) {
    let is_table = is_table(block);
    let is_prose = !is_delimited(block);
    for line in block.split_inclusive('\n') {
        let (body, end) = match line.strip_suffix('\n') {
            Some(body) => (body, "\n"),
            None => (line, ""),
        };
        if is_table {
            tidy_row(body, out);
        } else if is_prose && !body.starts_with([' ', '\t']) && !body.contains('\t') {
            out.push_str(body.trim_end_matches([' ', '\r']));
        } else {
            out.push_str(body);
        }
        out.push_str(end);
    }
}

/// True for delimited data: lines with the same number of delimiters, which may end in an empty field.
fn is_delimited(block: &str) -> bool {
    let lines: Vec<_> = block.lines().collect();
    lines.len() > 1
        && [',', ';', '|', '\t'].into_iter().any(|delimiter| {
            let count = |line: &str| line.matches(delimiter).count();
            let first = count(lines[0]);
            first > 0 && lines.iter().all(|line| count(line) == first)
        })
}

/// A Markdown table: every line starts and ends with `|`, and the second is the separator.
fn is_table(block: &str) -> bool {
    let mut lines = block.lines().map(str::trim);
    let rows = lines
        .clone()
        .all(|line| line.len() > 1 && line.starts_with('|') && line.ends_with('|'));
    rows && !block.contains('`')
        && lines.nth(1).is_some_and(|line| {
            line.contains('-') && line.chars().all(|c| matches!(c, '|' | '-' | ':' | ' '))
        })
}

/// A table row without padding; dashes of a separator become one.
fn tidy_row(row: &str, out: &mut String) {
    let row = row.trim();
    let is_separator = row.chars().all(|c| matches!(c, '|' | '-' | ':' | ' '));
    let cells = row.split('|').map(str::trim);
    let count = row.matches('|').count();
    for (at, cell) in cells.enumerate() {
        if at > 0 {
            out.push('|');
        }
        if is_separator && cell.contains('-') {
            let (left, right) = (cell.starts_with(':'), cell.ends_with(':'));
            out.push_str(if left { ":-" } else { "-" });
            out.push_str(if right { ":" } else { "" });
        } else if !cell.is_empty() && at > 0 && at < count + 1 {
            out.push(' ');
            out.push_str(cell);
            out.push(' ');
        } else {
            out.push_str(cell);
        }
    }
}

/// Markdown comments.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(from) = rest.find("<!--") {
        let line = rest[..from].rfind('\n').map_or(0, |end| end + 1);
        let is_quoted = rest[line..from].contains('`');
        let Some(len) = rest[from..].find("-->") else {
            break;
        };
        match is_quoted {
            false => {
                out.push_str(&rest[..from]);
                rest = &rest[from + len + 3..];
            }
            true => {
                out.push_str(&rest[..from + 4]);
                rest = &rest[from + 4..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: &str = "The warranty covers every part of the machine for two years from the day of \
                        purchase, whatever the cause of the damage may be.";

    #[test]
    fn noise_goes_and_words_stay() {
        let text = "# A  title   \n\n\n\nOne line.  \nTwo\tlines. \n<!-- hidden -->\n    x = 1   \n\n\nEnd";
        assert_eq!(
            tidy(text),
            "# A  title\n\nOne line.\nTwo\tlines. \n\n    x = 1   \n\nEnd"
        );
    }

    #[test]
    fn tables_lose_their_padding() {
        let table = "| Name      | Price   |\n|:----------|--------:|\n| Lamp      |  12.50  |\n|           | 1  2    |";
        assert_eq!(
            tidy(table),
            "| Name | Price |\n|:-|-:|\n| Lamp | 12.50 |\n|| 1  2 |"
        );
    }

    #[test]
    fn repeated_paragraphs_are_dropped_but_not_the_last() {
        let text = format!("{LONG}\n\nOther words.\n\n{LONG}\n\nWhat is covered?");
        assert_eq!(
            tidy(&text),
            format!("{LONG}\n\nOther words.\n\nWhat is covered?")
        );
        let ends = format!("{LONG}\n\nOther.\n\n{LONG}");
        assert_eq!(tidy(&ends), ends);
        let examples = format!("Text: a\n\n{LONG}\n\nText: b\n\n{LONG}\n\nText: c");
        assert_eq!(tidy(&examples), examples);
    }

    #[test]
    fn delimited_lines_keep_empty_fields() {
        let data = "a,b, \n1,2, \n3,4,";
        assert_eq!(tidy(data), data);
    }
}
