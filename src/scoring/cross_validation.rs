//! Fits and judges in one go, on prompts held out: by chance, by domain, or by set.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    evaluate::Judged,
    random::Random,
    train::{self, Recipe, Sample, TrainError},
    weights::Weights,
};

/// What is held out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// One prompt in so many, each once; equal prompts stay together.
    Folds(u64),
    /// Whole domains: each set's in up to eight groups, or each alone when there are no more.
    Domains,
    /// Whole sets.
    Sets,
}

/// Groups into which a set's domains are put at most.
const DOMAIN_GROUPS_MAX: usize = 8;

/// The fold of each sample. The same seed gives the same folds, whatever the samples' order.
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

/// Scores samples with weights that were fitted to them or to others.
pub fn judge(weights: &Weights, samples: &[&Sample]) -> Vec<Judged> {
    samples
        .iter()
        .map(|sample| {
            let gain = weights.parts(&sample.features).gain();
            Judged {
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
/// When a fold's other samples cannot be fitted to.
pub fn cross_validate(
    samples: &[&Sample],
    split: Split,
    seed: u64,
    recipe: &Recipe,
) -> Result<Vec<Judged>, TrainError> {
    let folds = folds(samples, split, seed);
    let mut judged = vec![None; samples.len()];
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
        for (at, one) in held_out.iter().zip(judge(&weights, &pick(&held_out))) {
            judged[*at] = Some(one);
        }
    }
    Ok(judged.into_iter().flatten().collect())
}
