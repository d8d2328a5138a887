use proptest::prelude::*;

use super::{
    antonyms::ANTONYMS,
    guards::{Veto, veto},
    *,
};

#[test]
fn each_guard_finds_its_difference() {
    for (a, b, expected) in [
        ("What is 15% of 80?", "What is 25% of 80?", Veto::Number),
        ("Is a 2.0 GPA good?", "Is a 3.0 GPA good?", Veto::Number),
        (
            "Name three rivers of Spain",
            "Name five rivers of Spain",
            Veto::Number,
        ),
        ("How far is 5 km?", "How far is 5 miles?", Veto::Unit),
        ("What opens on Monday?", "What opens on Friday?", Veto::Date),
        (
            "What happened yesterday?",
            "What happened today?",
            Veto::Date,
        ),
        ("Can I eat it raw?", "Can I not eat it raw?", Veto::Negation),
        ("Why don't cats swim?", "Why do cats swim?", Veto::Negation),
        (
            "Is it legal to park on grass?",
            "Is it illegal to park on grass?",
            Veto::Negation,
        ),
        (
            "How do I enable cookies?",
            "How do I disable cookies?",
            Veto::Antonym,
        ),
        (
            "What is the highest mountain?",
            "What is the lowest mountain?",
            Veto::Antonym,
        ),
        (
            "What is the capital of France?",
            "What is the capital of Spain?",
            Veto::Entity,
        ),
        (
            "How do I install Python on Windows?",
            "How do I install Python on macOS?",
            Veto::Entity,
        ),
        (
            "Who founded the city?",
            "When was the city founded?",
            Veto::QuestionWord,
        ),
        (
            "How many teeth do cats have?",
            "How do cats have teeth?",
            Veto::QuestionWord,
        ),
        (
            "What does this mean?",
            "What is the meaning of this?",
            Veto::Deictic,
        ),
        ("What did he say?", "What did he say then?", Veto::Deictic),
        (
            "Do dogs chase cats?",
            "Do cats chase dogs?",
            Veto::WordOrder,
        ),
        (
            "Flights from oslo to rome?",
            "Flights from rome to oslo?",
            Veto::WordOrder,
        ),
        (
            "What is the capital of peru?",
            "What is the capital of chile?",
            Veto::Words,
        ),
        (
            "What is the scope of BBA?",
            "What is the scope of BBA (IT)?",
            Veto::Entity,
        ),
        (
            "What was the main cause of the war?",
            "What was the main cause that ended the war?",
            Veto::Words,
        ),
        (
            "How do I cook rice?",
            "How do I cook brown rice with beans?",
            Veto::Words,
        ),
    ] {
        assert_eq!(veto(a, b), Some(expected), "{a} / {b}");
        assert_eq!(veto(b, a), Some(expected), "{b} / {a}");
    }
}

#[test]
fn paraphrases_are_hits() {
    for (a, b) in [
        ("How do I lose weight?", "How can I lose weight?"),
        (
            "What is the best way to learn French?",
            "How do I learn French?",
        ),
        ("Is talcum powder cancerous?", "Is talcum powder cancerous"),
        (
            "What's the capital of Spain?",
            "What is the capital of spain?",
        ),
        (
            "How much is 1,000 dollars in euros?",
            "How much is 1000 dollars in euros?",
        ),
    ] {
        assert_eq!(veto(a, b), None, "{a} / {b}");
    }
}

#[test]
fn uncertainty_and_failure_are_misses() {
    let (a, b) = ("How do I lose weight?", "How can I lose weight?");
    let compared = |cosine| compare(a, b, cosine, COSINE_MIN);
    assert_eq!(compared(Some(0.99)).outcome(), "hit");
    assert_eq!(compared(Some(COSINE_MIN - 0.01)).veto, Some(Veto::Cosine));
    assert_eq!(compared(None).veto, Some(Veto::Failure));
    assert_eq!(compared(Some(f32::NAN)).veto, Some(Veto::Failure));
    assert_eq!(compare(a, a, None, COSINE_MIN).outcome(), "hit");
}

/// A changed number, negation, opposite or name is a miss at any similarity, for 500 questions.
#[test]
fn none_of_500_generated_changes_is_a_hit() {
    let subjects = [
        "the bridge",
        "a tax return",
        "my old router",
        "the school bus",
        "a garden pond",
    ];
    let places = [
        "Lisbon", "Oslo", "Kenya", "Peru", "Texas", "Cairo", "Hanoi", "Malta", "Ghana", "Quito",
        "Nepal",
    ];
    let mut changes: Vec<(String, String)> = Vec::new();
    for at in 0..125 {
        let subject = subjects[at % subjects.len()];
        let (place, other) = (
            places[at % places.len()],
            places[(at * 7 + 3) % places.len()],
        );
        let other = if place == other { "Bhutan" } else { other };
        let number = at + 2;
        changes.push((
            format!("How do I insure {subject} for {number} weeks?"),
            format!(
                "How do I insure {subject} for {} weeks?",
                number + 1 + at % 9
            ),
        ));
        let verb = ["should", "can", "must", "would", "does"][at % 5];
        changes.push((
            format!("Why {verb} one repair {subject} in {place}?"),
            format!("Why {verb} one not repair {subject} in {place}?"),
        ));
        let (one, contrary) = ANTONYMS[at % ANTONYMS.len()];
        changes.push((
            format!("Is it wise to call {subject} {one} in winter?"),
            format!("Is it wise to call {subject} {contrary} in winter?"),
        ));
        changes.push((
            format!("Where can I register {subject} in {place}?"),
            format!("Where can I register {subject} in {other}?"),
        ));
    }
    assert_eq!(changes.len(), 500);
    for (a, b) in changes {
        assert_ne!(
            compare(&a, &b, Some(1.0), COSINE_MIN).veto,
            None,
            "{a} / {b}"
        );
    }
}

proptest! {
    /// The comparison is symmetric and total, and equal texts are hits.
    #[test]
    fn the_comparison_is_symmetric(a in ".{0,60}", b in "([a-zA-Z0-9.,'%€ ]|not |this |[A-Z][a-z]+ ){0,30}") {
        prop_assert_eq!(veto(&a, &b), veto(&b, &a));
        prop_assert_eq!(compare(&a, &a, None, COSINE_MIN).veto, None);
    }

    #[test]
    fn another_number_is_never_a_hit(number in 2u32..100_000, by in 1u32..50, head in "[a-z]{3,8}( [a-z]{3,8}){0,4}") {
        let (a, b) = (format!("{head} {number}"), format!("{head} {}", number + by));
        prop_assert_eq!(veto(&a, &b), Some(Veto::Number));
    }
}
