//! Fits the scorer: word weights by ridge regression, trees on counts, length for the rest.
//!
//! The target is the *gain*, the large model's score less the small one's, minus each set's mean.
//! Fitting "the small model fails" would rank prompts highly on which the large one fails, too.

use super::{
    prior::{SetMeans, length, mean, support},
    random::Random,
    ridge::Heads,
    sample::Sample,
    trees::{self, Binned, Growth},
    weights::{Weights, inputs},
    words::{Corpus, WordScores},
};

/// Hyperparameters; the defaults are those of the bundled weights.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    /// Seed of everything random.
    pub seed: u64,
    /// Cells of the word table, a power of two.
    pub cells: usize,
    /// Ridge penalty of the word weights.
    pub penalty: f64,
    /// Fewest training prompts with a known word.
    pub prompts_min: usize,
    /// Factor on the words' prediction.
    pub words_share: f32,
    /// Factor on the trees' prediction.
    pub trees_share: f32,
    /// Growth of the trees for the gain.
    pub growth: Growth,
    /// Growth of the trees for the small model's failure.
    pub fails_growth: Growth,
    /// Folds for the words' predictions on held-out prompts.
    pub folds: u64,
    /// Familiarity up to which only length counts, and from which it does not count.
    pub familiar: [f32; 2],
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            seed: 5,
            cells: 1 << 19,
            penalty: 10.0,
            prompts_min: 2,
            words_share: 0.4,
            trees_share: 0.6,
            growth: Growth {
                trees: 400,
                rate: 0.025,
                leaves: 12,
                leaf_rows_min: 25,
                feature_share: 0.3,
                row_share: 0.6,
                penalty: 5.0,
            },
            fails_growth: Growth {
                trees: 100,
                rate: 0.06,
                leaves: 8,
                leaf_rows_min: 40,
                feature_share: 0.4,
                row_share: 0.6,
                penalty: 10.0,
            },
            folds: 4,
            familiar: [0.32, 0.37],
        }
    }
}

/// Why samples cannot be fitted to. The present weights stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrainError {
    /// There are too few.
    #[error("{0} labelled prompts are too few to fit to; at least {SAMPLES_MIN} are needed")]
    TooFew(usize),
    /// A label or a weight is out of range.
    #[error(
        "labelled prompt {0} has a score that is not a number from 0 to 1, or a weight that is not positive"
    )]
    Label(usize),
    /// Every prompt has the same gain.
    #[error("the large model gains the same on every prompt: there is nothing to rank")]
    OneClass,
    /// Nothing is left to fit to when a group is held out.
    #[error("there is only one group: nothing is left to fit to when it is held out")]
    OneGroup,
}

/// Fewest samples that weights are fitted to.
pub const SAMPLES_MIN: usize = 50;

/// Fits weights to samples.
///
/// # Errors
/// When there are too few, a label is not a number from 0 to 1, or all gains are the same.
pub fn train(samples: &[&Sample], recipe: &Recipe) -> Result<Weights, TrainError> {
    if samples.len() < SAMPLES_MIN {
        return Err(TrainError::TooFew(samples.len()));
    }
    let is_score = |score: f64| (0.0..=1.0).contains(&score);
    let is_sound = |sample: &Sample| {
        let is_weight = sample.weight.is_finite() && sample.weight > 0.0;
        is_score(sample.weak) && is_score(sample.strong) && is_weight
    };
    if let Some(at) = samples.iter().position(|sample| !is_sound(sample)) {
        return Err(TrainError::Label(at + 1));
    }
    if samples
        .iter()
        .all(|sample| sample.gain() == samples[0].gain())
    {
        return Err(TrainError::OneClass);
    }
    Ok(fit(samples, recipe))
}

