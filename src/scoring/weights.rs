//! What training leaves: word weights by hash, trees on counts, and what holds where both are blind.

use super::{
    features::{Counts, Features},
    record::Record,
    ridge::Heads,
    trees::Forest,
    words::{Said, Table},
};

/// What trees see of a prompt: the counts, and what the words say.
pub const INPUTS: usize = Counts::COUNT + 3;

/// Logarithm of a hundred bytes: of a prompt of which little is known that is shorter, the gain falls by
/// [`SHORT_SLOPE`] for each unit. MMLU's few prompts of 60 to 100 bytes gain nothing (-.01, longer ones .10),
/// and a greeting or a question of three words, of which no row tells, hardly needs a large model.
const SHORT: f64 = 4.6;
const SHORT_SLOPE: f64 = 0.2;

/// Puts the trees' inputs together.
pub fn inputs(counts: &Counts, words: Heads) -> [f32; INPUTS] {
    let [gain, difficulty] = words;
    let mut inputs = [0.0; INPUTS];
    inputs[..Counts::COUNT].copy_from_slice(&counts.values());
    inputs[Counts::COUNT] = gain as f32;
    inputs[Counts::COUNT + 1] = difficulty as f32;
    // Difficulty is the mean failure of both models, gain their difference.
    inputs[Counts::COUNT + 2] = (difficulty + gain / 2.0) as f32;
    inputs
}

/// Fitted weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// Word weights.
    pub table: Table,
    /// Trees on the counts, for the gain.
    pub trees: Forest,
    /// Trees on the counts, for the small model's failure, and their mean.
    pub fails: Forest,
    /// Mean failure of the small model.
    pub fails_mean: f32,
    /// Mean gain.
    pub mean: f32,
    /// Mean gain by number of choices (`Shape::choices`), less the mean.
    pub shapes: [f32; 3],
    /// How far training knew prompts of each number of choices, 0 to 1.
    pub support: [f32; 3],
    /// How much of the words' and of the trees' answer is believed.
    pub shares: [f32; 2],
    /// Gain for each unit of the length's logarithm, where the words are unfamiliar.
    pub length_slope: f32,
    /// Logarithm of the length at which length tells nothing.
    pub length_center: f32,
    /// Familiarity up to which only length is believed, and from which only words and trees are.
    pub familiar: [f32; 2],
    /// Gains below which equal shares of unseen training prompts lie, ascending.
    pub knots: Vec<f32>,
    /// How they were made and judged, if that is known.
    pub record: Option<Record>,
}

/// What became of a prompt; the first five parts add up to its gain.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Parts {
    /// The mean, and that of prompts of this shape.
    pub base: f64,
    /// Words and runs of words.
    pub words: f64,
    /// Caller's tags.
    pub tags: f64,
    /// Trees on counts.
    pub trees: f64,
    /// Length, as far as the rest is unfamiliar.
    pub length: f64,
    /// Probability that the small model's answer is wrong; no part of the sum.
    pub small_fails: f64,
    /// What words and tags say, as the trees are told.
    pub said: Heads,
    /// Share of the words and runs that training knew in this shape, 0 to 1.
    pub familiarity: f64,
    /// Weight of words and trees that follows from it, 0 to 1; length has the rest.
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

    /// The same from what the words say.
    pub fn parts_of(&self, features: &Features, said: &Said) -> Parts {
        let [low, high] = self.familiar.map(f64::from);
        let choices = usize::from(features.shape.choices.min(2));
        let known = ((said.familiarity - low) / (high - low)).clamp(0.0, 1.0);
        let trust = known * f64::from(self.support[choices]);
        let [words_share, trees_share] = self.shares.map(f64::from);
        let both = [0, 1].map(|head| said.words[head] + said.tags[head]);
        let values = inputs(&features.counts, both);
        let shape = f64::from(self.shapes[choices]);
        let counts = &features.counts;
        let beyond = f64::from(counts.length) - f64::from(self.length_center);
        // What follows a long conversation is no short prompt; behind instructions alone it is.
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
            words: trust * words_share * said.words[0],
            tags: words_share * said.tags[0],
            trees: trust * trees_share * self.trees.predict(&values),
            length: (1.0 - trust) * length,
            small_fails: small_fails.clamp(0.0, 1.0),
            familiarity: said.familiarity,
            said: both,
            trust,
        }
    }

    /// What each of the trees' inputs did to the gain, in the order of [`inputs`], and what the
    /// trees say of every prompt.
    pub fn explain_trees(&self, features: &Features, parts: &Parts) -> ([f64; INPUTS], f64) {
        let (mut shares, mut base) = ([0.0; INPUTS], 0.0);
        let scale = parts.trust * f64::from(self.shares[1]);
        let values = inputs(&features.counts, parts.said);
        self.trees.explain(&values, scale, &mut shares, &mut base);
        (shares, base)
    }

    /// The share of unseen training prompts whose gain is lower, 0 to 1: strictly rising, so that
    /// it ranks as the gain does.
    pub fn rank(&self, gain: f64) -> f64 {
        let count = self.knots.len();
        let (Some(first), Some(last)) = (self.knots.first(), self.knots.last()) else {
            return 0.5;
        };
        let (first, last) = (f64::from(*first), f64::from(*last));
        let steps = (count + 1) as f64;
        let spread = (last - first).max(1e-6);
        if gain < first {
            // Beyond the knots the rest is shared out ever more slowly.
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
