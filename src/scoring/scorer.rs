//! A score for each prompt: how much it would gain from the large model.
//!
//! Comes in: [`Features`]. Goes out: a [`Score`]. The weights are fitted by
//! [`train`](crate::scoring::train); see `models/router/README.md` for the data and results.

use std::{
    path::Path,
    sync::{Arc, LazyLock},
};

use super::{
    codec,
    features::{Counts, FEATURES_VERSION, Features},
    weights::Weights,
};

pub use super::codec::ScorerError;

/// A prompt's score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// How much the large model would help, as a rank among the training prompts: 0 to 1, higher
    /// when it would help more. A threshold of .7 sends about 30 % of such prompts to large.
    pub gain: f64,
    /// The expected gain itself: the large model's score less the small one's, about −1 to 1.
    pub expected_gain: f64,
    /// Probability that the small model's answer is wrong, 0 to 1.
    pub small_fails: f64,
    /// Share of the words and runs of words that the weights know, 0 to 1, lower for short prompts; where
    /// it is low, length decides.
    pub familiarity: f64,
}

/// Fitted weights, shared and immutable.
#[derive(Clone, Debug)]
pub struct Scorer {
    weights: Arc<Weights>,
    version: Arc<str>,
}

static BUNDLED: LazyLock<Scorer> = LazyLock::new(|| {
    Scorer::from_bytes(include_bytes!("../../models/router/gain.weights"))
        .expect("a test reads the bundled weights")
});

impl Scorer {
    /// The weights that ship with the binary.
    pub fn bundled() -> Self {
        BUNDLED.clone()
    }

    /// The weights of a file, or the bundled ones when there is none.
    ///
    /// # Errors
    /// As [`Scorer::load`].
    pub fn open(path: Option<&Path>) -> Result<Self, ScorerError> {
        path.map_or_else(|| Ok(Self::bundled()), Self::load)
    }

    /// Reads weights from a file.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged or is of another version.
    pub fn load(path: &Path) -> Result<Self, ScorerError> {
        let bytes = std::fs::read(path).map_err(|source| ScorerError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::from_bytes(&bytes).map_err(|error| ScorerError::In {
            path: path.to_owned(),
            error: Box::new(error),
        })
    }

    /// Reads weights.
    ///
    /// # Errors
    /// When they are damaged or of another version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ScorerError> {
        let (weights, hash) = codec::from_bytes(bytes)?;
        Ok(Self {
            weights: Arc::new(weights),
            version: format!("gain-{FEATURES_VERSION}-{hash}").into(),
        })
    }

    /// The weights themselves.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The version stored with every decision: the features' version and the weights' hash.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The version of the features that this program reads.
    pub const fn features_version() -> u32 {
        FEATURES_VERSION
    }

    /// Scores a prompt.
    pub fn score(&self, features: &Features) -> Score {
        let parts = self.weights.parts(features);
        let expected_gain = parts.gain();
        Score {
            gain: self.weights.rank(expected_gain),
            expected_gain,
            small_fails: parts.small_fails,
            familiarity: parts.familiarity,
        }
    }

    /// Contributions to the expected gain, largest first; they add up to it.
    ///
    /// Counts have their names in [`Counts::NAMES`]. `words` and `tags` are the sums of their weights,
    /// `words' difficulty` the trees' use of the words, `length (unfamiliar)` the length term, `base` the
    /// rest.
    pub fn explain(&self, features: &Features) -> Vec<(String, f64)> {
        let parts = self.weights.parts(features);
        let (inputs, trees) = self.weights.explain_trees(features, &parts);
        let (counts, words) = inputs.split_at(Counts::COUNT);
        let named = Counts::NAMES.iter().copied().zip(counts.iter().copied());
        let mut shares: Vec<_> = named
            .chain([
                ("base", parts.base + trees),
                ("words", parts.words + words[0]),
                ("words' difficulty", words[1] + words[2]),
                ("tags", parts.tags),
                ("length (unfamiliar)", parts.length),
            ])
            .filter(|(_, share)| *share != 0.0)
            .map(|(name, share)| (name.to_owned(), share))
            .collect();
        shares.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
        shares
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use crate::job::{RequestLimits, Submission};
    use crate::scoring::scorer::*;

    fn of(text: &str) -> Score {
        Scorer::bundled().score(&Features::of_text(text))
    }

    #[test]
    fn longer_unfamiliar_prompts_score_higher() {
        let short = of("zqx vwk jjq");
        let long = of(&"zqxa vwkb jjqc bbxz qqwv ".repeat(40));
        assert!(short.familiarity < 0.2 && long.familiarity < 0.2);
        assert!(long.gain > short.gain);
    }

    /// A short unfamiliar prompt scores low, unless it is a reply in a long conversation.
    #[test]
    fn short_prompts_score_low_unless_they_are_replies() {
        let of_turns = |turns: &[(&str, &str)]| {
            let messages = turns
                .iter()
                .map(|(role, content)| json!({"role": role, "content": content}));
            let body = json!({"messages": messages.collect::<Vec<_>>()}).to_string();
            let read = Submission::parse(body.as_bytes(), &RequestLimits::default());
            let features = Features::of(&read.expect("valid").request);
            Scorer::bundled().score(&features).gain
        };
        let before = "Zqx vwk jjq bbxz qqwv. ".repeat(40);
        let asked = "And zqx, vwk?";
        for greeting in ["hi", "Thanks!", asked] {
            let alone = of_turns(&[("user", greeting)]);
            assert_eq!(alone, of(greeting).gain);
            assert!(alone < 0.1, "{greeting}: {alone}");
            let instructed = of_turns(&[("system", &before), ("user", greeting)]);
            assert!(instructed < 0.1, "{greeting}: {instructed}");
        }
        let reply = of_turns(&[("user", &before), ("assistant", "No."), ("user", asked)]);
        assert!(reply > 0.5, "{reply}");
    }

    #[test]
    fn unknown_tags_change_nothing() {
        let features = Features::of_text("Why is the sky blue?");
        let tagged = features.clone().with_tags(["never seen in training"]);
        let scorer = Scorer::bundled();
        assert_eq!(scorer.score(&features), scorer.score(&tagged));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Any text has a score between 0 and 1, and its shares add up to the expected gain.
        #[test]
        fn any_text_has_a_score_that_is_explained(
            text in prop_oneof![any::<String>(), "[A-Za-z0-9 .,?()\\n_$%=+-]{0,600}"],
            repeat in prop_oneof![Just(1_usize), Just(2_000)],
        ) {
            let features = Features::of_text(&text.repeat(repeat));
            let scorer = Scorer::bundled();
            let score = scorer.score(&features);
            prop_assert!((0.0..=1.0).contains(&score.gain));
            prop_assert!((0.0..=1.0).contains(&score.small_fails));
            prop_assert!((0.0..=1.0).contains(&score.familiarity));
            prop_assert!(score.expected_gain.is_finite());
            let sum: f64 = scorer.explain(&features).iter().map(|(_, share)| share).sum();
            prop_assert!((sum - score.expected_gain).abs() < 1e-6);
        }

        #[test]
        fn rank_is_monotone_in_the_gain(a in -2.0..2.0_f64, b in -2.0..2.0_f64) {
            let weights = Scorer::bundled();
            let (low, high) = (a.min(b), a.max(b));
            let ranks = (weights.weights().rank(low), weights.weights().rank(high));
            prop_assert!(ranks.0 <= ranks.1, "{ranks:?}");
        }
    }
}
