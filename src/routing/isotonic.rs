//! A quality turned into a threshold: isotonic regression of the observed gain on the score, with a
//! confidence bound on what is lost.

/// Pairs below which no threshold is calibrated.
pub const PAIRS_MIN: usize = 100;
/// One-sided 95 % of the normal distribution.
const Z: f64 = 1.645;

/// A job of which both tiers' outcomes are known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// The router's score.
    pub score: f64,
    /// How good small's answer was, 0 to 1.
    pub small: f64,
    /// How good large's answer was, 0 to 1.
    pub large: f64,
}

/// The non-decreasing sequence nearest to `values` in squares (pool adjacent violators; Ayer et
/// al. 1955). One value a point, in the same order.
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

/// The largest threshold under which, with 95 % confidence, at least `quality` (0 to 1) of what the
/// large model alone would reach is kept.
///
/// `below` gives the part of the traffic that scores under a threshold; what a job there loses
/// is its expected gain by [`isotonic`], and its upper bound adds one lost job to those seen, so that
/// a few pairs without a loss do not prove that there is none. Pairs come from jobs that small
/// answered; beyond their largest score nothing is known, and everything there stays on large.
/// `None` while there are fewer than [`PAIRS_MIN`] pairs or large never was right.
pub fn quality_threshold(pairs: &[Pair], quality: f64, below: impl Fn(f64) -> f64) -> Option<f64> {
    let mut pairs: Vec<&Pair> = pairs
        .iter()
        .filter(|pair| pair.score.is_finite() && pair.small.is_finite() && pair.large.is_finite())
        .collect();
    let large_mean = pairs.iter().map(|pair| pair.large).sum::<f64>() / pairs.len() as f64;
    if pairs.len() < PAIRS_MIN || large_mean <= 0.0 {
        return None;
    }
    pairs.sort_by(|a, b| a.score.total_cmp(&b.score));
    let gains: Vec<f64> = pairs.iter().map(|pair| pair.large - pair.small).collect();
    let fitted = isotonic(&gains);
    let allowed = (1.0 - quality) * large_mean;
    let mut chosen = 0.0;
    // Sums over the pairs below the candidate, begun with one lost job.
    let (mut loss, mut raw, mut squares) = (1.0, 1.0, 1.0);
    for (at, pair) in pairs.iter().enumerate() {
        loss += fitted[at].max(0.0);
        raw += gains[at];
        squares += gains[at] * gains[at];
        let threshold = match pairs.get(at + 1) {
            // Equal scores go the same way.
            Some(next) if next.score == pair.score => continue,
            Some(next) => next.score,
            None => pair.score.next_up(),
        };
        let count = (at + 2) as f64;
        let variance = (squares / count - (raw / count).powi(2)).max(0.0);
        let upper = loss / count + Z * (variance / count).sqrt();
        if below(threshold) * upper <= allowed {
            chosen = threshold;
        }
    }
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    /// The min-max formula: the largest over beginnings of the smallest over ends of block means.
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
        /// Pooling gives what the min-max formula gives.
        #[test]
        fn pooling_agrees_with_the_formula(values in prop::collection::vec(-1.0f64..1.0, 1..40)) {
            for (pooled, formula) in isotonic(&values).iter().zip(by_min_max(&values)) {
                prop_assert!((pooled - formula).abs() < 1e-9, "{pooled} {formula}");
            }
        }
    }

    /// Pairs whose chance of gain is the score to a power: easy ones lose nothing on small.
    fn world(seed: u64, count: usize) -> Vec<Pair> {
        let mut rng = StdRng::seed_from_u64(seed);
        (0..count)
            .map(|_| {
                let score: f64 = rng.random_range(0.0..1.0);
                let is_right =
                    |chance: f64, rng: &mut StdRng| f64::from(u8::from(rng.random_bool(chance)));
                let large = is_right(0.9, &mut rng);
                let small = large * is_right(1.0 - score.powi(2) * 0.6, &mut rng);
                Pair {
                    score,
                    small,
                    large,
                }
            })
            .collect()
    }

    /// What the threshold promises holds on fresh pairs, and it is not merely everything on large.
    #[test]
    fn the_quality_is_kept_on_fresh_pairs() {
        let mut held = 0;
        for seed in 0..40 {
            let threshold =
                quality_threshold(&world(seed, 1500), 0.95, |t| t).expect("enough pairs");
            assert!(threshold > 0.3, "{threshold}");
            let fresh = world(seed + 1000, 20_000);
            let reached: f64 = fresh
                .iter()
                .map(|pair| {
                    if pair.score >= threshold {
                        pair.large
                    } else {
                        pair.small
                    }
                })
                .sum();
            let large: f64 = fresh.iter().map(|pair| pair.large).sum();
            held += u32::from(reached / large >= 0.95);
        }
        assert!(held >= 38, "kept in {held} of 40 worlds");
    }

    #[test]
    fn knows_when_it_knows_nothing() {
        let pairs = world(1, PAIRS_MIN - 1);
        assert_eq!(quality_threshold(&pairs, 0.99, |t| t), None);
        let useless = vec![
            Pair {
                score: 0.5,
                small: 0.0,
                large: 0.0
            };
            500
        ];
        assert_eq!(quality_threshold(&useless, 0.99, |t| t), None);
        let mut broken = world(2, 200);
        broken[7].small = f64::NAN;
        assert!(quality_threshold(&broken, 0.9, |t| t).is_some());
        // All small answers wrong, all large ones right: nothing may go to small.
        let hard: Vec<Pair> = world(3, 300)
            .into_iter()
            .map(|pair| Pair {
                small: 0.0,
                large: 1.0,
                ..pair
            })
            .collect();
        let threshold = quality_threshold(&hard, 0.99, |t| t).expect("enough pairs");
        assert!(threshold <= 0.01, "{threshold}");
    }
}
