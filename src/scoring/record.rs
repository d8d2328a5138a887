//! How weights were trained and evaluated, stored in their file. `router promote` decides by it, and
//! later weights are compared on prompts that these were not fitted to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    evaluate::{EvaluateError, ScoredPrompt, evaluate},
    sample::Sample,
    samples,
};

/// Stands for ranking by length alone where a version of weights is named.
pub const LENGTH: &str = "length";

/// The kind of hold-out in the evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldOut {
    /// Whole domains.
    Domains,
    /// Random prompts, where there was only one domain.
    Folds,
}

/// Exact APGRs on one set's prompts; .5 is random.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetComparison {
    /// Prompts of the comparison.
    pub prompts: u64,
    /// Of the new weights, on held-out prompts.
    pub new: f64,
    /// Of the present weights.
    pub present: f64,
}

/// How weights were trained and evaluated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingRecord {
    /// Prompts that they were fitted to.
    pub prompts: u64,
    /// Seed of folds and trees.
    pub seed: u64,
    /// The kind of hold-out.
    pub held_out: HeldOut,
    /// The version of the weights they were compared with, or [`LENGTH`].
    pub against: String,
    /// Comparisons by set; sets without one are missing.
    pub sets: BTreeMap<String, SetComparison>,
    /// The [`fingerprint`] of each prompt that they were fitted to, ascending.
    #[serde(skip)]
    pub seen: Vec<u32>,
}

/// A hash of the prompt; two prompts collide with probability 2⁻³².
pub fn fingerprint(sample: &Sample) -> u32 {
    sample.group as u32
}

impl TrainingRecord {
    /// True when the mean over the sets is below that of the present weights, or nothing could be
    /// compared.
    pub fn is_worse(&self) -> bool {
        let sum = |of: fn(&SetComparison) -> f64| -> f64 { self.sets.values().map(of).sum() };
        self.sets.is_empty() || sum(|set| set.new) < sum(|set| set.present)
    }

    /// True when the weights were fitted to this prompt.
    pub fn has_seen(&self, sample: &Sample) -> bool {
        self.seen.binary_search(&fingerprint(sample)).is_ok()
    }
}

/// The fingerprints of samples as a record keeps them.
pub fn fingerprints(samples: &[&Sample]) -> Vec<u32> {
    let mut seen: Vec<u32> = samples.iter().map(|sample| fingerprint(sample)).collect();
    seen.sort_unstable();
    seen.dedup();
    seen
}

/// Compares two scorings of the same samples, set by set, on the samples for which `counts` is true.
/// Sets without any are left out.
pub fn compare(
    samples: &[&Sample],
    fresh: &[ScoredPrompt],
    present: &[ScoredPrompt],
    counts: impl Fn(&Sample) -> bool,
) -> BTreeMap<String, Result<SetComparison, EvaluateError>> {
    let mut outcomes = BTreeMap::new();
    for (set, mut places) in samples::by(samples, |sample| sample.set.clone()) {
        places.retain(|at| counts(samples[*at]));
        if places.is_empty() {
            continue;
        }
        let apgr = |scored: &[ScoredPrompt]| {
            let own: Vec<_> = places.iter().map(|at| scored[*at]).collect();
            evaluate(&own).map(|report| report.exact.apgr)
        };
        let outcome = apgr(fresh).and_then(|new| {
            let present = apgr(present)?;
            Ok(SetComparison {
                prompts: places.len() as u64,
                new,
                present,
            })
        });
        outcomes.insert(set, outcome);
    }
    outcomes
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::scoring::{
        cross_validation::score_samples,
        train::tests::{fitted, samples},
    };

    pub(crate) fn record(sets: &[(&str, f64, f64)]) -> TrainingRecord {
        let compared = |&(set, new, present): &(&str, f64, f64)| {
            let compared = SetComparison {
                prompts: 9,
                new,
                present,
            };
            (set.to_owned(), compared)
        };
        TrainingRecord {
            prompts: 320,
            seed: 5,
            held_out: HeldOut::Domains,
            against: LENGTH.to_owned(),
            sets: sets.iter().map(compared).collect(),
            seen: vec![3, 70_000, u32::MAX],
        }
    }

    #[test]
    fn the_mean_over_the_sets_decides() {
        assert!(record(&[]).is_worse());
        assert!(!record(&[("a", 0.6, 0.6)]).is_worse());
        assert!(!record(&[("a", 0.5, 0.6), ("b", 0.7, 0.55)]).is_worse());
        assert!(record(&[("a", 0.5, 0.6), ("b", 0.7, 0.65)]).is_worse());
    }

    #[test]
    fn only_counted_prompts_are_compared() {
        let samples = samples();
        let all: Vec<&Sample> = samples.iter().collect();
        let weights = fitted(1);
        let scored = score_samples(&weights, &all);
        let mut backwards = scored.clone();
        for one in &mut backwards {
            one.score = 1.0 - one.score;
        }
        let of_one = compare(&all, &scored, &backwards, |sample| sample.set == "one");
        let [(set, Ok(outcome))] = &of_one.into_iter().collect::<Vec<_>>()[..] else {
            panic!("one set only")
        };
        assert_eq!((set.as_str(), outcome.prompts), ("one", 160));
        assert!(outcome.new > 0.6 && (outcome.new + outcome.present - 1.0).abs() < 1e-9);
        let half = TrainingRecord {
            seen: fingerprints(&all[..160]),
            ..record(&[])
        };
        assert!(all[..160].iter().all(|sample| half.has_seen(sample)));
        let fresh = all.iter().filter(|sample| !half.has_seen(sample)).count();
        assert!((100..=160).contains(&fresh), "{fresh}");
    }
}
