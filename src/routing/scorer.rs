//! A score for each prompt: how much it would gain from the large model.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::features::{FEATURES_VERSION, Features};

/// Why weights cannot be used. The message is one line.
#[derive(Debug, thiserror::Error)]
pub enum ScorerFault {
    /// The file cannot be read.
    #[error("cannot read the router's weights {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The bytes are no weights, or not all of them.
    #[error("these are no router weights, or they are damaged: {0}")]
    Damaged(&'static str),
    /// Weights of another format or for other features.
    #[error("the router's weights are of {what} {found}; this program reads {expected}")]
    WrongVersion {
        /// `format` or `features`.
        what: &'static str,
        /// Of this program.
        expected: u32,
        /// Of the weights.
        found: u32,
    },
}

/// What the weights think of a prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// How much the large model would help: 0 to 1, higher when it would help more.
    pub gain: f64,
    /// Probability that the small model's answer is wrong, 0 to 1.
    pub small_fails: f64,
    /// Share of what was seen that the weights know, 0 to 1; where it is low, length decides.
    pub familiarity: f64,
}

/// Fitted weights, shared and never changed.
#[derive(Clone, Debug)]
pub struct Scorer {
    weights: Arc<Weights>,
}

#[derive(Debug)]
struct Weights {
    version: String,
    linear: [f64; Features::COUNT],
    bias: f64,
}

impl Scorer {
    /// The weights that ship with the binary.
    pub fn bundled() -> Self {
        Self {
            weights: Arc::new(Weights {
                version: "task-features-1".to_owned(),
                linear: WEIGHTS,
                bias: BIAS,
            }),
        }
    }

    /// The weights of a file, or the bundled ones when there is none.
    ///
    /// # Errors
    /// As [`Scorer::load`].
    pub fn open(path: Option<&Path>) -> Result<Self, ScorerFault> {
        path.map_or_else(|| Ok(Self::bundled()), Self::load)
    }

    /// Reads weights from a file.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged or is of another version.
    pub fn load(path: &Path) -> Result<Self, ScorerFault> {
        let bytes = std::fs::read(path).map_err(|source| ScorerFault::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::from_bytes(&bytes)
    }

    /// Reads weights.
    ///
    /// # Errors
    /// When they are damaged or of another version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ScorerFault> {
        let values: Vec<f64> = bytes
            .chunks_exact(8)
            .map(|chunk| f64::from_le_bytes(chunk.try_into().expect("eight bytes")))
            .collect();
        let (Some((bias, linear)), 0) = (values.split_last(), bytes.len() % 8) else {
            return Err(ScorerFault::Damaged("too short"));
        };
        let linear = linear
            .try_into()
            .map_err(|_| ScorerFault::Damaged("another number of weights"))?;
        Ok(Self {
            weights: Arc::new(Weights {
                version: "task-features-1".to_owned(),
                linear,
                bias: *bias,
            }),
        })
    }

    /// Name and version, kept with every decision.
    pub fn version(&self) -> &str {
        &self.weights.version
    }

    /// The version of the features that this program reads.
    pub const fn features_version() -> u32 {
        FEATURES_VERSION
    }

    /// Scores a prompt.
    pub fn score(&self, features: &Features) -> Score {
        let sum: f64 = self.contributions(features).map(|(_, share)| share).sum();
        let gain = 1.0 / (1.0 + (-(sum + self.weights.bias)).exp());
        Score {
            gain,
            small_fails: gain,
            familiarity: 0.0,
        }
    }

    /// What moved the score, the strongest first; the shares add up to the score's log-odds.
    pub fn explain(&self, features: &Features) -> Vec<(String, f64)> {
        let mut shares: Vec<_> = self
            .contributions(features)
            .chain([("bias", self.weights.bias)])
            .filter(|(_, share)| *share != 0.0)
            .map(|(name, share)| (name.to_owned(), share))
            .collect();
        shares.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
        shares
    }

    fn contributions(&self, features: &Features) -> impl Iterator<Item = (&'static str, f64)> {
        let values = features.values().into_iter().zip(self.weights.linear);
        Features::NAMES
            .into_iter()
            .zip(values)
            .map(|(name, (value, weight))| (name, value.ln_1p() * weight))
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> f64 {
        Scorer::bundled().score(&Features::of_text(text)).gain
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
            for difficult in hard {
                assert!(of(difficult) > of(easy));
            }
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
