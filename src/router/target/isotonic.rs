//! The threshold for a quality target: isotonic regression of the observed gain on the score, with a
//! confidence bound on the loss.

use std::ops::Range;

/// Fewest observations for a threshold.
pub const PAIRS_MIN: usize = 100;
/// Most observations used, the latest.
pub const PAIRS_MAX: usize = 10_000;
/// Fewest scores that describe the traffic.
pub const TRAFFIC_MIN: usize = 32;
/// Most groups of observations; each gives one candidate threshold.
const GROUPS_MAX: usize = 64;
/// Fewest observations of a group, except the last.
const GROUP_MIN: usize = 10;
/// One-sided 95 % of the normal distribution.
const Z: f64 = 1.645;

/// A job with both tiers' outcomes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observation {
    /// The router's score.
    pub score: f64,
    /// Quality of small's answer, 0 to 1.
    pub small: f64,
    /// Quality of large's answer, 0 to 1.
    pub large: f64,
}

/// The non-decreasing sequence nearest to `values` in least squares (pool adjacent violators; Ayer et
/// al. 1955), one value for each.
pub fn isotonic(values: &[f64]) -> Vec<f64> {
    // Blocks of equal value: (sum, count).
    let mut blocks: Vec<(f64, usize)> = Vec::with_capacity(values.len());
    for value in values {
        let mut block = (*value, 1);
        while let Some(&(sum, count)) = blocks.last()
            && sum / count as f64 >= block.0 / block.1 as f64
        {
            blocks.pop();
            block = (block.0 + sum, block.1 + count);
        }
        blocks.push(block);
    }
    blocks
        .into_iter()
        .flat_map(|(sum, count)| std::iter::repeat_n(sum / count as f64, count))
        .collect()
}

/// The largest threshold that, with 95 % confidence, keeps at least `quality` (0 to 1) of the large
/// model's quality.
///
/// `traffic` are the traffic's scores, ascending; with fewer than [`TRAFFIC_MIN`] the observations are
/// used instead. A job's loss on small is its expected gain by [`isotonic`]. Observations are a biased
/// sample of the traffic, since they come from jobs that small answered under earlier thresholds:
/// groups of neighbouring scores are weighted by the traffic in their range. The upper bound on the
/// loss adds one lost job, so that a few observations without a loss do not prove that there is none.
/// Candidates are tried in ascending order until one fails, which keeps the confidence level
/// (fixed-sequence testing). Scores above the largest observed one stay on large.
///
/// `None` with fewer than [`PAIRS_MIN`] observations, or too few to prove the quality even without a
/// loss: all jobs would go to large, which yields no further observations. `None` as well if large is
/// never right. A quality that not even [`PAIRS_MAX`] observations can prove sends everything to large.
pub fn quality_threshold(pairs: &[Observation], quality: f64, traffic: &[f64]) -> Option<f64> {
    let mut pairs: Vec<&Observation> = pairs
        .iter()
        .filter(|pair| pair.score.is_finite() && pair.small.is_finite() && pair.large.is_finite())
        .collect();
    if quality >= 1.0 {
        return Some(0.0);
    }
    if pairs.len() < PAIRS_MIN {
        return None;
    }
    pairs.sort_by(|a, b| a.score.total_cmp(&b.score));
    let gains: Vec<f64> = pairs.iter().map(|pair| pair.large - pair.small).collect();
    let fitted = isotonic(&gains);
    if pairs.iter().all(|pair| pair.large <= 0.0) {
        return None;
    }
    let groups = groups(&pairs, traffic);
    let known: f64 = groups.iter().map(|group| group.weight).sum();
    let large_mean = if known > 0.0 {
        let weighed = |group: &Group| group.weight * group.mean(&|at| pairs[at].large);
        groups.iter().map(weighed).sum::<f64>() / known
    } else {
        pairs.iter().map(|pair| pair.large).sum::<f64>() / pairs.len() as f64
    };
    let allowed = (1.0 - quality) * large_mean;
    // This many observations without a loss give an upper bound (`Sums::loss_at_most`) of `allowed`.
    let needed = (1.0 + Z) / allowed;
    if needed > PAIRS_MAX as f64 {
        return Some(0.0);
    }
    if needed > pairs.len() as f64 + 1.0 {
        return None;
    }
    let mut below = Sums::default();
    let mut chosen = 0.0;
    for group in &groups {
        below.weight += group.weight;
        below.weight_squares += group.weight.powi(2) / group.pairs.len() as f64;
        below.loss += group.weight * group.mean(&|at| fitted[at].max(0.0));
        below.gain += group.weight * group.mean(&|at| gains[at]);
        below.gain_squares += group.weight * group.mean(&|at| gains[at].powi(2));
        if below.loss_at_most() > allowed {
            break;
        }
        chosen = group.threshold;
    }
    Some(chosen)
}

