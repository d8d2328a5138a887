use proptest::prelude::*;

use super::*;

const PARAGRAPHS: [&str; 4] = [
    "The Elbe rises in the Giant Mountains and reaches the sea near Cuxhaven after 1,094 km.",
    "Fidelio is the only opera of Ludwig van Beethoven. It was first given in Vienna in 1805.",
    "Ludwig van Beethoven was born in Bonn in 1770 and died in 1827.",
    "Bread is baked from flour, water and salt.",
];

struct Fixed(Vec<f32>);

impl Similarity for Fixed {
    fn cosines(&self, questions: &[&str], _: &[&str]) -> Option<Vec<Vec<f32>>> {
        Some(vec![self.0.clone(); questions.len()])
    }
}

#[test]
fn relevant_paragraphs_are_kept() {
    assert_eq!(
        keep(
            "How long is the Elbe from the Giant Mountains to the sea?",
            &PARAGRAPHS,
            None
        ),
        [0]
    );
    // Each part of a question keeps its own paragraphs.
    let both = keep(
        "How long is the Elbe to the sea, and what is bread baked from?",
        &PARAGRAPHS,
        None,
    );
    assert!(both.contains(&0) && both.contains(&3), "{both:?}");
}

#[test]
fn paragraphs_named_by_the_best_one_are_kept() {
    let question = "When was the composer of Fidelio, that only opera, born in which town?";
    let kept = keep(
        question,
        &PARAGRAPHS,
        Some(&Fixed(vec![0.0, 0.6, 0.1, 0.0])),
    );
    assert_eq!(kept, [1, 2]);
}

#[test]
fn nothing_is_cut_when_no_paragraph_stands_out() {
    assert_eq!(keep("Why?", &PARAGRAPHS, None), [0, 1, 2, 3]);
    assert_eq!(keep("", &PARAGRAPHS, None), [0, 1, 2, 3]);
    assert!(keep("Why?", &[], None).is_empty());
}

#[test]
fn a_failing_embedder_falls_back_to_the_lexical_score() {
    struct Broken;
    impl Similarity for Broken {
        fn cosines(&self, _: &[&str], _: &[&str]) -> Option<Vec<Vec<f32>>> {
            None
        }
    }
    let question = "How long is the Elbe from the Giant Mountains to the sea?";
    for broken in [
        &Broken as &dyn Similarity,
        &Fixed(vec![f32::NAN; 4]),
        &Fixed(vec![0.5]),
    ] {
        assert_eq!(keep(question, &PARAGRAPHS, Some(broken)), [0]);
    }
}

#[test]
fn questions_are_scored_by_parts() {
    assert_eq!(
        parts("who wrote it and when was it first shown"),
        [
            "who wrote it and when was it first shown",
            "who wrote it",
            "when was it first shown"
        ]
    );
    assert_eq!(parts("Who wrote it?"), ["Who wrote it?"]);
}

proptest! {
    /// Paragraphs that stay are some of those given, in order, the best among them; the order in which they come
    /// does not matter.
    #[test]
    fn kept_paragraphs_do_not_depend_on_their_order(
        question in "([a-d]{1,3} ){1,6}\\??",
        paragraphs in prop::collection::vec("([a-d]{1,3}[ .]){1,12}", 1..7),
    ) {
        let texts: Vec<&str> = paragraphs.iter().map(String::as_str).collect();
        let kept = keep(&question, &texts, None);
        prop_assert!(!kept.is_empty() && kept.is_sorted() && kept.iter().all(|at| *at < texts.len()));
        let reversed: Vec<&str> = texts.iter().rev().copied().collect();
        let mut back: Vec<_> = keep(&question, &reversed, None).iter().map(|at| texts.len() - 1 - at).collect();
        back.reverse();
        // Ties among linking paragraphs may be broken otherwise; who stays by score is the same.
        let by_score = |kept: &[usize], texts: &[&str]| -> Vec<usize> {
            let gaps = gaps(&question, texts, None);
            kept.iter().copied().filter(|at| gaps.iter().any(|part| part[*at] <= 1.0 - 1e-9)).collect()
        };
        prop_assert_eq!(by_score(&kept, &texts), by_score(&back, &texts));
    }
}
