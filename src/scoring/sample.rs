//! A labelled prompt.

use super::features::Features;

/// A prompt with both models' scores.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The prompt as the scorer sees it.
    pub features: Features,
    /// The small model's score, 0 to 1.
    pub weak: f64,
    /// The large model's score, 0 to 1.
    pub strong: f64,
    /// The set it comes from (a benchmark, a tenant); training subtracts the sets' means.
    pub set: String,
    /// Its domain within the set; cross-validation may hold out whole domains.
    pub domain: String,
    /// Hash of the prompt: equal prompts stay in the same fold.
    pub group: u64,
    /// Its weight: 1, or one over the probability that its labels were collected.
    pub weight: f64,
}

impl Sample {
    /// The large model's score less the small one's.
    pub fn gain(&self) -> f64 {
        self.strong - self.weak
    }

    /// How far both models fall short on average, 0 to 1.
    pub fn difficulty(&self) -> f64 {
        1.0 - f64::midpoint(self.strong, self.weak)
    }
}