/// Observations of neighbouring scores; equal scores share a group.
struct Group {
    pairs: Range<usize>,
    /// Share of the traffic above the previous group, up to this one's largest score, 0 to 1.
    weight: f64,
    /// The threshold just above this group.
    threshold: f64,
}

impl Group {
    fn mean(&self, of: &dyn Fn(usize) -> f64) -> f64 {
        self.pairs.clone().map(of).sum::<f64>() / self.pairs.len() as f64
    }
}

/// The observations in groups, by rising score.
fn groups(pairs: &[&Observation], traffic: &[f64]) -> Vec<Group> {
    let size = GROUP_MIN.max(pairs.len() / GROUPS_MAX);
    let mut groups: Vec<Group> = Vec::new();
    let (mut from, mut below_before) = (0, 0.0);
    while from < pairs.len() {
        let last = (from + size).min(pairs.len()) - 1;
        let threshold = pairs[last].score.next_up();
        let until = pairs.partition_point(|pair| pair.score < threshold);
        let below = if traffic.len() < TRAFFIC_MIN {
            until as f64 / pairs.len() as f64
        } else {
            traffic.partition_point(|score| *score < threshold) as f64 / traffic.len() as f64
        };
        groups.push(Group {
            pairs: from..until,
            weight: below - below_before,
            threshold,
        });
        (from, below_before) = (until, below);
    }
    groups
}

/// Weighted sums over the observations below a candidate.
#[derive(Default)]
struct Sums {
    weight: f64,
    /// Sum of the observations' squared weights.
    weight_squares: f64,
    loss: f64,
    gain: f64,
    gain_squares: f64,
}

