//! Routing targets: one calibration for the fleet, and one for each tenant or tag with its own target.

pub mod calibration;
pub mod isotonic;
pub mod load;
pub mod quantile;

use std::collections::BTreeMap;

use crate::{
    config::{RouteTarget, RouterConfig, TargetScope},
    store::{PastDecision, ScopedTarget},
};

use self::{
    calibration::{Calibration, Thresholds},
    isotonic::Observation,
    load::TierLoad,
};

/// An observation with the job's tenant and tags.
#[derive(Clone, Debug)]
pub struct ScopedObservation {
    /// Whose job it was.
    pub tenant: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// Both tiers' outcomes.
    pub observation: Observation,
}

/// Targets by scope.
pub type Targets = BTreeMap<TargetScope, RouteTarget>;

/// The effective targets: those in the database override the configuration's.
pub fn in_force(config: &RouterConfig, stored: &[ScopedTarget]) -> Targets {
    let configured = config
        .targets
        .iter()
        .map(|(scope, target)| (scope.clone(), target));
    let set = stored.iter().map(|one| (one.scope.clone(), one.target));
    std::iter::once((TargetScope::All, config.target))
        .chain(configured)
        .chain(set)
        .collect()
}

/// The calibrations of a router.
#[derive(Clone, Debug)]
pub struct Calibrations {
    /// Sorted by scope, the fleet's first.
    scoped: Vec<(TargetScope, Calibration)>,
    fallback: f64,
}

/// The index of a job's calibration, valid until the targets change.
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

    /// Forgets everything learned, except the targets.
    pub fn forget(&mut self) {
        for (_, calibration) in &mut self.scoped {
            *calibration = Calibration::new(calibration.target(), self.fallback);
        }
    }

    /// Replaces the targets. Remaining scopes keep their traffic windows. Returns what changed, with
    /// `None` for a scope without a target of its own any more.
    pub fn retarget(&mut self, mut targets: Targets) -> Vec<(TargetScope, Option<RouteTarget>)> {
        let mut changed = Vec::new();
        self.scoped.retain_mut(|(scope, calibration)| {
            let Some(target) = targets.remove(scope) else {
                changed.push((scope.clone(), None));
                return false;
            };
            if target != calibration.target() {
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

    /// Fills empty traffic windows with decisions of an earlier run, oldest first.
    pub fn remember(&mut self, past: &[PastDecision]) {
        let is_unknown: Vec<bool> = self
            .each()
            .map(|calibration| calibration.is_new())
            .collect();
        for decision in past {
            let at = self.scope(&decision.tenant, &decision.tags);
            if is_unknown[at.0] {
                self.at(at).remember(decision.score);
            }
        }
    }

    /// The targets by scope.
    pub fn targets(&self) -> impl Iterator<Item = (TargetScope, RouteTarget)> + '_ {
        self.scoped
            .iter()
            .map(|(scope, calibration)| (scope.clone(), calibration.target()))
    }

    /// The scope of a job: that of its first tag with a target, its tenant's, or the fleet's.
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

    /// The thresholds of a scope under a load shift.
    pub fn thresholds(&self, at: ScopeAt, shift: f64) -> Thresholds {
        self.scoped[at.0].1.thresholds(shift)
    }

    /// A scope's name and target, as stored in the database.
    pub fn names(&self, at: ScopeAt) -> (String, String) {
        let (scope, calibration) = &self.scoped[at.0];
        (scope.to_string(), calibration.target().to_string())
    }

    fn each(&mut self) -> impl Iterator<Item = &mut Calibration> {
        self.scoped.iter_mut().map(|(_, calibration)| calibration)
    }

    fn any(&self, is_so: impl Fn(RouteTarget) -> bool) -> bool {
        self.scoped
            .iter()
            .any(|(_, calibration)| is_so(calibration.target()))
    }

    /// True when a target is a quality.
    pub fn want_pairs(&self) -> bool {
        self.any(|target| matches!(target, RouteTarget::Quality(_)))
    }

    /// True when a target is a latency.
    pub fn want_load(&self) -> bool {
        self.any(|target| matches!(target, RouteTarget::Latency(_)))
    }

    /// Records the present load of large.
    pub fn observe_load(&mut self, large: TierLoad) {
        self.each()
            .for_each(|calibration| calibration.observe_load(large));
    }

    /// Replaces the known observations: see [`Calibration::observe_pairs`].
    pub fn observe_pairs(&mut self, observations: &[ScopedObservation]) {
        let mut own: Vec<Vec<Observation>> = vec![Vec::new(); self.scoped.len()];
        for known in observations {
            own[self.scope(&known.tenant, &known.tags).0].push(known.observation);
        }
        let all: Vec<Observation> = observations.iter().map(|known| known.observation).collect();
        for (calibration, own) in self.each().zip(own) {
            calibration.observe_pairs(&own, &all);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::router::target::*;
    use crate::{
        config::{Config, Overrides},
        router::target::isotonic,
    };

    fn config(settings: &[(&str, &str)]) -> RouterConfig {
        let mut overrides = Overrides::default();
        for (field, value) in settings {
            overrides.set("--set", &format!("router.{field}"), *value);
        }
        Config::load(None, [], &overrides).expect("valid").router
    }

    #[test]
    fn a_tag_overrides_the_tenant_and_both_override_the_fleet() {
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

    #[test]
    fn a_change_of_targets_keeps_the_windows() {
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
        let targets = |pairs: &[(&str, &str)]| -> Targets {
            let parsed = |(scope, target): &(&str, &str)| {
                (
                    scope.parse().expect("scope"),
                    target.parse().expect("target"),
                )
            };
            pairs.iter().map(parsed).collect()
        };
        let next = targets(&[
            ("all", "share:30%"),
            ("tag:draft", "share:50%"),
            ("tenant:acme", "share:0%"),
        ]);
        let changed = calibrations.retarget(next.clone());
        let names: Vec<String> = changed.iter().map(|(scope, _)| scope.to_string()).collect();
        assert_eq!(names, ["tag:draft", "tenant:acme"]);
        assert!((base(&calibrations, &draft) - 0.5).abs() < 0.01);
        assert!(base(&calibrations, &[]) > 1.0, "the tenant's own applies");
        assert_eq!(calibrations.retarget(next), []);
        let changed = calibrations.retarget(targets(&[("all", "latency:2s")]));
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
            "it starts from the earlier share: {found}"
        );
        calibrations.forget();
        assert_eq!(base(&calibrations, &[]), 0.5, "nothing is known");
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
            calibrations.at(at).observe(known.observation.score, false);
        }
        calibrations.observe_pairs(&pairs);
        let base = calibrations.at(at).thresholds(0.0).base;
        assert!((0.4..0.68).contains(&base), "{base}");
    }

    /// Observations with evenly spread scores, of which small has the first `right` right.
    fn pairs_of(tenant: &str, count: u32, right: u32) -> Vec<ScopedObservation> {
        let known = |at: u32| ScopedObservation {
            tenant: tenant.to_owned(),
            tags: Vec::new(),
            observation: Observation {
                score: f64::from(at) / f64::from(count),
                small: f64::from(u8::from(at < right)),
                large: 1.0,
            },
        };
        (0..count).map(known).collect()
    }

    #[test]
    fn a_quality_uses_its_own_scope_once_that_has_enough_observations() {
        let mut calibrations = Calibrations::new(&config(&[
            ("target", "quality:95%"),
            ("targets", "tenant:acme=quality:95%"),
        ]));
        let mut bases = |pairs: &[ScopedObservation]| {
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
