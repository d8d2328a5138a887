//! A score for each prompt: how much it would gain from the large model.
//!
//! The weights are set by hand. Length carries nearly all of what can be seen before generation
//! without fitted word weights; words of calculation and reasoning push up a little, words of
//! routine tasks, numbers and long words down. On RouteLLM's MMLU and GSM8K labels and MMLU-Pro
//! this ranks at or slightly above length alone (exact APGR .564, .572, .493 against .565, .565,
//! .477), so it is a baseline and no more. A fitted model takes its place behind the same two
//! functions.

use super::features::Features;

/// Name and version kept with every decision.
pub const SCORER: &str = "task-features-1";

/// Weight of `ln(1 + count)` for each feature, in the order of [`Features::NAMES`].
const WEIGHTS: [f64; Features::COUNT] = [
    1.00,  // chars
    0.20,  // context_chars
    0.00,  // words: chars tell the same
    0.10,  // turns
    0.00,  // questions
    -0.10, // numbers
    0.00,  // operators
    0.30,  // math_words
    0.10,  // code_marks
    0.20,  // reasoning_words
    0.00,  // constraint_words
    -0.50, // routine_words
    0.00,  // choices
    -0.25, // long_words
    0.00,  // foreign_chars
    0.10,  // conditional_words
];

/// Puts a plain prompt of about 110 characters at one half.
const BIAS: f64 = -4.8;

/// Scores a prompt: 0 to 1, higher when the large model would help more.
pub fn score(features: &Features) -> f64 {
    let sum: f64 = features
        .values()
        .iter()
        .zip(WEIGHTS)
        .map(|(value, weight)| value.ln_1p() * weight)
        .sum();
    1.0 / (1.0 + (-(sum + BIAS)).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> f64 {
        score(&Features::of_text(text))
    }

    #[test]
    fn hard_prompts_score_above_routine_ones() {
        let routine = [
            "Hello!",
            "What is the capital of France?",
            "Classify the sentiment of this review: great phone, fast delivery.",
        ];
        let hard = [
            "A train leaves at 9:40 and travels 180 km at 72 km/h, then waits 25 minutes and travels 96 km at 64 km/h. When does it arrive? Explain each step.",
            "Prove that the sum of the first n odd numbers is n^2, then derive a formula for the sum of their squares and justify every step.",
            "Write a Python function that merges overlapping intervals; it must run in O(n log n), must not use recursion, and explain why it is correct.",
        ];
        for easy in routine {
            assert!(of(easy) < 0.5, "{easy}: {}", of(easy));
            for difficult in hard {
                assert!(of(difficult) > of(easy));
            }
        }
        for difficult in hard {
            assert!(of(difficult) >= 0.5, "{difficult}: {}", of(difficult));
        }
    }

    #[test]
    fn is_finite_between_zero_and_one_for_any_text() {
        let long = "7? ".repeat(100_000);
        for text in ["", " ", long.as_str(), "\u{0}\u{1F600}"] {
            let score = of(text);
            assert!((0.0..=1.0).contains(&score));
        }
    }
}