impl Sums {
    /// The upper bound on the loss, as a share of all jobs.
    fn loss_at_most(&self) -> f64 {
        if self.weight <= 0.0 {
            return 0.0;
        }
        // So many pairs of equal weight would tell as much (Kish 1965).
        let count = self.weight.powi(2) / self.weight_squares;
        let with_one_lost = |sum: f64| (count * sum / self.weight + 1.0) / (count + 1.0);
        let variance = with_one_lost(self.gain_squares) - with_one_lost(self.gain).powi(2);
        let error = (variance.max(0.0) / (count + 1.0)).sqrt();
        self.weight * (with_one_lost(self.loss) + Z * error)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use crate::router::target::isotonic::*;

    /// The min-max formula: the maximum over block starts of the minimum over block ends of block means.
    fn by_min_max(values: &[f64]) -> Vec<f64> {
        let mean =
            |from: usize, to: usize| values[from..=to].iter().sum::<f64>() / (to - from + 1) as f64;
        (0..values.len())
            .map(|at| {
                (0..=at)
                    .map(|from| {
                        (at..values.len())
                            .map(|to| mean(from, to))
                            .fold(f64::MAX, f64::min)
                    })
                    .fold(f64::MIN, f64::max)
            })
            .collect()
    }

    proptest! {
        /// Pooling agrees with the min-max formula.
        #[test]
        fn pooling_agrees_with_the_formula(values in prop::collection::vec(-1.0f64..1.0, 1..40)) {
            for (pooled, formula) in isotonic(&values).iter().zip(by_min_max(&values)) {
                prop_assert!((pooled - formula).abs() < 1e-9, "{pooled} {formula}");
            }
        }
    }

    /// Observations whose probability of gain is a power of the score.
    fn world(seed: u64, count: usize) -> Vec<Observation> {
        let mut rng = StdRng::seed_from_u64(seed);
        (0..count)
            .map(|_| {
                let score: f64 = rng.random_range(0.0..1.0);
                let is_right =
                    |chance: f64, rng: &mut StdRng| f64::from(u8::from(rng.random_bool(chance)));
                let large = is_right(0.9, &mut rng);
                let small = large * is_right(1.0 - score.powi(2) * 0.6, &mut rng);
                Observation {
                    score,
                    small,
                    large,
                }
            })
            .collect()
    }

    /// Evenly spread traffic.
    fn even() -> Vec<f64> {
        (0..512).map(|at| f64::from(at) / 512.0).collect()
    }

    /// The share of large's quality kept on fresh observations.
    fn kept(threshold: f64, seed: u64) -> f64 {
        let fresh = world(seed + 1000, 20_000);
        let by_route = |pair: &Observation| {
            if pair.score >= threshold {
                pair.large
            } else {
                pair.small
            }
        };
        let large: f64 = fresh.iter().map(|pair| pair.large).sum();
        fresh.iter().map(by_route).sum::<f64>() / large
    }

    #[test]
    fn the_quality_holds_on_fresh_observations() {
        let mut held = 0;
        for seed in 0..40 {
            for traffic in [&even()[..], &[]] {
                let threshold = quality_threshold(&world(seed, 1500), 0.95, traffic);
                let threshold = threshold.expect("enough pairs");
                assert!(threshold > 0.3, "{threshold}");
                held += u32::from(kept(threshold, seed) >= 0.95);
            }
        }
        assert!(held >= 76, "kept in {held} of 80 worlds");
    }

    /// A sample of mostly easy jobs does not make hard ones look easy.
    #[test]
    fn the_quality_holds_with_a_biased_sample() {
        let mut held = 0;
        for seed in 0..40 {
            let mut rng = StdRng::seed_from_u64(seed + 7000);
            let mut pairs = world(seed, 6000);
            pairs.retain(|pair| rng.random_bool((1.0 - pair.score).powi(4)));
            let threshold = quality_threshold(&pairs, 0.95, &even()).expect("enough pairs");
            assert!(threshold > 0.3, "{threshold}");
            held += u32::from(kept(threshold, seed) >= 0.95);
        }
        assert!(held >= 38, "kept in {held} of 40 worlds");
    }

    /// The threshold by its definition, recomputed for every candidate.
    fn by_definition(pairs: &[Observation], quality: f64, traffic: &[f64]) -> Option<f64> {
        let mut pairs = pairs.to_vec();
        pairs.sort_by(|a, b| a.score.total_cmp(&b.score));
        let gains: Vec<f64> = pairs.iter().map(|pair| pair.large - pair.small).collect();
        let fitted = by_min_max(&gains);
        let mut ends = vec![0];
        while let Some(end) = ends.last().copied().filter(|end| *end < pairs.len()) {
            let last = pairs[(end + 10).min(pairs.len()) - 1].score;
            ends.push(pairs.iter().filter(|pair| pair.score <= last).count());
        }
        let share = |end: usize| match end {
            0 => 0.0,
            end => {
                let below = |score: &&f64| **score <= pairs[end - 1].score;
                traffic.iter().filter(below).count() as f64 / traffic.len() as f64
            }
        };
        let weights: Vec<f64> = ends
            .windows(2)
            .flat_map(|of| {
                let (from, to) = (of[0], of[1]);
                let each = (share(to) - share(from)) / (to - from) as f64;
                std::iter::repeat_n(each, to - from)
            })
            .collect();
        let mean = |end: usize, of: &dyn Fn(usize) -> f64| {
            let sum: f64 = (0..end).map(|at| weights[at] * of(at)).sum();
            sum / weights[..end].iter().sum::<f64>()
        };
        let large_mean = match share(pairs.len()) > 0.0 {
            true => mean(pairs.len(), &|at| pairs[at].large),
            false => pairs.iter().map(|pair| pair.large).sum::<f64>() / pairs.len() as f64,
        };
        let allowed = (1.0 - quality) * large_mean;
        if allowed * (pairs.len() as f64 + 1.0) < 1.0 + Z {
            return (allowed * 10_000.0 < 1.0 + Z).then_some(0.0);
        }
        let holds = |end: &&usize| {
            if share(**end) == 0.0 {
                return true;
            }
            let sum: f64 = weights[..**end].iter().sum();
            let count = sum * sum / weights[..**end].iter().map(|w| w * w).sum::<f64>();
            let one = |mean: f64| (mean * count + 1.0) / (count + 1.0);
            let loss = one(mean(**end, &|at| fitted[at].max(0.0)));
            let gain = one(mean(**end, &|at| gains[at]));
            let variance = one(mean(**end, &|at| gains[at] * gains[at])) - gain * gain;
            sum * (loss + Z * (variance / (count + 1.0)).sqrt()) <= allowed
        };
        let chosen = ends[1..].iter().take_while(holds).last();
        Some(chosen.map_or(0.0, |end| pairs[end - 1].score.next_up()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Running sums agree with the definition, ties and uneven traffic included.
        #[test]
        fn thresholds_agree_with_their_definition(
            pairs in prop::collection::vec((0u8..60, 0u8..20, 0u8..4), 100..160),
            traffic in prop::collection::vec(0u8..60, 32..200),
            quality in 0.5f64..0.99,
        ) {
            let pairs: Vec<Observation> = pairs
                .into_iter()
                .map(|(score, small, large)| Observation {
                    score: f64::from(score) / 60.0,
                    small: f64::from(u8::from(u32::from(small) * 60 > u32::from(score) * 8)),
                    large: f64::from(u8::from(large > 0)),
                })
                .collect();
            let mut traffic: Vec<f64> = traffic.into_iter().map(|s| f64::from(s) / 60.0).collect();
            traffic.sort_by(f64::total_cmp);
            let found = quality_threshold(&pairs, quality, &traffic);
            prop_assert_eq!(found, by_definition(&pairs, quality, &traffic));
        }
    }

    #[test]
    fn too_few_observations_give_no_threshold() {
        let pairs = world(1, PAIRS_MIN - 1);
        assert_eq!(quality_threshold(&pairs, 0.99, &[]), None);
        // Even without a loss, too few observations cannot prove some qualities; for others so many
        // will never be known.
        let flawless = vec![
            Observation {
                score: 0.5,
                small: 1.0,
                large: 1.0
            };
            150
        ];
        let threshold = |quality| quality_threshold(&flawless, quality, &[]);
        assert!(threshold(0.95) > Some(0.5));
        assert_eq!(threshold(0.99), None);
        assert_eq!((threshold(0.9999), threshold(1.0)), (Some(0.0), Some(0.0)));
        assert_eq!(quality_threshold(&[], 1.0, &[]), Some(0.0));
        let useless = vec![
            Observation {
                score: 0.5,
                small: 0.0,
                large: 0.0
            };
            500
        ];
        assert_eq!(quality_threshold(&useless, 0.99, &[]), None);
        let mut broken = world(2, 200);
        broken[7].small = f64::NAN;
        assert!(quality_threshold(&broken, 0.9, &[]).is_some());
        // All small answers wrong, all large ones right: nothing may go to small.
        let hard: Vec<Observation> = world(3, 300)
            .into_iter()
            .map(|pair| Observation {
                small: 0.0,
                large: 1.0,
                ..pair
            })
            .collect();
        let threshold = quality_threshold(&hard, 0.99, &[]).expect("enough pairs");
        assert!(threshold <= 0.01, "{threshold}");
    }
}
