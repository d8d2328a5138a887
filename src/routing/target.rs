//! Targets turned into thresholds, one calibration for each scope: the whole fleet, tenants, tags.

use crate::config::{RouteTarget, RouteTargets, RouterConfig, TargetScope};

use super::{
    isotonic::{self, Pair},
    load::{LatencyShare, TierLoad},
    quantile::{ShareLevel, Window},
};

/// Scores below which the window is too small for load to be told in shares of the jobs.
const WINDOW_MIN: usize = 32;

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
    /// `router.threshold`: holds where nothing else is known.
    fallback: f64,
    window: Window,
    level: ShareLevel,
    latency: LatencyShare,
    /// The threshold that keeps the quality, once enough pairs tell it.
    quality: Option<f64>,
}

impl Calibration {
    fn new(target: RouteTarget, fallback: f64) -> Self {
        let latency = LatencyShare::default();
        let share = match target {
            RouteTarget::Share(share) => share,
            _ => latency.share(),
        };
        Self {
            target,
            fallback,
            window: Window::default(),
            level: ShareLevel::new(share),
            latency,
            quality: None,
        }
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
                .window
                .threshold(self.level.level())
                .unwrap_or(self.fallback),
        };
        Thresholds {
            base,
            effective: self.shifted(base, shift).unwrap_or(base),
        }
    }

    /// The threshold moved by a share of the jobs. All to large and all to small stay what they are.
    fn shifted(&self, base: f64, shift: f64) -> Option<f64> {
        let is_end = base <= 0.0 || base >= 1.0 || matches!(self.share(), Some(0.0 | 1.0));
        if shift == 0.0 || is_end || self.window.sorted().len() < WINDOW_MIN {
            return None;
        }
        self.window.threshold(self.window.level_of(base)? + shift)
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
}

/// The calibrations of a router.
#[derive(Clone, Debug)]
pub struct Calibrations {
    all: Calibration,
    scoped: Vec<(TargetScope, Calibration)>,
}

/// Where a job's calibration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScopeAt(Option<usize>);

impl Calibrations {
    /// One for the fleet and one for each entry of `router.targets`.
    pub fn new(config: &RouterConfig) -> Self {
        let targets: &RouteTargets = &config.targets;
        Self {
            all: Calibration::new(config.target, config.threshold),
            scoped: targets
                .iter()
                .map(|(scope, target)| (scope.clone(), Calibration::new(target, config.threshold)))
                .collect(),
        }
    }

    /// The scope of a job: that of its first tag that has one, its tenant's, or the fleet's.
    pub fn scope(&self, tenant: &str, tags: &[String]) -> ScopeAt {
        if self.scoped.is_empty() {
            return ScopeAt(None);
        }
        let find = |wanted: &dyn Fn(&TargetScope) -> bool| {
            self.scoped.iter().position(|(scope, _)| wanted(scope))
        };
        let tagged = tags
            .iter()
            .find_map(|tag| find(&|scope| matches!(scope, TargetScope::Tag(name) if name == tag)));
        ScopeAt(tagged.or_else(|| {
            find(&|scope| matches!(scope, TargetScope::Tenant(name) if name == tenant))
        }))
    }

    /// The calibration of a scope.
    pub fn at(&mut self, at: ScopeAt) -> &mut Calibration {
        match at.0 {
            Some(at) => &mut self.scoped[at].1,
            None => &mut self.all,
        }
    }

    /// The thresholds of a scope under a shift by load.
    pub fn thresholds(&self, at: ScopeAt, shift: f64) -> Thresholds {
        match at.0 {
            Some(at) => self.scoped[at].1.thresholds(shift),
            None => self.all.thresholds(shift),
        }
    }

    /// What a scope is called, and its target, as the ledger keeps them.
    pub fn names(&self, at: ScopeAt) -> (String, String) {
        match at.0 {
            Some(at) => {
                let (scope, calibration) = &self.scoped[at];
                (scope.to_string(), calibration.target.to_string())
            }
            None => ("all".to_owned(), self.all.target.to_string()),
        }
    }

    fn each(&mut self) -> impl Iterator<Item = &mut Calibration> {
        let scoped = self.scoped.iter_mut().map(|(_, calibration)| calibration);
        std::iter::once(&mut self.all).chain(scoped)
    }

