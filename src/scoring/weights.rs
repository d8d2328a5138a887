//! Fitted weights: word weights by hash, trees on counts, and length for unfamiliar prompts.

use serde::{Deserialize, Serialize};

use super::{
    features::{Counts, Features},
    record::TrainingRecord,
    ridge::Heads,
    trees::Forest,
    words::{WordScores, WordTable},
};

/// The trees' inputs: the counts, and three sums of word weights.
pub const INPUTS: usize = Counts::COUNT + 3;

/// Logarithm of a hundred bytes: below this length an unfamiliar prompt's gain falls by [`SHORT_SLOPE`]
/// for each unit. MMLU's few prompts of 60 to 100 bytes gain nothing (-.01, longer ones .10), and a
/// greeting or a question of three words, which no training set has, hardly needs a large model.
const SHORT: f64 = 4.6;
const SHORT_SLOPE: f64 = 0.2;

/// The trees' inputs, in the order of [`Weights::explain_trees`].
pub fn inputs(counts: &Counts, words: Heads) -> [f32; INPUTS] {
    let [gain, difficulty] = words;
    let mut inputs = [0.0; INPUTS];
    inputs[..Counts::COUNT].copy_from_slice(&counts.values());
    inputs[Counts::COUNT] = gain as f32;
    inputs[Counts::COUNT + 1] = difficulty as f32;
    // The small model's failure: difficulty is the mean failure of both models, gain their difference.
    inputs[Counts::COUNT + 2] = (difficulty + gain / 2.0) as f32;
    inputs
}

/// Fitted weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Weights {
    /// Word weights.
    pub table: WordTable,
    /// Trees on the counts, for the gain.
    pub trees: Forest,
    /// Trees on the counts, for the small model's failure, and their mean.
    pub fails: Forest,
    /// Mean failure of the small model.
    pub fails_mean: f32,
    /// Mean gain.
    pub mean: f32,
    /// Mean gain by number of choices (`AnswerShape::choices`), less the mean.
    pub shapes: [f32; 3],
    /// How well training covers prompts of each number of choices, 0 to 1.
    pub support: [f32; 3],
    /// Factors on the words' and on the trees' predictions.
    pub shares: [f32; 2],
    /// Gain for each unit of the length's logarithm, where the words are unfamiliar.
    pub length_slope: f32,
    /// Logarithm of the length at which the length term is 0.
    pub length_center: f32,
    /// Familiarity up to which only length counts, and from which only words and trees do.
    pub familiar: [f32; 2],
    /// Quantiles of the gains of held-out training prompts, ascending.
    pub knots: Vec<f32>,
    /// How they were trained and evaluated, if known.
    pub record: Option<TrainingRecord>,
}

/// The terms of a prompt's gain: the first five add up to it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Parts {
    /// The mean, plus the offset for the prompt's number of choices.
    pub base: f64,
    /// Words and runs of words.
    pub words: f64,
    /// The caller's tags.
    pub tags: f64,
    /// Trees on counts.
    pub trees: f64,
    /// Length, weighted by unfamiliarity.
    pub length: f64,
    /// Probability that the small model's answer is wrong; not part of the sum.
    pub small_fails: f64,
    /// Sums of the word and tag weights, as in the trees' inputs.
    pub sums: Heads,
    /// Share of the words and runs known for this answer shape, 0 to 1.
    pub familiarity: f64,
    /// Weight of words and trees, 0 to 1; length has the rest.
    pub trust: f64,
}

impl Parts {
    /// The expected gain, −1 to 1 but for rounding.
    pub fn gain(&self) -> f64 {
        self.base + self.words + self.tags + self.trees + self.length
    }
}

impl Weights {
    /// Computes a prompt's expected gain.
    pub fn parts(&self, features: &Features) -> Parts {
        self.parts_of(features, &self.table.read(features))
    }

    /// The same for given word scores.
    pub fn parts_of(&self, features: &Features, scores: &WordScores) -> Parts {
        let [low, high] = self.familiar.map(f64::from);
        let choices = usize::from(features.shape.choices.min(2));
        let known = ((scores.familiarity - low) / (high - low)).clamp(0.0, 1.0);
        let trust = known * f64::from(self.support[choices]);
        let [words_share, trees_share] = self.shares.map(f64::from);
        let both = [0, 1].map(|head| scores.words[head] + scores.tags[head]);
        let values = inputs(&features.counts, both);
        let shape = f64::from(self.shapes[choices]);
        let counts = &features.counts;
        let beyond = f64::from(counts.length) - f64::from(self.length_center);
        // A short reply in a long conversation is not a short prompt; one after a system message is.
        let is_reply = counts.turns >= 3.0_f32.ln();
        let read = if is_reply {
            counts.length.max(counts.context)
        } else {
            counts.length
        };
        let missing = (SHORT - f64::from(read)).max(0.0);
        let length = f64::from(self.length_slope) * beyond - SHORT_SLOPE * missing;
        let small_fails = f64::from(self.fails_mean) + self.fails.predict(&values);
        Parts {
            base: f64::from(self.mean) + shape,
            words: trust * words_share * scores.words[0],
            tags: words_share * scores.tags[0],
            trees: trust * trees_share * self.trees.predict(&values),
            length: (1.0 - trust) * length,
            small_fails: small_fails.clamp(0.0, 1.0),
            familiarity: scores.familiarity,
            sums: both,
            trust,
        }
    }

    /// Each tree input's contribution to the gain, in the order of [`inputs`], and the trees' constant
    /// part.
    pub fn explain_trees(&self, features: &Features, parts: &Parts) -> ([f64; INPUTS], f64) {
        let (mut shares, mut base) = ([0.0; INPUTS], 0.0);
        let scale = parts.trust * f64::from(self.shares[1]);
        let values = inputs(&features.counts, parts.sums);
        self.trees.explain(&values, scale, &mut shares, &mut base);
        (shares, base)
    }

    /// The share of held-out training prompts whose gain is lower, 0 to 1. It rises strictly with the
    /// gain.
    pub fn rank(&self, gain: f64) -> f64 {
        let count = self.knots.len();
        let (Some(first), Some(last)) = (self.knots.first(), self.knots.last()) else {
            return 0.5;
        };
        let (first, last) = (f64::from(*first), f64::from(*last));
        let steps = (count + 1) as f64;
        let spread = (last - first).max(1e-6);
        if gain < first {
            // Beyond the knots it approaches 0 and 1 exponentially.
            return (1.0 / steps) * (8.0 * (gain - first) / spread).exp();
        }
        if gain >= last {
            return 1.0 - (1.0 / steps) * (8.0 * (last - gain) / spread).exp();
        }
        let above = self.knots.partition_point(|knot| f64::from(*knot) <= gain);
        let (low, high) = (
            f64::from(self.knots[above - 1]),
            f64::from(self.knots[above]),
        );
        (above as f64 + (gain - low) / (high - low)) / steps
    }
}
