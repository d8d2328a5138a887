//! Whether two answers say the same: how rechecks of reused answers are judged.

use super::guards::{Veto, veto_by};

/// Least cosine of two answers that say the same in other words.
const COSINE_MIN: f32 = 0.85;
/// What two answers must not differ in, however alike they are. Names and words are free: one may say
/// more than the other.
const FACTS: [Veto; 5] = [
    Veto::Number,
    Veto::Unit,
    Veto::Date,
    Veto::Negation,
    Veto::Antonym,
];

/// Whether two answers say the same: in the same words, or in others that an encoder finds alike
/// (`cosine`) and that differ in no number, unit, date or denial. What cannot be compared does not.
pub fn says_same(a: &str, b: &str, cosine: Option<f32>) -> bool {
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
    fn punctuation_and_case_say_nothing_and_numbers_and_denials_do() {
        assert!(says_same("It ships today.", " it ships today", None));
        assert!(says_same(
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
            assert!(!says_same(a, b, cosine), "{a} / {b}");
        }
    }
}
