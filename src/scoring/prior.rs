//! The terms for unfamiliar prompts: means, and the slope over length.

use std::collections::BTreeMap;

use super::sample::Sample;

/// The weighted mean of a value over samples.
pub fn mean(samples: &[&Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    let weight: f64 = samples.iter().map(|sample| sample.weight).sum();
    let sum: f64 = samples
        .iter()
        .map(|sample| sample.weight * of(sample))
        .sum();
    sum / weight
}

/// Mean gains and difficulties of sets.
pub struct SetMeans<'a> {
    /// Mean gain, by set.
    pub gain: BTreeMap<&'a str, f64>,
    /// Mean difficulty, by set.
    pub difficulty: BTreeMap<&'a str, f64>,
    /// Mean of the sets' mean gains.
    pub overall: f64,
    /// Mean gain by number of choices, less the overall mean.
    pub shapes: [f32; 3],
}

impl<'a> SetMeans<'a> {
    /// Computes the means of samples.
    pub fn of(samples: &[&'a Sample]) -> Self {
        let by_set = |of: fn(&Sample) -> f64| {
            let mut sums: BTreeMap<&'a str, (f64, f64)> = BTreeMap::new();
            for sample in samples {
                let (sum, weight) = sums.entry(&sample.set).or_default();
                *sum += sample.weight * of(sample);
                *weight += sample.weight;
            }
            let means = sums.into_iter();
            means
                .map(|(set, (sum, weight))| (set, sum / weight))
                .collect::<BTreeMap<_, _>>()
        };
        let gain = by_set(Sample::gain);
        let overall = gain.values().sum::<f64>() / gain.len().max(1) as f64;
        let mut by_shape = [(0.0, 0.0); 3];
        for sample in samples {
            let (sum, weight) = &mut by_shape[usize::from(sample.features.shape.choices.min(2))];
            *sum += sample.weight * (gain[sample.set.as_str()] - overall);
            *weight += sample.weight;
        }
        Self {
            shapes: by_shape.map(|(sum, weight)| (sum / (weight + SHAPE_PENALTY)) as f32),
            overall,
            difficulty: by_set(Sample::difficulty),
            gain,
        }
    }
}

/// Number of prompts with as many choices up to which words and trees do not count, and from which they
/// count fully: fewer prompts say more about their set than about their answer shape.
const SUPPORT: [f32; 2] = [100.0, 200.0];

/// How well the samples cover prompts of each number of choices, 0 to 1.
pub fn support(samples: &[&Sample]) -> [f32; 3] {
    let mut counts = [0.0_f32; 3];
    for sample in samples {
        counts[usize::from(sample.features.shape.choices.min(2))] += 1.0;
    }
    let [low, high] = SUPPORT;
    counts.map(|count| ((count - low) / (high - low)).clamp(0.0, 1.0))
}

/// Samples at the overall mean that are added to each number of choices.
const SHAPE_PENALTY: f64 = 20.0;

/// Least gain for a unit of the length's logarithm: of unfamiliar prompts, longer ones are harder.
const LENGTH_SLOPE_MIN: f64 = 0.01;

/// Slope of the gain over the length's logarithm, the mean of the sets' slopes, and the mean
/// logarithm.
pub fn length(samples: &[&Sample], means: &SetMeans<'_>) -> (f64, f64) {
    let length = |sample: &Sample| f64::from(sample.features.counts.length);
    let center = mean(samples, length);
    let mut slopes = Vec::new();
    for (set, gain) in &means.gain {
        let own: Vec<_> = samples.iter().filter(|s| s.set == *set).copied().collect();
        let mid = mean(&own, length);
        let (mut product, mut square) = (0.0, SHAPE_PENALTY);
        for sample in own {
            let from_mid = length(sample) - mid;
            product += sample.weight * from_mid * (sample.gain() - gain);
            square += sample.weight * from_mid * from_mid;
        }
        slopes.push(product / square);
    }
    let slope = slopes.iter().sum::<f64>() / slopes.len().max(1) as f64;
    (slope.max(LENGTH_SLOPE_MIN), center)
}