    /// True when a target is a quality.
    pub fn want_pairs(&self) -> bool {
        let of = |calibration: &Calibration| matches!(calibration.target, RouteTarget::Quality(_));
        of(&self.all) || self.scoped.iter().any(|(_, calibration)| of(calibration))
    }

    /// True when a target is a latency.
    pub fn want_load(&self) -> bool {
        let of = |calibration: &Calibration| matches!(calibration.target, RouteTarget::Latency(_));
        of(&self.all) || self.scoped.iter().any(|(_, calibration)| of(calibration))
    }

    /// Learns the present load of large.
    pub fn observe_load(&mut self, large: TierLoad) {
        for calibration in self.each() {
            if let RouteTarget::Latency(target) = calibration.target {
                calibration.latency.observe(large, target);
            }
        }
    }

    /// Learns the pairs known now: thresholds that keep a quality are calibrated anew.
    pub fn observe_pairs(&mut self, pairs: &[Pair]) {
        for calibration in self.each() {
            if let RouteTarget::Quality(quality) = calibration.target {
                let window = &calibration.window;
                let below = |threshold| window.level_of(threshold).unwrap_or(1.0);
                calibration.quality = isotonic::quality_threshold(pairs, quality, below);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Overrides};

    fn config(settings: &[(&str, &str)]) -> RouterConfig {
        let mut overrides = Overrides::default();
        for (field, value) in settings {
            overrides.set("--set", &format!("router.{field}"), *value);
        }
        Config::load(None, [], &overrides).expect("valid").router
    }

    #[test]
    fn a_tag_goes_before_the_tenant_and_both_before_the_fleet() {
        let targets = "tenant:acme=share:10%,tag:draft=share:5%,tag:gold=threshold:0";
        let calibrations =
            Calibrations::new(&config(&[("target", "share:30%"), ("targets", targets)]));
        let named = |tenant, tags: &[&str]| {
            let tags: Vec<String> = tags.iter().map(|tag| (*tag).to_owned()).collect();
            let (scope, target) = calibrations.names(calibrations.scope(tenant, &tags));
            format!("{scope} {target}")
        };
        assert_eq!(named("other", &["x"]), "all share:30%");
        assert_eq!(named("acme", &["x"]), "tenant:acme share:10%");
        assert_eq!(
            named("acme", &["x", "gold", "draft"]),
            "tag:gold threshold:0"
        );
    }

    /// Load moves at most the share it is given, and never what is absolute.
    #[test]
    fn load_moves_a_share_and_no_ends() {
        for (target, base) in [
            ("threshold:0.4", 0.4),
            ("threshold:0", 0.0),
            ("threshold:1", 1.0),
        ] {
            let mut calibrations = Calibrations::new(&config(&[("target", target)]));
            let at = calibrations.scope("default", &[]);
            for score in 0..200 {
                calibrations.at(at).observe(f64::from(score) / 200.0, false);
            }
            let moved = calibrations.at(at).thresholds(0.1);
            assert_eq!(moved.base, base);
            let expected = if base == 0.4 { 0.5 } else { base };
            assert!(
                (moved.effective - expected).abs() < 0.01,
                "{target}: {moved:?}"
            );
        }
    }

    #[test]
    fn a_quality_without_pairs_falls_back_to_the_fixed_threshold() {
        let mut calibrations =
            Calibrations::new(&config(&[("target", "quality:99%"), ("threshold", "0.7")]));
        let at = calibrations.scope("default", &[]);
        calibrations.observe_pairs(&[]);
        assert_eq!(calibrations.at(at).thresholds(0.0).base, 0.7);
        let pairs: Vec<Pair> = (0..600)
            .map(|n| Pair {
                score: f64::from(n) / 600.0,
                small: f64::from(u8::from(n < 400)),
                large: 1.0,
            })
            .collect();
        for pair in &pairs {
            calibrations.at(at).observe(pair.score, false);
        }
        calibrations.observe_pairs(&pairs);
        let base = calibrations.at(at).thresholds(0.0).base;
        assert!((0.4..0.68).contains(&base), "{base}");
    }
}