fn fit(samples: &[&Sample], recipe: &Recipe) -> Weights {
    let weights: Vec<f64> = samples.iter().map(|sample| sample.weight).collect();
    let means = SetMeans::of(samples);
    let targets: Vec<Heads> = samples
        .iter()
        .map(|sample| {
            let set = sample.set.as_str();
            [
                sample.gain() - means.gain[set],
                sample.difficulty() - means.difficulty[set],
            ]
        })
        .collect();
    let corpus = Corpus::of(
        samples.iter().map(|sample| &sample.features),
        recipe.prompts_min,
    );
    let (solution, _) = corpus.fit(&targets, &weights, recipe.penalty);
    let unseen = unseen_words(samples, &corpus, &targets, &weights, recipe);
    let inputs: Vec<_> = samples
        .iter()
        .zip(&unseen)
        .map(|(sample, words)| inputs(&sample.features.counts, *words))
        .collect();
    let rows: Vec<&[f32]> = inputs.iter().map(|row| &row[..]).collect();
    let binned = Binned::of(&rows);
    let mut random = Random::new(recipe.seed);
    let gains: Vec<f64> = targets.iter().map(|target| target[0]).collect();
    let trees = trees::grow(&binned, &gains, &weights, &recipe.growth, &mut random);
    let fails_mean = mean(samples, |sample| 1.0 - sample.weak);
    let fails: Vec<f64> = samples
        .iter()
        .map(|sample| 1.0 - sample.weak - fails_mean)
        .collect();
    let fails = trees::grow(&binned, &fails, &weights, &recipe.fails_growth, &mut random);
    let (length_slope, length_center) = length(samples, &means);
    let mut fitted = Weights {
        table: corpus.table(&solution, recipe.cells),
        trees,
        fails,
        fails_mean: fails_mean as f32,
        mean: means.overall as f32,
        shapes: means.shapes,
        support: support(samples),
        shares: [recipe.words_share, recipe.trees_share],
        length_slope: length_slope as f32,
        length_center: length_center as f32,
        familiar: recipe.familiar,
        knots: Vec::new(),
        record: None,
    };
    let gains = samples.iter().zip(unseen).map(|(sample, words)| {
        let scores = WordScores {
            words,
            ..fitted.table.read(&sample.features)
        };
        let gain = fitted.parts_of(&sample.features, &scores).gain() as f32;
        (gain, sample.weight)
    });
    fitted.knots = knots(gains.collect());
    fitted
}

/// Most quantiles for ranking.
const KNOTS_MAX: usize = 199;

/// Quantiles that divide the total weight evenly, strictly rising.
fn knots(mut gains: Vec<(f32, f64)>) -> Vec<f32> {
    gains.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let count = KNOTS_MAX.min(gains.len());
    // Each gain's distance above the lowest; neighbours are half of both weights apart.
    let mut heights = vec![0.0];
    for pair in gains.windows(2) {
        heights.push(heights[heights.len() - 1] + f64::midpoint(pair[0].1, pair[1].1));
    }
    let highest = heights[heights.len() - 1];
    let mut knots: Vec<f32> = (1..=count)
        .map(|at| {
            let height = at as f64 * highest / (count + 1) as f64;
            gains[heights.partition_point(|below| *below <= height) - 1].0
        })
        .collect();
    knots.dedup();
    knots
}

