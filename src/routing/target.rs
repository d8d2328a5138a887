//! Targets turned into thresholds, one calibration for each scope: the whole fleet, tenants, tags.

use std::collections::BTreeMap;

use crate::{
    config::{RouteTarget, RouterConfig, TargetScope},
    store::{PastDecision, ScopedTarget},
};

use super::{
    isotonic::{self, Pair},
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
    fn retarget(&mut self, target: RouteTarget) {
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

    /// The threshold moved by a share of the jobs. All to large and all to small stay what they are, a
    /// quality is not lowered, and a latency has load in it already.
    fn shifted(&self, base: f64, shift: f64) -> Option<f64> {
        let shift = match self.target {
            RouteTarget::Quality(_) => shift.min(0.0),
            RouteTarget::Latency(_) => 0.0,
            _ => shift,
        };
        let is_end = base <= 0.0 || base >= 1.0 || matches!(self.share(), Some(0.0 | 1.0));
        if shift == 0.0 || is_end || self.window.sorted().len() < isotonic::TRAFFIC_MIN {
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

/// A job of which both tiers' outcomes are known.
#[derive(Clone, Debug)]
pub struct KnownPair {
    /// Whose job it was.
    pub tenant: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// What came of it.
    pub pair: Pair,
}

/// Whose target is which.
pub type Targets = BTreeMap<TargetScope, RouteTarget>;

/// The targets that hold: the ledger's, then the configuration's.
pub fn in_force(config: &RouterConfig, ledger: &[ScopedTarget]) -> Targets {
    let configured = config
        .targets
        .iter()
        .map(|(scope, target)| (scope.clone(), target));
    let set = ledger.iter().map(|one| (one.scope.clone(), one.target));
    std::iter::once((TargetScope::All, config.target))
        .chain(configured)
        .chain(set)
        .collect()
}

/// The calibrations of a router.
#[derive(Clone, Debug)]
pub struct Calibrations {
    /// By scope, so that the fleet's stands first.
    scoped: Vec<(TargetScope, Calibration)>,
    fallback: f64,
}

/// Where a job's calibration stands, until the targets change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScopeAt(usize);

impl Calibrations {
    /// One for the fleet and one for each entry of `router.targets`.
    pub fn new(config: &RouterConfig) -> Self {
        let fallback = config.threshold;
        let calibration = |(scope, target)| (scope, Calibration::new(target, fallback));
        Self {
            scoped: in_force(config, &[]).into_iter().map(calibration).collect(),
            fallback,
        }
    }

    /// Forgets what was learned; the targets stay.
    pub fn forget(&mut self) {
        for (_, calibration) in &mut self.scoped {
            *calibration = Calibration::new(calibration.target, self.fallback);
        }
    }

    /// Puts other targets in force. Scopes that stay keep what they know of their traffic. Returns what
    /// changed, with `None` for a scope that has no target of its own any more.
    pub fn retarget(&mut self, mut targets: Targets) -> Vec<(TargetScope, Option<RouteTarget>)> {
        let mut changed = Vec::new();
        self.scoped.retain_mut(|(scope, calibration)| {
            let Some(target) = targets.remove(scope) else {
                changed.push((scope.clone(), None));
                return false;
            };
            if target != calibration.target {
                calibration.retarget(target);
                changed.push((scope.clone(), Some(target)));
            }
            true
        });
        for (scope, target) in targets {
            changed.push((scope.clone(), Some(target)));
            self.scoped
                .push((scope, Calibration::new(target, self.fallback)));
        }
        self.scoped.sort_by(|(a, _), (b, _)| a.cmp(b));
        changed
    }

    /// Takes decisions of an earlier run in, the oldest first, where nothing is known of the traffic.
    pub fn remember(&mut self, past: &[PastDecision]) {
        let is_unknown: Vec<bool> = self
            .each()
            .map(|calibration| calibration.window.is_empty())
            .collect();
        for decision in past {
            let at = self.scope(&decision.tenant, &decision.tags);
            if is_unknown[at.0] {
                self.at(at).remember(decision.score);
            }
        }
    }

    /// The targets that hold, by scope.
    pub fn targets(&self) -> impl Iterator<Item = (TargetScope, RouteTarget)> + '_ {
        self.scoped
            .iter()
            .map(|(scope, calibration)| (scope.clone(), calibration.target))
    }

    /// The scope of a job: that of its first tag that has one, its tenant's, or the fleet's.
    pub fn scope(&self, tenant: &str, tags: &[String]) -> ScopeAt {
        let find = |wanted: TargetScope| {
            self.scoped
                .binary_search_by(|(scope, _)| scope.cmp(&wanted))
                .ok()
        };
        if self.scoped.len() == 1 {
            return ScopeAt(0);
        }
        let tagged = tags
            .iter()
            .find_map(|tag| find(TargetScope::Tag(tag.clone())));
        let own = || find(TargetScope::Tenant(tenant.to_owned()));
        ScopeAt(tagged.or_else(own).unwrap_or(0))
    }

    /// The calibration of a scope.
    pub fn at(&mut self, at: ScopeAt) -> &mut Calibration {
        &mut self.scoped[at.0].1
    }

    /// The thresholds of a scope under a shift by load.
    pub fn thresholds(&self, at: ScopeAt, shift: f64) -> Thresholds {
        self.scoped[at.0].1.thresholds(shift)
    }

    /// What a scope is called, and its target, as the ledger keeps them.
    pub fn names(&self, at: ScopeAt) -> (String, String) {
        let (scope, calibration) = &self.scoped[at.0];
        (scope.to_string(), calibration.target.to_string())
    }

    fn each(&mut self) -> impl Iterator<Item = &mut Calibration> {
        self.scoped.iter_mut().map(|(_, calibration)| calibration)
    }

    fn any(&self, is_so: impl Fn(RouteTarget) -> bool) -> bool {
        self.scoped
            .iter()
            .any(|(_, calibration)| is_so(calibration.target))
    }

    /// True when a target is a quality.
    pub fn want_pairs(&self) -> bool {
        self.any(|target| matches!(target, RouteTarget::Quality(_)))
    }

    /// True when a target is a latency.
    pub fn want_load(&self) -> bool {
        self.any(|target| matches!(target, RouteTarget::Latency(_)))
    }

    /// Learns the present load of large.
    pub fn observe_load(&mut self, large: TierLoad) {
        for calibration in self.each() {
            if let RouteTarget::Latency(target) = calibration.target {
                calibration.latency.observe(large, target);
            }
        }
    }

    /// Learns the pairs known now: thresholds that keep a quality are calibrated anew, by the pairs of
    /// their scope once they tell enough, by everybody's until then.
    pub fn observe_pairs(&mut self, pairs: &[KnownPair]) {
        let mut own: Vec<Vec<Pair>> = vec![Vec::new(); self.scoped.len()];
        for known in pairs {
            own[self.scope(&known.tenant, &known.tags).0].push(known.pair);
        }
        let all: Vec<Pair> = pairs.iter().map(|known| known.pair).collect();
        for (calibration, own) in self.each().zip(own) {
            if let RouteTarget::Quality(quality) = calibration.target {
                let traffic = calibration.window.sorted();
                let told_by = |pairs| isotonic::quality_threshold(pairs, quality, traffic);
                calibration.quality = told_by(&own).or_else(|| told_by(&all));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

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

    /// What is known of the traffic outlives a change of the target; scopes come and go.
    #[test]
    fn targets_change_while_windows_stay() {
        let mut calibrations = Calibrations::new(&config(&[
            ("target", "share:30%"),
            ("targets", "tag:draft=share:5%"),
        ]));
        let draft = ["draft".to_owned()];
        for score in 0..200 {
            for tags in [&[][..], &draft] {
                let at = calibrations.scope("acme", tags);
                calibrations.at(at).remember(f64::from(score) / 200.0);
            }
        }
        let base = |calibrations: &Calibrations, tags: &[String]| {
            let at = calibrations.scope("acme", tags);
            calibrations.thresholds(at, 0.0).base
        };
        assert!((base(&calibrations, &draft) - 0.95).abs() < 0.01);
        let said = |pairs: &[(&str, &str)]| -> Targets {
            let parsed = |(scope, target): &(&str, &str)| {
                (
                    scope.parse().expect("scope"),
                    target.parse().expect("target"),
                )
            };
            pairs.iter().map(parsed).collect()
        };
        let next = said(&[
            ("all", "share:30%"),
            ("tag:draft", "share:50%"),
            ("tenant:acme", "share:0%"),
        ]);
        let changed = calibrations.retarget(next.clone());
        let names: Vec<String> = changed.iter().map(|(scope, _)| scope.to_string()).collect();
        assert_eq!(names, ["tag:draft", "tenant:acme"]);
        assert!((base(&calibrations, &draft) - 0.5).abs() < 0.01);
        assert!(base(&calibrations, &[]) > 1.0, "the tenant's own holds");
        assert_eq!(calibrations.retarget(next), []);
        let changed = calibrations.retarget(said(&[("all", "latency:2s")]));
        assert_eq!(
            changed
                .iter()
                .filter(|(_, target)| target.is_none())
                .count(),
            2
        );
        let found = base(&calibrations, &draft);
        assert!(
            (found - 0.7).abs() < 0.01,
            "it goes on where the share was: {found}"
        );
        calibrations.forget();
        assert_eq!(base(&calibrations, &[]), 0.5, "nothing is known");
    }

    /// What a latency allows holds from the next job on, not once misses have moved the level there.
    #[test]
    fn a_latency_follows_its_share_at_once() {
        let mut calibrations = Calibrations::new(&config(&[("target", "latency:2s")]));
        let at = calibrations.scope("default", &[]);
        (0..200).for_each(|score| calibrations.at(at).remember(f64::from(score) / 200.0));
        let share = |calibrations: &Calibrations| 1.0 - calibrations.thresholds(at, 0.0).base;
        assert!((share(&calibrations) - 0.5).abs() < 0.01);
        let swamped = TierLoad {
            waiting: 1000,
            running: 4,
            places: 4,
            service_s: Some(1.0),
        };
        (0..5).for_each(|_| calibrations.observe_load(swamped));
        let cut = 0.5 * 0.8_f64.powi(5);
        assert!((share(&calibrations) - cut).abs() < 0.01);
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

    /// A share that was asked for holds while there is no back-log, and again after one; meanwhile load
    /// moves it, no further than it may.
    #[test]
    fn a_share_holds_before_and_after_a_back_log() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut calibrations = Calibrations::new(&config(&[("target", "share:30%")]));
        let at = calibrations.scope("default", &[]);
        let mut deliver = |shift: f64| {
            let mut large = 0;
            for _ in 0..2000 {
                let score = rng.random_range(0.0..1.0);
                let thresholds = calibrations.thresholds(at, shift);
                calibrations.at(at).observe(score, score >= thresholds.base);
                large += u32::from(score >= thresholds.effective);
            }
            f64::from(large) / 2000.0
        };
        for (shift, share) in [(0.0, 0.3), (0.1, 0.2), (0.0, 0.3), (-0.1, 0.4), (0.0, 0.3)] {
            let delivered = deliver(shift);
            assert!(
                (delivered - share).abs() <= 0.02,
                "{delivered} under {shift}"
            );
        }
    }

    /// Load may raise a quality, not lower it, and does not move what follows it anyway.
    #[test]
    fn promises_of_quality_and_latency_are_not_spilled() {
        for (target, spills, takes) in [
            ("threshold:0.4", true, true),
            ("share:60%", true, true),
            ("quality:99%", false, true),
            ("latency:2s", false, false),
        ] {
            let mut calibrations =
                Calibrations::new(&config(&[("target", target), ("threshold", "0.4")]));
            let at = calibrations.scope("default", &[]);
            (0..200).for_each(|score| calibrations.at(at).remember(f64::from(score) / 200.0));
            let (away, there) = (
                calibrations.thresholds(at, 0.1),
                calibrations.thresholds(at, -0.1),
            );
            assert_eq!(away.effective > away.base, spills, "{target}: {away:?}");
            assert_eq!(there.effective < there.base, takes, "{target}: {there:?}");
        }
    }

    #[test]
    fn a_quality_without_pairs_falls_back_to_the_fixed_threshold() {
        let mut calibrations =
            Calibrations::new(&config(&[("target", "quality:99%"), ("threshold", "0.7")]));
        let at = calibrations.scope("default", &[]);
        calibrations.observe_pairs(&[]);
        assert_eq!(calibrations.at(at).thresholds(0.0).base, 0.7);
        let pairs = pairs_of("default", 600, 400);
        for known in &pairs {
            calibrations.at(at).observe(known.pair.score, false);
        }
        calibrations.observe_pairs(&pairs);
        let base = calibrations.at(at).thresholds(0.0).base;
        assert!((0.4..0.68).contains(&base), "{base}");
    }

    /// Pairs of a tenant with evenly spread scores, of which small had the first `right` right.
    fn pairs_of(tenant: &str, count: u32, right: u32) -> Vec<KnownPair> {
        let known = |at: u32| KnownPair {
            tenant: tenant.to_owned(),
            tags: Vec::new(),
            pair: Pair {
                score: f64::from(at) / f64::from(count),
                small: f64::from(u8::from(at < right)),
                large: 1.0,
            },
        };
        (0..count).map(known).collect()
    }

    /// A tenant's quality is told by its own jobs as soon as there are enough of them.
    #[test]
    fn a_quality_is_told_by_the_pairs_of_its_scope() {
        let mut calibrations = Calibrations::new(&config(&[
            ("target", "quality:95%"),
            ("targets", "tenant:acme=quality:95%"),
        ]));
        let mut bases = |pairs: &[KnownPair]| {
            calibrations.observe_pairs(pairs);
            ["acme", "other"].map(|tenant| {
                let at = calibrations.scope(tenant, &[]);
                calibrations.thresholds(at, 0.0).base
            })
        };
        let others = pairs_of("other", 600, 400);
        let few = pairs_of("acme", isotonic::PAIRS_MIN as u32 - 1, 20);
        let [acme, other] = bases(&[&others[..], &few].concat());
        assert!(acme > 0.4 && other > acme, "{acme} {other}");
        let [acme, other] = bases(&[&others[..], &pairs_of("acme", 600, 120)].concat());
        assert!((0.1..0.3).contains(&acme) && other > 0.6, "{acme} {other}");
    }
}
