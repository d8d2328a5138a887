//! Lexical relevance of a paragraph to a question.
//!
//! The score adds BM25 over stems (Robertson & Zaragoza 2009; document frequencies from the given
//! paragraphs), word pairs adjacent in both, words with a common prefix, the best single sentence, and
//! the presence of the expected answer type (a person, date, place or number).

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use super::words::{Word, words};

/// BM25 `k1`: saturation of repeated terms.
const K1: f64 = 1.2;
/// BM25 `b`: share of length normalisation.
const B: f64 = 0.5;
/// Weight of a word that shares a prefix, relative to an exact match.
const KIN_WEIGHT: f64 = 0.4;
/// Weight of an identifier (such as an order number) relative to a word as rare in these paragraphs: a
/// few paragraphs do not show how rare it is elsewhere.
const IDENTIFIER_WEIGHT: f64 = 3.0;
/// Shortest identifier with letters and digits, and with digits only: a year is not one.
const IDENTIFIER_CHARS_MIN: [usize; 2] = [4, 5];
/// Letters of a shared prefix.
const KIN_LETTERS: usize = 4;
/// Maximum difference in length of two words that share a prefix.
const KIN_LENGTH_GAP_MAX: usize = 4;

/// Scores of paragraphs for one question.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// One per paragraph, at least 0.
    pub scores: Vec<f64>,
    /// The BM25 score of a paragraph that contained every word of the question.
    pub full: f64,
}

/// Paragraphs split into words, once for all parts of a question.
#[derive(Debug)]
pub struct Index {
    paragraphs: Vec<Paragraph>,
    /// Document frequency of each stem.
    frequency: HashMap<String, usize>,
    length_mean: f64,
}

#[derive(Debug)]
struct Paragraph {
    words: Vec<Word>,
    counts: HashMap<String, usize>,
    sentences: Vec<Range<usize>>,
    kinds: [f64; 4],
}

impl Index {
    /// Reads paragraphs.
    pub fn new<T: AsRef<str>>(paragraphs: &[T]) -> Self {
        let paragraphs: Vec<_> = paragraphs
            .iter()
            .map(|p| Paragraph::new(p.as_ref()))
            .collect();
        let mut frequency = HashMap::new();
        for paragraph in &paragraphs {
            for stem in paragraph.counts.keys() {
                *frequency.entry(stem.clone()).or_default() += 1;
            }
        }
        let words: usize = paragraphs
            .iter()
            .map(|paragraph| paragraph.words.len())
            .sum();
        Self {
            length_mean: (words as f64 / paragraphs.len().max(1) as f64).max(1.0),
            paragraphs,
            frequency,
        }
    }

    /// Scores the paragraphs for a question.
    pub fn scores(&self, question: &str) -> Scores {
        let asked = words(question);
        let mut terms: Vec<&str> = Vec::new();
        let says_something = asked.iter().any(|word| !word.is_function);
        for word in &asked {
            if (!word.is_function || !says_something) && !terms.contains(&word.stem.as_str()) {
                terms.push(&word.stem);
            }
        }
        let weight = |term: &&str| {
            let factor = if is_identifier(term) {
                IDENTIFIER_WEIGHT
            } else {
                1.0
            };
            factor * self.weight(term)
        };
        let weights: Vec<f64> = terms.iter().map(weight).collect();
        let count = self.paragraphs.len() as f64;
        let pairs: HashSet<(&str, &str)> = asked
            .windows(2)
            .filter(|pair| !(pair[0].is_function && pair[1].is_function))
            .map(|pair| (pair[0].stem.as_str(), pair[1].stem.as_str()))
            .collect();
        let kind = Kind::asked(question);
        let scores = self
            .paragraphs
            .iter()
            .map(|paragraph| {
                paragraph.terms(&terms, &weights, self.length_mean)
                    + paragraph.best_sentence(&terms, &weights)
                    + paragraph.pairs(&pairs)
                    + kind.map_or(0.0, |kind| paragraph.kinds[kind as usize])
            })
            .collect();
        Scores {
            scores,
            full: terms.len() as f64 * (1.0 + (count + 0.5) / 0.5).ln(),
        }
    }

    /// Inverse document frequency of a term.
    fn weight(&self, term: &str) -> f64 {
        let count = self.paragraphs.len() as f64;
        let with = self.frequency.get(term).copied().unwrap_or(0) as f64;
        (1.0 + (count - with + 0.5) / (with + 0.5)).ln()
    }
}

/// True for an identifier: letters and digits together, or many digits.
fn is_identifier(term: &str) -> bool {
    let digits = term.chars().filter(char::is_ascii_digit).count();
    let chars = term.chars().count();
    let [mixed, plain] = IDENTIFIER_CHARS_MIN;
    digits > 0
        && term.chars().all(char::is_alphanumeric)
        && chars >= if digits < chars { mixed } else { plain }
}

impl Paragraph {
    fn new(text: &str) -> Self {
        let (mut all, mut counts, mut parts) = (Vec::new(), HashMap::new(), Vec::new());
        for sentence in sentences(text) {
            let own = words(sentence);
            for word in &own {
                *counts.entry(word.stem.clone()).or_default() += 1;
            }
            parts.push(all.len()..all.len() + own.len());
            all.extend(own);
        }
        Self {
            kinds: Kind::ALL.map(|kind| kind.present(text)),
            words: all,
            counts,
            sentences: parts,
        }
    }

