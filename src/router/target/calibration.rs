//! Computes a target's thresholds from observed traffic, outcomes and load.

use crate::config::RouteTarget;

use super::{
    isotonic::{Observation, TRAFFIC_MIN, quality_threshold},
    load::{LatencyShare, TierLoad},
    quantile::{ScoreWindow, ShareLevel},
};

/// The thresholds for a job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// Without load.
    pub base: f64,
    /// Under the present load.
    pub effective: f64,
}

/// The state from which a target's threshold is computed.
#[derive(Clone, Debug)]
pub struct Calibration {
    target: RouteTarget,
    fallback: f64,
    window: ScoreWindow,
    level: ShareLevel,
    latency: LatencyShare,
    /// The threshold that keeps the quality, once there are enough observations.
    quality: Option<f64>,
}

impl Calibration {
    /// An empty calibration; `fallback` is its threshold until there is data.
    pub fn new(target: RouteTarget, fallback: f64) -> Self {
        Self {
            target,
            fallback,
            window: ScoreWindow::default(),
            level: ShareLevel::default(),
            latency: LatencyShare::default(),
            quality: None,
        }
    }

    /// Changes the target. The traffic window stays; corrections towards the old target are dropped. A
    /// latency target starts from the share delivered before.
    pub fn retarget(&mut self, target: RouteTarget) {
        let delivered = self.window.level_of(self.thresholds(0.0).base);
        let earlier = std::mem::replace(self, Self::new(target, self.fallback));
        self.window = earlier.window;
        match (earlier.target, target) {
            (RouteTarget::Latency(_), RouteTarget::Latency(_)) => {
                self.latency = earlier.latency;
                self.level = earlier.level;
            }
            (_, RouteTarget::Latency(_)) => {
                self.latency =
                    delivered.map_or(self.latency, |below| LatencyShare::at(1.0 - below));
            }
            _ => {}
        }
    }

    /// The target.
    pub fn target(&self) -> RouteTarget {
        self.target
    }

    /// True while the traffic window is empty.
    pub fn is_new(&self) -> bool {
        self.window.is_empty()
    }

    /// The share of large that the target implies now, if any.
    fn share(&self) -> Option<f64> {
        match self.target {
            RouteTarget::Share(share) => Some(share),
            RouteTarget::Latency(_) => Some(self.latency.share()),
            _ => None,
        }
    }

    /// The thresholds under a load shift.
    pub fn thresholds(&self, shift: f64) -> Thresholds {
        let base = match self.target {
            RouteTarget::Threshold => self.fallback,
            RouteTarget::ThresholdOf(threshold) => threshold,
            RouteTarget::Quality(_) => self.quality.unwrap_or(self.fallback),
            RouteTarget::Share(_) | RouteTarget::Latency(_) => self
                .share()
                .and_then(|share| self.window.threshold(self.level.level(share)))
                .unwrap_or(self.fallback),
        };
        Thresholds {
            base,
            effective: self.shifted(base, shift).unwrap_or(base),
        }
    }

    /// The threshold moved by a share of the jobs, and by at most half of the share of large, so that a
    /// small share neither vanishes nor multiplies. All-large and all-small never move, a quality is not
    /// lowered, and a latency target already accounts for load.
    fn shifted(&self, base: f64, shift: f64) -> Option<f64> {
        let shift = match self.target {
            RouteTarget::Quality(_) => shift.min(0.0),
            RouteTarget::Latency(_) => 0.0,
            _ => shift,
        };
        let is_end = base <= 0.0 || base >= 1.0 || matches!(self.share(), Some(0.0 | 1.0));
        if shift == 0.0 || is_end || self.window.sorted().len() < TRAFFIC_MIN {
            return None;
        }
        let level = self.window.level_of(base)?;
        let most = (1.0 - level) / 2.0;
        self.window.threshold(level + shift.clamp(-most, most))
    }

    /// Adds a score of an earlier run.
    pub fn remember(&mut self, score: f64) {
        self.window.push(score);
    }

