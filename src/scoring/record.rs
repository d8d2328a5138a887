//! What weights were fitted to and how they did beside those in use, kept in their file: `router
//! promote` goes by it, and later weights are compared on prompts that these have not seen.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    evaluate::{EvaluateError, Judged, evaluate},
    samples,
    train::Sample,
};

/// What stands for ranking by length alone where weights are named.
pub const LENGTH: &str = "length";

/// What was held out while the new weights were judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldOut {
    /// Whole domains.
    Domains,
    /// Prompts by chance, where there was only one domain.
    Folds,
}

/// Exact APGRs of one set's prompts; .5 is chance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// Prompts that were compared on.
    pub prompts: u64,
    /// Of the new weights, on prompts that were held out.
    pub new: f64,
    /// Of the present ones.
    pub present: f64,
}

/// How weights were made and judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Prompts that they are fitted to.
    pub prompts: u64,
    /// Seed of folds and trees.
    pub seed: u64,
    /// What was held out.
    pub held_out: HeldOut,
    /// What they were compared with: the version of the weights in use then, or [`LENGTH`].
    pub against: String,
    /// By set, those in which there was something to compare.
    pub sets: BTreeMap<String, Comparison>,
    /// [`print_of`] each of the prompts that they are fitted to, ascending.
    #[serde(skip)]
    pub seen: Vec<u32>,
}

/// Tells a prompt from others; one in 4 billion is taken for another.
pub fn print_of(sample: &Sample) -> u32 {
    sample.group as u32
}

impl Record {
    /// True when the mean over the sets fell short of that of what they were compared with, or nothing
    /// could be compared.
    pub fn has_lost(&self) -> bool {
        let sum = |of: fn(&Comparison) -> f64| -> f64 { self.sets.values().map(of).sum() };
        self.sets.is_empty() || sum(|set| set.new) < sum(|set| set.present)
    }

    /// True when the weights are fitted to this prompt, among others.
    pub fn has_seen(&self, sample: &Sample) -> bool {
        self.seen.binary_search(&print_of(sample)).is_ok()
    }
}

/// The prints of samples as a record keeps them.
pub fn prints(samples: &[&Sample]) -> Vec<u32> {
    let mut seen: Vec<u32> = samples.iter().map(|sample| print_of(sample)).collect();
    seen.sort_unstable();
    seen.dedup();
    seen
}

/// Compares two judgements of the same samples, set by set, on those for which `counts` is true; sets
/// without any are not among the outcomes.
pub fn compare(
    samples: &[&Sample],
    fresh: &[Judged],
    present: &[Judged],
    counts: impl Fn(&Sample) -> bool,
) -> BTreeMap<String, Result<Comparison, EvaluateError>> {
    let mut outcomes = BTreeMap::new();
    for (set, mut places) in samples::by(samples, |sample| sample.set.clone()) {
        places.retain(|at| counts(samples[*at]));
        if places.is_empty() {
            continue;
        }
        let apgr = |judged: &[Judged]| {
            let own: Vec<_> = places.iter().map(|at| judged[*at]).collect();
            evaluate(&own).map(|report| report.exact.apgr)
        };
        let outcome = apgr(fresh).and_then(|new| {
            let present = apgr(present)?;
            Ok(Comparison {
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
        cross_validation::judge,
        train::tests::{fitted, samples},
    };

    pub(crate) fn record(sets: &[(&str, f64, f64)]) -> Record {
        let compared = |&(set, new, present): &(&str, f64, f64)| {
            let compared = Comparison {
                prompts: 9,
                new,
                present,
            };
            (set.to_owned(), compared)
        };
        Record {
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
        assert!(record(&[]).has_lost());
        assert!(!record(&[("a", 0.6, 0.6)]).has_lost());
        assert!(!record(&[("a", 0.5, 0.6), ("b", 0.7, 0.55)]).has_lost());
        assert!(record(&[("a", 0.5, 0.6), ("b", 0.7, 0.65)]).has_lost());
    }

    #[test]
    fn only_prompts_that_count_are_compared() {
        let samples = samples();
        let all: Vec<&Sample> = samples.iter().collect();
        let weights = fitted(1);
        let judged = judge(&weights, &all);
        let mut backwards = judged.clone();
        for one in &mut backwards {
            one.score = 1.0 - one.score;
        }
        let of_one = compare(&all, &judged, &backwards, |sample| sample.set == "one");
        let [(set, Ok(outcome))] = &of_one.into_iter().collect::<Vec<_>>()[..] else {
            panic!("one set only")
        };
        assert_eq!((set.as_str(), outcome.prompts), ("one", 160));
        assert!(outcome.new > 0.6 && (outcome.new + outcome.present - 1.0).abs() < 1e-9);
        let half = Record {
            seen: prints(&all[..160]),
            ..record(&[])
        };
        assert!(all[..160].iter().all(|sample| half.has_seen(sample)));
        let fresh = all.iter().filter(|sample| !half.has_seen(sample)).count();
        assert!((100..=160).contains(&fresh), "{fresh}");
    }
}
