//! Removes context that a question does not need (`context: prune`).
//!
//! Comes in: a question and paragraphs; with an embedder, their similarities. Goes out: the paragraphs
//! to keep, in order ([`keep`]). Paragraphs are kept or removed whole. [`message`] finds the question
//! and the paragraphs of a message.
//!
//! The cut adapts to the scores: paragraphs within a fixed gap below the best are kept, the gap being a
//! share of the question's maximum score. If no paragraph stands out, nothing is cut. The
//! thresholds were frozen on Natural Questions, the harder of the two families in `bench prune`,
//! and are never fitted to a run.

pub mod lexical;
pub mod message;
pub mod words;

use lexical::{Index, Scores};

/// Largest gap below the best paragraph without an embedder, in square roots of the question's maximum score.
const WORDS_GAP_MAX: f64 = 2.2;
/// The same if every paragraph has a title and a single question is asked: titles name the subject, mostly
/// in the question's words.
const TITLED_GAP_MAX: f64 = 1.4;
/// Largest gap below the best paragraph with an embedder.
const EMBEDDED_GAP_MAX: f64 = 3.6;
/// Weight of the cosine similarity.
const COSINE_WEIGHT: f64 = 10.0;
/// Weight of the lexical score, as a share of the maximum score.
const WORDS_WEIGHT: f64 = 2.0;
/// Additional gap for a paragraph whose subject is named by the best one.
const LINK_FACTOR: f64 = 1.6;
/// Maximum number of paragraphs searched for the subjects of others.
const LINKING_MAX: usize = 2;
/// Longest title line, in bytes.
const TITLE_BYTES_MAX: usize = 80;
/// Shortest distinctive name, in bytes.
const NAME_BYTES_MIN: usize = 4;
/// Minimum number of words of a question part that is scored separately.
const PART_WORDS_MIN: usize = 3;
/// Maximum number of question parts.
const PARTS_MAX: usize = 4;

/// Computes cosine similarities: one row per question, one value per text. `None` on failure; the
/// lexical score then decides alone.
pub trait Similarity {
    /// Compares every question with every text.
    fn cosines(&self, questions: &[&str], texts: &[&str]) -> Option<Vec<Vec<f32>>>;
}

/// Indices of the paragraphs to keep, ascending; empty only if there are none.
pub fn keep(
    question: &str,
    paragraphs: &[&str],
    similarity: Option<&dyn Similarity>,
) -> Vec<usize> {
    let gaps = gaps(question, paragraphs, similarity);
    let mut stays = vec![false; paragraphs.len()];
    for part in &gaps {
        for (at, gap) in part.iter().enumerate() {
            stays[at] |= *gap <= 1.0;
        }
    }
    for part in &gaps {
        keep_linked(paragraphs, part, &mut stays);
    }
    (0..paragraphs.len()).filter(|at| stays[*at]).collect()
}

/// The gap of each paragraph to the best one, for the closest question part, as a share of the largest
/// allowed gap: paragraphs up to 1 are kept.
pub fn gaps(
    question: &str,
    paragraphs: &[&str],
    similarity: Option<&dyn Similarity>,
) -> Vec<Vec<f64>> {
    if paragraphs.is_empty() {
        return Vec::new();
    }
    let parts = parts(question);
    let index = Index::new(paragraphs);
    let are_titled = paragraphs
        .iter()
        .all(|paragraph| title(paragraph).is_some());
    let asks_one_thing = parts.len() == 1 && !question.contains(" and ");
    let words_gap_max = match are_titled && asks_one_thing {
        true => TITLED_GAP_MAX,
        false => WORDS_GAP_MAX,
    };
    let cosines = similarity
        .and_then(|similarity| similarity.cosines(&parts, paragraphs))
        .filter(|rows| {
            let fits = |row: &Vec<f32>| {
                row.len() == paragraphs.len() && row.iter().all(|cosine| cosine.is_finite())
            };
            rows.len() == parts.len() && rows.iter().all(fits)
        });
    parts
        .iter()
        .enumerate()
        .map(|(at, part)| {
            let Scores { scores, full } = index.scores(part);
            let full = full.max(1.0);
            let (scores, gap_max): (Vec<f64>, f64) = match &cosines {
                Some(rows) => {
                    let both = scores.iter().zip(&rows[at]).map(|(words, cosine)| {
                        COSINE_WEIGHT * f64::from(*cosine) + WORDS_WEIGHT * words / full
                    });
                    (both.collect(), EMBEDDED_GAP_MAX)
                }
                None => (scores, words_gap_max * full.sqrt()),
            };
            let best = scores.iter().copied().fold(f64::MIN, f64::max);
            scores
                .iter()
                .map(|score| (best - score) / gap_max)
                .collect()
        })
        .collect()
}

