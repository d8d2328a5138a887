//! What holds of prompts of which little is known: means, and the slope over length.

use std::collections::BTreeMap;

use super::train::Sample;

/// The weighted mean of something over samples.
pub fn mean(samples: &[&Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    let weight: f64 = samples.iter().map(|sample| sample.weight).sum();
    let sum: f64 = samples
        .iter()
        .map(|sample| sample.weight * of(sample))
        .sum();
    sum / weight
}

/// Mean gains of sets and of shapes.
pub struct SetMeans<'a> {
    /// Of the gain, by set.
    pub gain: BTreeMap<&'a str, f64>,
    /// Of the difficulty, by set.
    pub difficulty: BTreeMap<&'a str, f64>,
    /// Of all sets, each counting once.
    pub overall: f64,
    /// By number of choices, less the overall mean.
    pub shapes: [f32; 3],
}

impl<'a> SetMeans<'a> {
    /// Takes the means of samples.
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

/// Prompts with as many choices up to which words and trees are not believed, and from which they
/// are: fewer tell more about where they come from than about their shape.
const SUPPORT: [f32; 2] = [100.0, 200.0];

/// How far the samples know prompts of each number of choices.
pub fn support(samples: &[&Sample]) -> [f32; 3] {
    let mut counts = [0.0_f32; 3];
    for sample in samples {
        counts[usize::from(sample.features.shape.choices.min(2))] += 1.0;
    }
    let [low, high] = SUPPORT;
    counts.map(|count| ((count - low) / (high - low)).clamp(0.0, 1.0))
}

/// Samples' worth of the overall mean in each shape's.
const SHAPE_PENALTY: f64 = 20.0;

/// Least gain for a unit of the length's logarithm: where nothing is known, longer is harder.
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
