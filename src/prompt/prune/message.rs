//! A message's question, and the paragraphs of context in it.
//!
//! Long paragraphs of prose are context; everything else (short paragraphs, headings, the last
//! paragraph, whatever asks, code, documents, lists, tables, quotations) stays as it is. Only a message with a real question
//! is pruned: a task about the whole text (to summarise, translate, list, count) needs all of it.

use std::ops::Range;

use super::{Similarity, keep};
use crate::prompt::{
    clean::{code, fences, intent, plain},
    estimate_tokens,
};

/// Shortest paragraph that counts as context, in estimated tokens.
const PARAGRAPH_TOKENS_MIN: usize = 24;
/// Fewest paragraphs of context that are worth choosing among.
const PARAGRAPHS_MIN: usize = 3;
/// Least context that is worth pruning, in estimated tokens.
const CONTEXT_TOKENS_MIN: usize = 100;

/// Words of tasks that need the whole text.
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
/// Words that a question begins with when it has no question mark.
const QUESTION_WORDS: &[&str] = &[
    "who", "whom", "whose", "what", "when", "where", "which", "why", "how", "is", "are", "was",
    "were", "do", "does", "did", "can", "could", "will", "would", "has", "have", "had", "should",
];

/// The message without the context that its question does not need; `None` when nothing is cut.
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
    let stays = keep(&question, &paragraphs, similarity);
    if stays.len() == paragraphs.len() {
        return None;
    }
    let mut gone = vec![false; blocks.len()];
    for (nth, at) in context.iter().enumerate() {
        gone[*at] = stays.binary_search(&nth).is_err();
    }
    let mut out = String::with_capacity(text.len());
    for (at, block) in blocks.iter().enumerate() {
        // A blank line goes with the paragraph before it.
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
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (range, is_open) in fences(text) {
        if !is_open {
            blocks.push(Block {
                range,
                is_blank: false,
                is_context: false,
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
            });
            at = end;
        }
    }
    // The last word is the producer's, and may be the question.
    if let Some(last) = blocks.iter_mut().rev().find(|block| !block.is_blank) {
        last.is_context = false;
    }
    blocks
}

/// A long paragraph of prose that asks nothing.
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

/// What is asked: the paragraphs that are no context and ask something. `None` when nothing is asked, or
/// the task needs the whole text or is about its form.
fn question(text: &str, blocks: &[Block]) -> Option<String> {
    let mut asked = Vec::new();
    for block in blocks
        .iter()
        .filter(|block| !block.is_context && !block.is_blank)
    {
        let part = text[block.range.clone()].trim();
        if needs_whole_text(part) {
            return None;
        }
        let lower = part.to_lowercase();
        let first = lower
            .split(|c: char| !c.is_alphanumeric())
            .find(|word| !word.is_empty());
        let begins = first.is_some_and(|word| QUESTION_WORDS.contains(&word));
        // Labels such as "Question: who …" come before.
        let labelled = lower.starts_with("question") || lower.starts_with("q:");
        if part.contains('?') || begins || labelled {
            asked.push(part);
        }
    }
    (!asked.is_empty()).then(|| asked.join(" "))
}

/// True for a task that needs the whole text, or is about its form.
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
    fn tasks_about_the_whole_text_and_texts_without_a_question_stay() {
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
    fn code_lists_and_short_paragraphs_stay() {
        let others = "```\nElse = 1\n\n\nx\n```\n\n- flour\n- salt\n\nA short note.\n\n";
        let text = others.to_owned()
            + &message("How long is the Elbe before it reaches the North Sea near Cuxhaven?");
        let pruned = prune_message(&text, None).expect("something goes");
        assert!(pruned.starts_with(others), "{pruned}");
        assert!(pruned.contains(ELBE) && !pruned.contains(BREAD));
    }
}
