//! Cross-validation: scores prompts with weights fitted to the other folds.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    evaluate::ScoredPrompt,
    random::Random,
    sample::Sample,
    train::{self, Recipe, TrainError},
    weights::Weights,
};

/// How prompts are held out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// This many random folds; equal prompts stay together.
    Folds(u64),
    /// Whole domains: each set's are spread over up to eight groups.
    Domains,
    /// Whole sets.
    Sets,
}

/// Most groups of a set's domains.
const DOMAIN_GROUPS_MAX: usize = 8;

/// The fold of each sample. The same seed gives the same folds, in any order of the samples.
pub fn folds(samples: &[&Sample], split: Split, seed: u64) -> Vec<u64> {
    match split {
        Split::Folds(count) => samples
            .iter()
            .map(|sample| Random::new(sample.group ^ seed).bits() % count.max(2))
            .collect(),
        Split::Domains => {
            let mut domains: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
            for sample in samples {
                domains
                    .entry(&sample.set)
                    .or_default()
                    .insert(&sample.domain);
            }
            let mut groups = BTreeMap::new();
            for (set, domains) in domains {
                let mut domains: Vec<_> = domains.into_iter().collect();
                Random::new(seed).shuffle(&mut domains);
                for (at, domain) in domains.into_iter().enumerate() {
                    groups.insert((set, domain), (at % DOMAIN_GROUPS_MAX) as u64);
                }
            }
            samples
                .iter()
                .map(|sample| groups[&(sample.set.as_str(), sample.domain.as_str())])
                .collect()
        }
        Split::Sets => {
            let sets: BTreeSet<&str> = samples.iter().map(|sample| sample.set.as_str()).collect();
            let place = |set: &str| sets.range(..set).count() as u64;
            samples.iter().map(|sample| place(&sample.set)).collect()
        }
    }
}

/// Scores samples with given weights.
pub fn score_samples(weights: &Weights, samples: &[&Sample]) -> Vec<ScoredPrompt> {
    samples
        .iter()
        .map(|sample| {
            let gain = weights.parts(&sample.features).gain();
            ScoredPrompt {
                score: weights.rank(gain),
                expected: Some(gain),
                weak: sample.weak,
                strong: sample.strong,
                weight: sample.weight,
            }
        })
        .collect()
}

/// Scores every sample with weights fitted to the other folds.
///
/// # Errors
/// When the samples outside a fold cannot be fitted to.
pub fn cross_validate(
    samples: &[&Sample],
    split: Split,
    seed: u64,
    recipe: &Recipe,
) -> Result<Vec<ScoredPrompt>, TrainError> {
    let folds = folds(samples, split, seed);
    let mut scored = vec![None; samples.len()];
    for fold in folds.iter().copied().collect::<BTreeSet<_>>() {
        let of = |is_held_out: bool| -> Vec<usize> {
            let all = 0..samples.len();
            all.filter(|at| (folds[*at] == fold) == is_held_out)
                .collect()
        };
        let (held_out, kept) = (of(true), of(false));
        if kept.is_empty() {
            return Err(TrainError::OneGroup);
        }
        let pick =
            |places: &[usize]| -> Vec<&Sample> { places.iter().map(|at| samples[*at]).collect() };
        let weights = train::train(&pick(&kept), recipe)?;
        for (at, one) in held_out
            .iter()
            .zip(score_samples(&weights, &pick(&held_out)))
        {
            scored[*at] = Some(one);
        }
    }
    Ok(scored.into_iter().flatten().collect())
}
