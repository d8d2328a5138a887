//! One target turned into thresholds: what it knows of the traffic, and how load moves what it gives.

use crate::config::RouteTarget;

use super::{
    isotonic::{Pair, TRAFFIC_MIN, quality_threshold},
    load::{LatencyShare, TierLoad},
    quantile::{ShareLevel, Window},
};

/// The thresholds that hold for a job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// What the target alone gives.
    pub base: f64,
    /// What holds, load counted in.
    pub effective: f64,
}

/// What a target needs to know of the traffic to become a threshold.
#[derive(Clone, Debug)]
pub struct Calibration {
    target: RouteTarget,
    fallback: f64,
    window: Window,
    level: ShareLevel,
    latency: LatencyShare,
    /// The threshold that keeps the quality, once enough pairs tell it.
    quality: Option<f64>,
}

impl Calibration {
    /// One that knows nothing; `fallback` holds where nothing else is known.
    pub fn new(target: RouteTarget, fallback: f64) -> Self {
        Self {
            target,
            fallback,
            window: Window::default(),
            level: ShareLevel::default(),
            latency: LatencyShare::default(),
            quality: None,
        }
    }

    /// Takes another target over. What is known of the traffic stays; what was learned of the way to
    /// the old target goes. A latency begins at the share that was delivered before.
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

    /// What is to be delivered.
    pub fn target(&self) -> RouteTarget {
        self.target
    }

    /// True while it knows nothing of the traffic.
    pub fn is_new(&self) -> bool {
        self.window.is_empty()
    }

    /// The share that is to be delivered now, where the target comes to one.
    fn share(&self) -> Option<f64> {
        match self.target {
            RouteTarget::Share(share) => Some(share),
            RouteTarget::Latency(_) => Some(self.latency.share()),
            _ => None,
        }
    }

    /// The thresholds under a shift by load.
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

    /// The threshold moved by a share of the jobs, and by no more than half of what goes to large, so
    /// that a small share does not vanish or multiply. All to large and all to small stay what they are,
    /// a quality is not lowered, and a latency has load in it already.
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

    /// Takes the score of an earlier run in.
    pub fn remember(&mut self, score: f64) {
        self.window.push(score);
    }

    /// Learns a score and on which side of the base threshold it fell.
    pub fn observe(&mut self, score: f64, is_large: bool) {
        if let Some(share) = self.share() {
            self.level.observe(is_large, share);
        }
        self.window.push(score);
    }

    /// Learns the present load of large.
    pub fn observe_load(&mut self, large: TierLoad) {
        if let RouteTarget::Latency(target) = self.target {
            self.latency.observe(large, target);
        }
    }

    /// Learns the jobs of which both tiers' outcomes are known: a threshold that keeps a quality is
    /// calibrated anew, by those of this scope once they tell enough, by everybody's until then.
    pub fn observe_pairs(&mut self, own: &[Pair], all: &[Pair]) {
        if let RouteTarget::Quality(quality) = self.target {
            let traffic = self.window.sorted();
            let told_by = |pairs| quality_threshold(pairs, quality, traffic);
            self.quality = told_by(own).or_else(|| told_by(all));
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use crate::router::target::calibration::*;

    /// One for a target that has seen evenly spread scores.
    fn calibration(target: &str) -> Calibration {
        let mut calibration = Calibration::new(target.parse().expect("a target"), 0.4);
        (0..200).for_each(|score| calibration.remember(f64::from(score) / 200.0));
        calibration
    }

    /// What a latency allows holds from the next job on, not once misses have moved the level there.
    #[test]
    fn a_latency_follows_its_share_at_once() {
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

    /// Load moves at most the share it is given and half of what goes to large, never what is absolute,
    /// a quality only upwards, and not what follows it anyway.
    #[test]
    fn load_moves_what_may_be_moved() {
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

    /// A share that was asked for holds while there is no back-log, and again after one; meanwhile load
    /// moves it, no further than it may.
    #[test]
    fn a_share_holds_before_and_after_a_back_log() {
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