/// The whole question, and its parts if it asks several things.
fn parts(question: &str) -> Vec<&str> {
    const ASKING: [&str; 9] = [
        "who", "whom", "whose", "what", "when", "where", "which", "why", "how",
    ];
    /// Words after "and" within which the next question word must follow: "and in which year".
    const ASKING_WITHIN: usize = 3;
    let mut parts = vec![question];
    let lower = question.to_ascii_lowercase();
    let mut cuts: Vec<(usize, usize)> = lower
        .match_indices('?')
        .map(|(at, _)| (at, at + 1))
        .collect();
    for (at, joint) in lower.match_indices(" and ") {
        let next = lower[at + joint.len()..].split_whitespace();
        if next.take(ASKING_WITHIN).any(|word| ASKING.contains(&word)) {
            cuts.push((at, at + joint.len()));
        }
    }
    cuts.sort_unstable();
    let mut from = 0;
    for (end, next) in cuts.into_iter().chain([(question.len(), question.len())]) {
        let part = question[from..end].trim();
        let is_whole = part.len() + 2 >= question.trim().len();
        if part.split_whitespace().count() >= PART_WORDS_MIN
            && !is_whole
            && parts.len() <= PARTS_MAX
        {
            parts.push(part);
        }
        from = next;
    }
    parts
}

/// Keeps paragraphs whose subject is named by one of the best: the second hop of a question often
/// shares no word with it.
fn keep_linked(paragraphs: &[&str], gaps: &[f64], stays: &mut [bool]) {
    let mut order: Vec<usize> = (0..gaps.len()).filter(|at| gaps[*at] <= 1.0).collect();
    order.sort_by(|a, b| gaps[*a].total_cmp(&gaps[*b]));
    order.truncate(LINKING_MAX);
    for at in 0..paragraphs.len() {
        if !stays[at]
            && gaps[at] <= LINK_FACTOR
            && subject(paragraphs[at])
                .is_some_and(|subject| order.iter().any(|best| paragraphs[*best].contains(subject)))
        {
            stays[at] = true;
        }
    }
}

/// The subject of a paragraph: its title line, or the name at its start.
fn subject(paragraph: &str) -> Option<&str> {
    if let Some(title) = title(paragraph) {
        return Some(title);
    }
    let text = without_marks(paragraph);
    let text = ["The ", "A ", "An "]
        .iter()
        .find_map(|article| text.strip_prefix(article))
        .unwrap_or(text);
    let mut end = 0;
    for word in text.split(' ') {
        if !word.starts_with(char::is_uppercase) {
            break;
        }
        end += word.len() + 1;
        if word.ends_with([',', '.', ';', ':']) {
            break;
        }
    }
    let name = text
        .get(..end.saturating_sub(1))?
        .trim_end_matches([',', '.', ';', ':']);
    let is_function = words::words(name).iter().all(|word| word.is_function);
    (name.len() >= NAME_BYTES_MIN && !is_function).then_some(name)
}

/// The title line of a paragraph.
fn title(paragraph: &str) -> Option<&str> {
    let (title, _) = without_marks(paragraph).split_once('\n')?;
    let title = title.trim();
    let fits = (NAME_BYTES_MIN..=TITLE_BYTES_MAX).contains(&title.len());
    (fits && !title.ends_with('.')).then_some(title)
}

fn without_marks(paragraph: &str) -> &str {
    paragraph.trim_start_matches(['#', ' ', '\n', '*'])
}

#[cfg(test)]
mod tests;
