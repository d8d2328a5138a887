//! Finds a message's question and its context paragraphs.
//!
//! Long paragraphs of prose are context; everything else (short paragraphs, headings, the last
//! paragraph, questions, code, documents, lists, tables, quotations) stays unchanged. Only a message
//! with a question is pruned: tasks about the whole text (summarise, translate, list, count) need all
//! of it.

use std::ops::Range;

use super::{Similarity, keep};
use crate::prompt::{
    clean::{code, fences, intent, plain},
    estimate_tokens,
};

/// Shortest paragraph that counts as context, in estimated tokens.
const PARAGRAPH_TOKENS_MIN: usize = 24;
/// Minimum number of context paragraphs.
const PARAGRAPHS_MIN: usize = 3;
/// Minimum size of the context, in estimated tokens.
const CONTEXT_TOKENS_MIN: usize = 100;

/// Words that indicate a task about the whole text.
const WHOLE_TEXT_WORDS: &[&str] = &[
    "abstract",
    "all",
    "analyse",
    "analyze",
    "bullet",
    "bullets",
    "classify",
    "compare",
    "contrast",
    "critique",
    "each",
    "entire",
    "essay",
    "every",
    "everything",
    "extract",
    "find",
    "gist",
    "headline",
    "list",
    "overall",
    "outline",
    "paragraph",
    "paragraphs",
    "paraphrase",
    "passages",
    "rank",
    "review",
    "sentiment",
    "shorten",
    "simplify",
    "sort",
    "summaries",
    "summarise",
    "summarize",
    "summarised",
    "summarized",
    "summary",
    "synopsis",
    "theme",
    "themes",
    "title",
    "tldr",
    "tone",
    "topic",
    "topics",
    "translate",
    "translation",
    "whole",
];
/// First words of questions without a question mark.
const QUESTION_WORDS: &[&str] = &[
    "who", "whom", "whose", "what", "when", "where", "which", "why", "how", "is", "are", "was",
    "were", "do", "does", "did", "can", "could", "will", "would", "has", "have", "had", "should",
];

/// The message without irrelevant context; `None` if nothing is cut.
pub fn prune_message(text: &str, similarity: Option<&dyn Similarity>) -> Option<String> {
    let blocks = blocks(text);
    let context: Vec<usize> = (0..blocks.len())
        .filter(|at| blocks[*at].is_context)
        .collect();
    let question = question(text, &blocks)?;
    let paragraphs: Vec<&str> = context
        .iter()
        .map(|at| text[blocks[*at].range.clone()].trim())
        .collect();
    let tokens: usize = paragraphs
        .iter()
        .map(|paragraph| estimate_tokens(paragraph))
        .sum();
    if paragraphs.len() < PARAGRAPHS_MIN || tokens < CONTEXT_TOKENS_MIN {
        return None;
    }
    // A list may hold the answer: it stays, and paragraphs compete with it.
    let lists = blocks.iter().filter(|block| block.is_list);
    let lists = lists.map(|block| text[block.range.clone()].trim());
    let candidates: Vec<&str> = paragraphs.iter().copied().chain(lists).collect();
    let mut stays = keep(&question, &candidates, similarity);
    stays.retain(|at| *at < paragraphs.len());
    if stays.len() == paragraphs.len() {
        return None;
    }
    let mut gone = vec![false; blocks.len()];
    for (nth, at) in context.iter().enumerate() {
        gone[*at] = stays.binary_search(&nth).is_err();
    }
    let mut out = String::with_capacity(text.len());
    for (at, block) in blocks.iter().enumerate() {
        // A blank line belongs to the paragraph before it.
        let is_after_gone = block.is_blank && at > 0 && gone[at - 1];
        if is_after_gone {
            gone[at] = true;
        } else if !gone[at] {
            out.push_str(&text[block.range.clone()]);
        }
    }
    Some(out)
}

struct Block {
    range: Range<usize>,
    is_blank: bool,
    is_context: bool,
    /// A long list or table.
    is_list: bool,
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (range, is_open) in fences(text) {
        if !is_open {
            blocks.push(Block {
                range,
                is_blank: false,
                is_context: false,
                is_list: false,
            });
            continue;
        }
        let mut at = range.start;
        for block in plain::blocks(&text[range]) {
            let end = at + block.text.len();
            blocks.push(Block {
                range: at..end,
                is_blank: block.is_blank,
                is_context: !block.is_blank && is_context(block.text),
                is_list: !block.is_blank && is_list(block.text),
            });
            at = end;
        }
    }
    // The last paragraph may be the question.
    if let Some(last) = blocks.iter_mut().rev().find(|block| !block.is_blank) {
        (last.is_context, last.is_list) = (false, false);
    }
    blocks
}

/// A long paragraph of prose without a question.
fn is_context(block: &str) -> bool {
    let text = block.trim_end();
    let is_prose = text.lines().all(|line| {
        line.starts_with(char::is_alphanumeric) || line.starts_with(['"', '“', '(', '\''])
    });
    is_prose
        && !text.ends_with(['?', ':'])
        && estimate_tokens(text) >= PARAGRAPH_TOKENS_MIN
        && !code::holds_code(text)
}

/// Items of a list or rows of a table, at least as long as a context paragraph.
fn is_list(block: &str) -> bool {
    let mut items = block.trim().lines().map(item);
    items.all(|item| item.is_some()) && estimate_tokens(block) >= PARAGRAPH_TOKENS_MIN
}