/// Predictions of word weights for held-out prompts.
fn unseen_words(
    samples: &[&Sample],
    corpus: &Corpus,
    targets: &[Heads],
    weights: &[f64],
    recipe: &Recipe,
) -> Vec<Heads> {
    let mut unseen = vec![[0.0; 2]; samples.len()];
    let fold = |sample: &Sample| Random::new(sample.group ^ recipe.seed).bits() % recipe.folds;
    for held_out in 0..recipe.folds {
        let kept: Vec<f64> = samples
            .iter()
            .zip(weights)
            .map(|(sample, weight)| {
                if fold(sample) == held_out {
                    0.0
                } else {
                    *weight
                }
            })
            .collect();
        // Tags count as words here; they are separated only when the table is read.
        let (_, predictions) = corpus.fit(targets, &kept, recipe.penalty);
        for (at, sample) in samples.iter().enumerate() {
            if fold(sample) == held_out {
                unseen[at] = predictions[at];
            }
        }
    }
    unseen
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::scoring::{
        codec,
        cross_validation::{Split, cross_validate, folds},
        evaluate::evaluate,
        features::Features,
    };

    /// Small enough for a test.
    fn recipe(seed: u64) -> Recipe {
        let growth = Growth {
            trees: 20,
            rate: 0.1,
            leaves: 4,
            leaf_rows_min: 8,
            feature_share: 0.5,
            row_share: 0.8,
            penalty: 2.0,
        };
        Recipe {
            seed,
            cells: 1 << 14,
            growth,
            fails_growth: growth,
            ..Recipe::default()
        }
    }

    /// Prompts of two sets with four domains each. The large model helps on prompts with "multiply";
    /// length has no effect.
    pub(crate) fn samples() -> Vec<Sample> {
        let mut random = Random::new(11);
        let words = [
            "apple", "river", "stone", "cloud", "train", "paper", "glass", "wheel",
        ];
        (0..320)
            .map(|at| {
                let is_hard = random.unit() < 0.4;
                let mut prompt = String::from(if is_hard { "multiply" } else { "name" });
                for _ in 0..6 + (random.unit() * 8.0) as usize {
                    prompt.push(' ');
                    prompt.push_str(words[(random.unit() * words.len() as f64) as usize]);
                }
                let chance = if is_hard { 0.1 } else { 0.95 };
                let hash = blake3::hash(prompt.as_bytes());
                Sample {
                    features: Features::of_text(&prompt),
                    weak: f64::from(u8::from(random.unit() < chance)),
                    strong: f64::from(u8::from(random.unit() < 0.95)),
                    set: ["one", "two"][at % 2].to_owned(),
                    domain: format!("d{}", at % 8 / 2),
                    group: u64::from(hash.as_bytes()[0]) << 8 | u64::from(hash.as_bytes()[1]),
                    weight: 1.0,
                }
            })
            .collect()
    }

    /// Weights fitted to [`samples`].
    pub(crate) fn fitted(seed: u64) -> Weights {
        let samples = samples();
        let all: Vec<&Sample> = samples.iter().collect();
        train(&all, &recipe(seed)).expect("sound samples")
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        assert_eq!(codec::to_bytes(&fitted(3)), codec::to_bytes(&fitted(3)));
        assert_ne!(codec::to_bytes(&fitted(3)), codec::to_bytes(&fitted(4)));
    }

    #[test]
    fn ranks_held_out_prompts() {
        let samples = samples();
        let all: Vec<&Sample> = samples.iter().collect();
        for split in [Split::Folds(4), Split::Domains, Split::Sets] {
            let scored = cross_validate(&all, split, 0, &recipe(1)).expect("sound");
            let report = evaluate(&scored).expect("gap");
            assert!(report.exact.apgr > 0.65, "{split:?}: {}", report.exact.apgr);
            assert!(report.auc_small_fails > 0.8, "{split:?}");
        }
    }

    #[test]
    fn folds_keep_equal_prompts_domains_and_sets_together() {
        let samples = samples();
        let all: Vec<&Sample> = samples.iter().collect();
        let together = |split, key: fn(&Sample) -> String| {
            let folds = folds(&all, split, 7);
            let mut of_key = BTreeMap::new();
            for (sample, fold) in all.iter().zip(&folds) {
                assert_eq!(of_key.entry(key(sample)).or_insert(*fold), fold);
            }
            folds
                .iter()
                .collect::<std::collections::BTreeSet<_>>()
                .len()
        };
        assert_eq!(together(Split::Folds(5), |s| s.group.to_string()), 5);
        assert_eq!(
            together(Split::Domains, |s| format!("{}/{}", s.set, s.domain)),
            4
        );
        assert_eq!(together(Split::Sets, |s| s.set.clone()), 2);
    }

    #[test]
    fn bad_labels_are_errors() {
        let error = |change: fn(&mut Vec<Sample>)| {
            let mut samples = samples();
            change(&mut samples);
            let all: Vec<&Sample> = samples.iter().collect();
            train(&all, &recipe(1)).expect_err("bad")
        };
        assert_eq!(error(Vec::clear), TrainError::TooFew(0));
        assert_eq!(error(|all| all[6].weak = f64::NAN), TrainError::Label(7));
        assert_eq!(error(|all| all[0].strong = 1.5), TrainError::Label(1));
        let one_class = error(|all| all.iter_mut().for_each(|s| (s.weak, s.strong) = (1.0, 1.0)));
        assert_eq!(one_class, TrainError::OneClass);
    }

    #[test]
    fn learns_from_the_callers_tags() {
        let mut samples = samples();
        for (at, sample) in samples.iter_mut().enumerate() {
            let tag = ["bulk", "legal"][at % 3 / 2];
            sample.features = Features::of_text("the same words").with_tags([tag]);
            (sample.weak, sample.strong) = (f64::from(u8::from(tag == "bulk")), 1.0);
        }
        let all: Vec<&Sample> = samples.iter().collect();
        let weights = train(&all, &recipe(1)).expect("sound");
        let gain = |tag| {
            let features = Features::of_text("the same words").with_tags([tag]);
            weights.parts(&features).gain()
        };
        assert!(gain("legal") > gain("bulk") + 0.1);
    }
}