    /// BM25, with a reduced weight for words that only share a prefix.
    fn terms(&self, terms: &[&str], weights: &[f64], length_mean: f64) -> f64 {
        let length = 1.0 - B + B * self.words.len() as f64 / length_mean;
        let mut score = 0.0;
        for (term, weight) in terms.iter().zip(weights) {
            match self.counts.get(*term) {
                Some(count) => {
                    let count = *count as f64;
                    score += weight * count * (K1 + 1.0) / (count + K1 * length);
                }
                None if self.has_kin(term) => score += weight * KIN_WEIGHT,
                None => {}
            }
        }
        score
    }

    fn has_kin(&self, term: &str) -> bool {
        let Some(prefix) = term.get(..KIN_LETTERS) else {
            return false;
        };
        self.counts.keys().any(|stem| {
            stem.starts_with(prefix) && stem.len().abs_diff(term.len()) <= KIN_LENGTH_GAP_MAX
        })
    }

    fn best_sentence(&self, terms: &[&str], weights: &[f64]) -> f64 {
        let score = |sentence: &Range<usize>| -> f64 {
            let words = &self.words[sentence.clone()];
            let found = terms
                .iter()
                .zip(weights)
                .filter(|(term, _)| words.iter().any(|word| word.stem == **term));
            found.map(|(_, weight)| weight).sum()
        };
        self.sentences.iter().map(score).fold(0.0, f64::max)
    }

    /// Word pairs that are also adjacent in the question.
    fn pairs(&self, asked: &HashSet<(&str, &str)>) -> f64 {
        let found: HashSet<_> = self
            .words
            .windows(2)
            .map(|pair| (pair[0].stem.as_str(), pair[1].stem.as_str()))
            .filter(|pair| asked.contains(pair))
            .collect();
        found.len() as f64
    }
}

/// Splits sentences at a mark and a space, except after very short ones (initials, abbreviations).
fn sentences(text: &str) -> Vec<&str> {
    /// Shortest sentence, in bytes.
    const BYTES_MIN: usize = 12;
    let (mut sentences, mut from) = (Vec::new(), 0);
    for (at, mark) in text.match_indices(['.', '!', '?', '\n', '。']) {
        let end = at + mark.len();
        let ends = mark == "\n" || mark == "。" || text[end..].starts_with(char::is_whitespace);
        if ends && end - from >= BYTES_MIN {
            sentences.push(&text[from..end]);
            from = end;
        }
    }
    sentences.push(&text[from..]);
    sentences
}

/// The expected answer type of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Person,
    Date,
    Place,
    Number,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Person, Self::Date, Self::Place, Self::Number];

    fn asked(question: &str) -> Option<Self> {
        let lower = question.to_lowercase();
        let words: Vec<_> = lower.split(|c: char| !c.is_alphanumeric()).collect();
        let has = |wanted: &[&str]| words.iter().any(|word| wanted.contains(word));
        let follows = |first: &[&str], second: &[&str]| {
            words
                .windows(2)
                .any(|pair| first.contains(&pair[0]) && second.contains(&pair[1]))
        };
        if has(&["who", "whose", "whom"]) {
            Some(Self::Person)
        } else if has(&["when"]) || follows(&["what", "which"], &["year", "date", "day", "century"])
        {
            Some(Self::Date)
        } else if has(&["where"])
            || follows(
                &["what", "which"],
                &["city", "country", "state", "county", "town", "place"],
            )
        {
            Some(Self::Place)
        } else if follows(
            &["how"],
            &[
                "many", "much", "long", "old", "far", "tall", "high", "big", "large", "often",
                "deep",
            ],
        ) || follows(
            &["what", "which"],
            &["number", "percent", "percentage", "share"],
        ) {
            Some(Self::Number)
        } else {
            None
        }
    }

    /// Confidence that a text contains this answer type: 0, 0.5 or 1.
    fn present(self, text: &str) -> f64 {
        let tokens: Vec<&str> = text.split_whitespace().collect();
        let is_name = |token: &&str| token.starts_with(char::is_uppercase);
        let is_number = |token: &&str| token.contains(|c: char| c.is_ascii_digit());
        let count = match self {
            Self::Person => tokens
                .windows(2)
                .filter(|pair| pair.iter().all(is_name))
                .count(),
            Self::Date => tokens.iter().filter(|token| is_date(token)).count(),
            Self::Place => tokens
                .windows(2)
                .filter(|pair| {
                    ["in", "at", "near", "from", "of"].contains(&pair[0]) && is_name(&pair[1])
                })
                .count(),
            Self::Number => tokens.iter().filter(|token| is_number(token)).count(),
        };
        count.min(2) as f64 / 2.0
    }
}

fn is_date(token: &str) -> bool {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let token = token.trim_matches(|c: char| !c.is_alphanumeric());
    MONTHS.contains(&token)
        || token.len() == 4
            && token
                .parse::<u32>()
                .is_ok_and(|year| (1000..2100).contains(&year))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_paragraph_with_the_answer_scores_highest() {
        let index = Index::new(&[
            "The river Elbe rises in the Giant Mountains and flows north.",
            "The tram line was approved on 11 March 2024 by the council.",
            "The council meets each Tuesday. It has 43 members.",
        ]);
        let best = |question: &str| {
            let scores = index.scores(question).scores;
            (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b]))
        };
        assert_eq!(best("When did the council approve the tram line?"), Some(1));
        assert_eq!(best("How many members has the council?"), Some(2));
        assert_eq!(best("where do rivers rise"), Some(0));
        let none = index.scores("Who composed Fidelio?");
        assert!(none.scores.iter().all(|score| *score < 1.1), "{none:?}");
    }
}