/// The text of a list item behind its marker; `None` for other lines.
fn item(line: &str) -> Option<&str> {
    let line = line.trim();
    let unmarked = line.trim_start_matches(|c: char| c.is_ascii_digit());
    let rest = match unmarked.len() < line.len() {
        true => unmarked.strip_prefix(['.', ')'])?,
        false => line.strip_prefix(['-', '*', '•', '|'])?,
    };
    Some(rest.trim())
}

/// The question: the paragraphs outside of the context that ask something. `None` if there is none, or
/// if the task needs the whole text or is about its form.
fn question(text: &str, blocks: &[Block]) -> Option<String> {
    let mut asked = Vec::new();
    for block in blocks
        .iter()
        .filter(|block| !block.is_context && !block.is_blank)
    {
        let part = text[block.range.clone()].trim();
        if block.is_list {
            // Data, unless an item is an instruction.
            let mut items = part.lines().filter_map(item);
            let tells = |item: &str| item.split(' ').next().is_some_and(needs_whole_text);
            if items.any(tells) {
                return None;
            }
            continue;
        }
        if needs_whole_text(part) {
            return None;
        }
        let lower = part.to_lowercase();
        let first = lower
            .split(|c: char| !c.is_alphanumeric())
            .find(|word| !word.is_empty());
        let begins = first.is_some_and(|word| QUESTION_WORDS.contains(&word));
        // Skip labels such as "Question: who …".
        let labelled = lower.starts_with("question") || lower.starts_with("q:");
        if part.contains('?') || begins || labelled {
            asked.push(part);
        }
    }
    (!asked.is_empty()).then(|| asked.join(" "))
}

/// True for a task that needs the whole text or is about its form.
pub fn needs_whole_text(task: &str) -> bool {
    let lower = task.to_lowercase();
    let mut words = lower.split(|c: char| !c.is_alphanumeric());
    words.any(|word| WHOLE_TEXT_WORDS.contains(&word))
        || lower.contains("how many")
        || lower.contains("tl;dr")
        || intent::is_format_sensitive(task, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ELBE: &str = "The Elbe rises in the Giant Mountains of Bohemia and reaches the North Sea near Cuxhaven after \
                        1,094 kilometres, and ships of some size can go up the river as far as Pardubice in the summer.";
    const OPERA: &str = "Fidelio is the only opera of Ludwig van Beethoven. It was first given in Vienna in November of \
                         1805 and was then revised twice before it had the success that its composer had hoped for.";
    const BREAD: &str = "Bread is baked from flour, water and salt. The dough must rest for some hours in a warm place \
                         before it goes into the oven, and many bakers let it rest for a whole night or longer still.";
    const TRAIN: &str = "Freight trains are made up in marshalling yards, where wagons roll down a hump and are led by \
                         switches to the track on which the train for their destination stands, waiting to leave.";

    fn message(question: &str) -> String {
        format!(
            "# Rivers\n\n{ELBE}\n\n{OPERA}\n\n## Food\n\n{BREAD}\n\n{TRAIN}\n\n{TRAIN}\n\n{question}"
        )
    }

    #[test]
    fn titles_order_and_the_question_stay() {
        let text = message("How long is the Elbe before it reaches the North Sea near Cuxhaven?");
        let pruned = prune_message(&text, None).expect("something goes");
        let expected = format!(
            "# Rivers\n\n{ELBE}\n\n## Food\n\nHow long is the Elbe before it reaches the North Sea near Cuxhaven?"
        );
        assert_eq!(pruned, expected);
    }

    #[test]
    fn whole_text_tasks_and_texts_without_a_question_stay() {
        for question in [
            "Summarise the text above.",
            "List the rivers. Which is longest?",
            "How many rivers are named?",
            "Thank you.",
            "Quote the sentence: where does the Elbe rise?",
        ] {
            assert_eq!(prune_message(&message(question), None), None, "{question}");
        }
        let short = format!("{ELBE}\n\nHow long is the Elbe?");
        assert_eq!(prune_message(&short, None), None);
    }

    #[test]
    fn irrelevant_prose_beside_a_relevant_list_is_cut() {
        let list = "- A4411 shipped desk 1 Jan\n- B2090 delayed lamp 3 Feb\n- Note: all times are local.\n\
                    - C7731 returned rug 9 Mar\n- D1002 packed mug 4 Apr";
        let text = format!(
            "{list}\n\n{BREAD}\n\n{OPERA}\n\n{TRAIN}\n\nQuestion: what is the status of B2090?"
        );
        let expected = format!("{list}\n\nQuestion: what is the status of B2090?");
        assert_eq!(prune_message(&text, None).as_deref(), Some(&*expected));
        // Instructions are not data.
        let instruction = text.replace("- Note: all times", "- Summarise all times");
        assert_eq!(prune_message(&instruction, None), None);
        // An irrelevant list does not change the result.
        let elsewhere = format!(
            "{list}\n\n{}",
            message("How long is the Elbe before it reaches the North Sea near Cuxhaven?")
        );
        let pruned = prune_message(&elsewhere, None).expect("something goes");
        assert!(pruned.contains(ELBE) && pruned.contains(list) && !pruned.contains(BREAD));
    }

    #[test]
    fn code_lists_and_short_paragraphs_stay() {
        let others = "```\nElse = 1\n\n\nx\n```\n\n- flour\n- salt\n\nA short note.\n\n";
        let text = others.to_owned()
            + &message("How long is the Elbe before it reaches the North Sea near Cuxhaven?");
        let pruned = prune_message(&text, None).expect("something goes");
        assert!(pruned.starts_with(others), "{pruned}");
        assert!(pruned.contains(ELBE) && !pruned.contains(BREAD));
    }
}
