//! A share of large turned into a threshold: a rolling quantile, steered by what was delivered.
//!
//! The window alone lags a shift of the traffic by hundreds of jobs and never makes up for it. The
//! level at which it is read is therefore moved after every decision by the miss (adaptive conformal
//! inference, Gibbs and Candès 2021, <https://arxiv.org/abs/2106.00170>): over any T decisions the
//! delivered share then lies within (1 + γ) / (γ T) of the share asked for, whatever the scores
//! do, ties included; far nearer when the window is representative.

use std::collections::VecDeque;

/// Scores that the window holds. Fewer adapt faster, more rank finer.
pub const WINDOW: usize = 512;
/// γ: how far the level moves by one miss.
const STEP: f64 = 0.02;

/// The last scores, in order of arrival and of size.
#[derive(Clone, Debug, Default)]
pub struct Window {
    recent: VecDeque<f64>,
    sorted: Vec<f64>,
}

impl Window {
    /// Takes a score in; the oldest beyond [`WINDOW`] leaves. What is no number is passed over.
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

    /// The threshold under which about `level` (0 to 1) of the window lies: 0 and less puts it below
    /// everything, 1 and more above everything. `None` while the window is empty and cannot tell.
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
        // A hair less, so that 0.7 of 10 is 7 and not, by rounding, 8.
        let below = (level * self.sorted.len() as f64 - 1e-9).ceil() as usize;
        Some(self.sorted.get(below).copied().unwrap_or_else(beyond))
    }

    /// The part of the window that lies under a threshold, 0 to 1.
    pub fn level_of(&self, threshold: f64) -> Option<f64> {
        let count = self.sorted.len();
        let below = self.sorted.partition_point(|kept| *kept < threshold);
        (count > 0).then(|| below as f64 / count as f64)
    }

    /// True while it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// The scores by rising size.
    pub fn sorted(&self) -> &[f64] {
        &self.sorted
    }
}

/// Keeps the delivered share at the one asked for.
#[derive(Clone, Debug, Default)]
pub struct ShareLevel {
    /// What the misses so far have moved the level by.
    correction: f64,
}

impl ShareLevel {
    /// The level at which the window is to be read next: where a representative window would deliver
    /// the share, corrected.
    pub fn level(&self, share: f64) -> f64 {
        1.0 - share + self.correction
    }

    /// Learns what was decided while `share` was asked for.
    pub fn observe(&mut self, is_large: bool, share: f64) {
        let miss = f64::from(u8::from(is_large)) - share;
        // Beyond 0 and 1 everything goes one way, which turns it round: it needs no other bound, and
        // one would lose count of the misses.
        self.correction += STEP * miss;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use crate::router::target::quantile::*;

    proptest! {
        /// The window's order agrees with sorting its last scores, and thresholds with counting.
        #[test]
        fn agrees_with_brute_force(
            scores in prop::collection::vec(0u8..40, 1..1400),
            level in 0.001f64..1.0,
        ) {
            let mut window = Window::default();
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

        /// Whatever the scores do, the delivered share keeps to its bound.
        #[test]
        fn the_share_is_kept_for_any_scores(
            scores in prop::collection::vec(prop_oneof![Just(0.5), Just(1.0), Just(0.0), 0.0f64..1.0], 400..900),
            share in 0.0f64..1.0,
        ) {
            let (mut window, mut level) = (Window::default(), ShareLevel::default());
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

    /// What must be shown: within 2 points on steady traffic, within 5 on the thousand jobs that
    /// follow a shift; the second traffic overlaps the first by a part only.
    #[test]
    fn a_share_is_delivered_in_domain_and_after_a_shift() {
        for share in [0.1, 0.3, 0.5] {
            for seed in 0..10 {
                let mut rng = StdRng::seed_from_u64(seed);
                let (mut window, mut level) = (Window::default(), ShareLevel::default());
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
    fn the_ends_are_absolute() {
        let mut window = Window::default();
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
