//! Whether two answers are equivalent: the criterion of rechecks of reused answers.

use super::guards::{Veto, veto_by};

/// Least cosine of two equivalent answers with different words.
const COSINE_MIN: f32 = 0.85;
/// Differences that equivalent answers must not have, at any similarity. Names and words may differ:
/// one answer may be more detailed than the other.
const FACTS: [Veto; 5] = [
    Veto::Number,
    Veto::Unit,
    Veto::Date,
    Veto::Negation,
    Veto::Antonym,
];

/// Whether two answers are equivalent: they have the same words, or are similar (`cosine`) and agree in
/// numbers, units, dates and negations. Without a cosine, different words are not equivalent.
pub fn are_equivalent(a: &str, b: &str, cosine: Option<f32>) -> bool {
    words(a).eq(words(b))
        || cosine.is_some_and(|cosine| cosine >= COSINE_MIN) && veto_by(&FACTS, a, b).is_none()
}

/// Words in lower case without the punctuation around them.
fn words(text: &str) -> impl Iterator<Item = String> {
    text.split_whitespace()
        .map(|word| {
            word.trim_matches(|c: char| !c.is_alphanumeric())
                .to_lowercase()
        })
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_negations_matter_punctuation_and_case_do_not() {
        assert!(are_equivalent("It ships today.", " it ships today", None));
        assert!(are_equivalent(
            "We ship every order today.",
            "Each order is shipped today.",
            Some(0.9)
        ));
        for (a, b, cosine) in [
            ("It costs 12 euros.", "It costs 13 euros.", Some(0.99)),
            ("You can return it.", "You cannot return it.", Some(0.98)),
            ("We ship on Monday.", "We ship on Friday.", Some(0.97)),
            ("We ship today.", "The desk is made of oak.", Some(0.1)),
            ("We ship today.", "Shipped the same day.", None),
        ] {
            assert!(!are_equivalent(a, b, cosine), "{a} / {b}");
        }
    }
}