    /// Records a score and the side of the base threshold on which it fell.
    pub fn observe(&mut self, score: f64, is_large: bool) {
        if let Some(share) = self.share() {
            self.level.observe(is_large, share);
        }
        self.window.push(score);
    }

    /// Records the present load of large.
    pub fn observe_load(&mut self, large: TierLoad) {
        if let RouteTarget::Latency(target) = self.target {
            self.latency.observe(large, target);
        }
    }

    /// Recalibrates a quality threshold: from this scope's observations once there are enough, from all
    /// until then.
    pub fn observe_pairs(&mut self, own: &[Observation], all: &[Observation]) {
        if let RouteTarget::Quality(quality) = self.target {
            let traffic = self.window.sorted();
            let from = |observations| quality_threshold(observations, quality, traffic);
            self.quality = from(own).or_else(|| from(all));
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use crate::router::target::calibration::*;

    /// A calibration with evenly spread scores.
    fn calibration(target: &str) -> Calibration {
        let mut calibration = Calibration::new(target.parse().expect("a target"), 0.4);
        (0..200).for_each(|score| calibration.remember(f64::from(score) / 200.0));
        calibration
    }

    #[test]
    fn a_latency_share_applies_to_the_next_job() {
        let mut calibration = calibration("latency:2s");
        assert!((calibration.thresholds(0.0).base - 0.5).abs() < 0.01);
        let swamped = TierLoad {
            waiting: 1000,
            running: 4,
            places: 4,
            service_s: Some(1.0),
        };
        (0..5).for_each(|_| calibration.observe_load(swamped));
        let cut = 0.5 * 0.8_f64.powi(5);
        let share = 1.0 - calibration.thresholds(0.0).base;
        assert!((share - cut).abs() < 0.01, "{share}");
    }

    /// Load moves at most its share and half of the share of large; never absolute targets, a quality only
    /// upwards, and a latency not at all.
    #[test]
    fn load_moves_each_kind_of_target_within_its_limits() {
        for (target, base, towards_small, towards_large) in [
            ("threshold:0.4", 0.4, 0.5, 0.3),
            ("threshold:0", 0.0, 0.0, 0.0),
            ("threshold:1", 1.0, 1.0, 1.0),
            ("share:60%", 0.4, 0.5, 0.3),
            ("share:4%", 0.96, 0.98, 0.94),
            ("share:100%", 0.0, 0.0, 0.0),
            ("quality:99%", 0.4, 0.4, 0.3),
            ("latency:2s", 0.5, 0.5, 0.5),
        ] {
            let calibration = calibration(target);
            for (shift, expected) in [(0.0, base), (0.1, towards_small), (-0.1, towards_large)] {
                let moved = calibration.thresholds(shift);
                assert!((moved.base - base).abs() < 0.01, "{target}: {moved:?}");
                let miss = (moved.effective - expected).abs();
                assert!(miss < 0.01, "{target} by {shift}: {moved:?}");
            }
        }
        let none = calibration("share:0%");
        assert_eq!(none.thresholds(0.1), none.thresholds(-0.1));
    }

    /// A share holds before and after a backlog; during it load moves it by at most the limit.
    #[test]
    fn a_share_holds_before_and_after_a_backlog() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut calibration = Calibration::new(RouteTarget::Share(0.3), 0.5);
        let mut deliver = |shift: f64| {
            let mut large = 0;
            for _ in 0..2000 {
                let score = rng.random_range(0.0..1.0);
                let thresholds = calibration.thresholds(shift);
                calibration.observe(score, score >= thresholds.base);
                large += u32::from(score >= thresholds.effective);
            }
            f64::from(large) / 2000.0
        };
        for (shift, share) in [(0.0, 0.3), (0.1, 0.2), (0.0, 0.3), (-0.1, 0.4), (0.0, 0.3)] {
            let found = deliver(shift);
            assert!((found - share).abs() <= 0.02, "{found} under {shift}");
        }
    }
}
