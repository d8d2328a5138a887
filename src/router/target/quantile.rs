//! The threshold for a share target: a rolling quantile, corrected by the delivered share.
//!
//! The window alone lags a shift of the traffic by hundreds of jobs and never compensates. Its quantile
//! level is therefore corrected after every decision by the miss (adaptive conformal inference, Gibbs
//! and Candès 2021, <https://arxiv.org/abs/2106.00170>): over any T decisions the delivered share lies
//! within (1 + γ) / (γ T) of the target for any scores, ties included; much closer when the window is
//! representative.

use std::collections::VecDeque;

/// Scores in the window. Fewer adapt faster, more are more precise.
pub const WINDOW: usize = 512;
/// γ: how far the level moves by one miss.
const STEP: f64 = 0.02;

/// The last scores, in order of arrival and sorted.
#[derive(Clone, Debug, Default)]
pub struct ScoreWindow {
    recent: VecDeque<f64>,
    sorted: Vec<f64>,
}

impl ScoreWindow {
    /// Adds a score and drops the oldest beyond [`WINDOW`]. Ignores scores that are not finite.
    pub fn push(&mut self, score: f64) {
        if !score.is_finite() {
            return;
        }
        if self.recent.len() == WINDOW
            && let Some(oldest) = self.recent.pop_front()
        {
            let at = self.sorted.partition_point(|kept| *kept < oldest);
            self.sorted.remove(at);
        }
        let at = self.sorted.partition_point(|kept| *kept < score);
        self.sorted.insert(at, score);
        self.recent.push_back(score);
    }

    /// The quantile of the window at `level`: below every score from 0 down, above every score from 1 up.
    /// `None` while the window is empty.
    pub fn threshold(&self, level: f64) -> Option<f64> {
        let beyond = || {
            self.sorted
                .last()
                .map_or(1.0, |largest| largest.max(1.0))
                .next_up()
        };
        if level <= 0.0 {
            return Some(0.0);
        }
        if level >= 1.0 {
            return Some(beyond());
        }
        if self.sorted.is_empty() {
            return None;
        }
        // Slightly less, so that rounding does not make 0.7 of 10 an 8.
        let below = (level * self.sorted.len() as f64 - 1e-9).ceil() as usize;
        Some(self.sorted.get(below).copied().unwrap_or_else(beyond))
    }

    /// The share of the window below a threshold, 0 to 1.
    pub fn level_of(&self, threshold: f64) -> Option<f64> {
        let count = self.sorted.len();
        let below = self.sorted.partition_point(|kept| *kept < threshold);
        (count > 0).then(|| below as f64 / count as f64)
    }

    /// True while it is empty.
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// The scores, ascending.
    pub fn sorted(&self) -> &[f64] {
        &self.sorted
    }
}

/// Corrects the quantile level so that the delivered share matches the target.
#[derive(Clone, Debug, Default)]
pub struct ShareLevel {
    /// Sum of the corrections so far.
    correction: f64,
}

impl ShareLevel {
    /// The corrected quantile level for a share of large.
    pub fn level(&self, share: f64) -> f64 {
        1.0 - share + self.correction
    }

    /// Records a decision under the target `share`.
    pub fn observe(&mut self, is_large: bool, share: f64) {
        let miss = f64::from(u8::from(is_large)) - share;
        // Not clamped: beyond 0 and 1 all jobs go one way, which reverses the correction, and a clamp would
        // lose misses.
        self.correction += STEP * miss;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use crate::router::target::quantile::*;

    proptest! {
        /// The window agrees with sorting its last scores, and thresholds with counting.
        #[test]
        fn agrees_with_brute_force(
            scores in prop::collection::vec(0u8..40, 1..1400),
            level in 0.001f64..1.0,
        ) {
            let mut window = ScoreWindow::default();
            let scores: Vec<f64> = scores.into_iter().map(|s| f64::from(s) / 40.0).collect();
            scores.iter().for_each(|score| window.push(*score));
            let mut last = scores[scores.len().saturating_sub(WINDOW)..].to_vec();
            last.sort_by(f64::total_cmp);
            prop_assert_eq!(window.sorted(), &last[..]);
            let threshold = window.threshold(level).expect("not empty");
            let at_least = last.iter().filter(|s| **s >= threshold).count() as f64;
            let above = last.iter().filter(|s| **s > threshold).count() as f64;
            let wanted = (1.0 - level) * last.len() as f64;
            prop_assert!(above <= wanted + 1e-6 && at_least + 1.0 > wanted, "{above} {wanted} {at_least}");
        }

        /// The delivered share stays within its bound for any scores.
        #[test]
        fn the_share_is_kept_for_any_scores(
            scores in prop::collection::vec(prop_oneof![Just(0.5), Just(1.0), Just(0.0), 0.0f64..1.0], 400..900),
            share in 0.0f64..1.0,
        ) {
            let (mut window, mut level) = (ScoreWindow::default(), ShareLevel::default());
            let mut large = 0.0;
            for score in &scores {
                let threshold = window.threshold(level.level(share)).unwrap_or(0.5);
                let is_large = *score >= threshold;
                large += f64::from(u8::from(is_large));
                level.observe(is_large, share);
                window.push(*score);
            }
            let count = scores.len() as f64;
            let bound = (1.0 + STEP) / (STEP * count) + 1.0 / count;
            prop_assert!((large / count - share).abs() <= bound, "{} for {share}", large / count);
        }
    }

    /// Within 2 points on steady traffic, within 5 on the thousand jobs after a shift to traffic that
    /// overlaps the first only in part.
    #[test]
    fn a_share_is_delivered_on_steady_traffic_and_after_a_shift() {
        for share in [0.1, 0.3, 0.5] {
            for seed in 0..10 {
                let mut rng = StdRng::seed_from_u64(seed);
                let (mut window, mut level) = (ScoreWindow::default(), ShareLevel::default());
                let mut deliver = |low: f64, high: f64| {
                    let mut large = 0.0;
                    for _ in 0..1000 {
                        let score = rng.random_range(low..high);
                        let threshold = window.threshold(level.level(share)).unwrap_or(0.5);
                        let is_large = score >= threshold;
                        large += f64::from(u8::from(is_large));
                        level.observe(is_large, share);
                        window.push(score);
                    }
                    large / 1000.0
                };
                let (steady, up, down) = (deliver(0.0, 0.5), deliver(0.4, 1.0), deliver(0.0, 0.5));
                assert!(
                    (steady - share).abs() <= 0.02,
                    "{steady} for {share}, seed {seed}"
                );
                for shifted in [up, down] {
                    assert!(
                        (shifted - share).abs() <= 0.05,
                        "{shifted} for {share}, seed {seed}"
                    );
                }
            }
        }
    }

    #[test]
    fn shares_of_0_and_1_are_exact() {
        let mut window = ScoreWindow::default();
        assert_eq!(window.threshold(0.5), None);
        assert_eq!(
            window.threshold(0.0),
            Some(0.0),
            "a share of 100 % needs no scores"
        );
        assert!(window.threshold(1.0).expect("a share of 0 neither") > 1.0);
        window.push(f64::NAN);
        assert!(window.is_empty());
        [0.2, 1.0].iter().for_each(|score| window.push(*score));
        assert_eq!(window.threshold(0.0), Some(0.0));
        assert!(window.threshold(1.0).expect("not empty") > 1.0);
        assert_eq!(window.level_of(0.5), Some(0.5));
    }
}
