//! Routing targets: a share, a quality, a latency, or a fixed threshold.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use toml::de::DeValue;

use crate::job::{Options, Tenant};

use super::setting::{RawValue, Setting};

/// Longest latency target.
const LATENCY_MAX: Duration = Duration::from_secs(24 * 3600);

/// The target by which jobs are routed whose producers leave the choice to the router.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum RouteTarget {
    /// The score `router.threshold`.
    #[default]
    Threshold,
    /// A score.
    ThresholdOf(f64),
    /// The share of the jobs that goes to the large model, 0 to 1.
    Share(f64),
    /// The least share of the large model's quality, 0 to 1.
    Quality(f64),
    /// The latency of the large model: it gets as many jobs as it can answer within this time.
    Latency(Duration),
}

impl fmt::Display for RouteTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rounded, since 0.07 · 100 is not quite 7.
        let percent = |part: f64| (part * 1e8).round() / 1e6;
        match self {
            Self::Threshold => f.write_str("threshold"),
            Self::ThresholdOf(score) => write!(f, "threshold:{score}"),
            Self::Share(share) => write!(f, "share:{}%", percent(*share)),
            Self::Quality(quality) => write!(f, "quality:{}%", percent(*quality)),
            Self::Latency(latency) => write!(f, "latency:{}ms", latency.as_millis()),
        }
    }
}

impl FromStr for RouteTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text == "threshold" {
            return Ok(Self::Threshold);
        }
        let parsed = text.split_once(':').and_then(|(kind, value)| match kind {
            "threshold" => part(value).map(Self::ThresholdOf),
            "share" => part(value).map(Self::Share),
            "quality" => part(value).map(Self::Quality),
            "latency" => span(value).map(Self::Latency),
            _ => None,
        });
        parsed.ok_or_else(|| format!("expected {EXPECTED}"))
    }
}

/// The syntax of a target.
pub(super) const EXPECTED: &str =
    "threshold, threshold:0.4, share:30%, quality:99% or latency:2s (ms or s)";

/// A share: `30%` or `0.3`.
fn part(text: &str) -> Option<f64> {
    let (number, whole) = match text.strip_suffix('%') {
        Some(number) => (number, 100.0),
        None => (text, 1.0),
    };
    let part = number.trim().parse::<f64>().ok()? / whole;
    (0.0..=1.0).contains(&part).then_some(part)
}

/// A duration: `800ms` or `2.5s`.
fn span(text: &str) -> Option<Duration> {
    let (number, unit_s) = match text.strip_suffix("ms") {
        Some(number) => (number, 0.001),
        None => (text.strip_suffix('s')?, 1.0),
    };
    let seconds = number.trim().parse::<f64>().ok()? * unit_s;
    (0.001..=LATENCY_MAX.as_secs_f64())
        .contains(&seconds)
        .then(|| Duration::from_secs_f64(seconds))
}

impl Setting for RouteTarget {
    fn read(raw: &RawValue<'_>) -> Option<Self> {
        String::read(raw)?.parse().ok()
    }

    fn show(&self) -> Option<String> {
        self.to_string().show()
    }
}

/// The jobs to which a target applies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TargetScope {
    /// Jobs without a more specific target.
    All,
    /// Jobs of a tenant.
    Tenant(String),
    /// Jobs with a tag.
    Tag(String),
}

impl fmt::Display for TargetScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Tenant(name) => write!(f, "tenant:{name}"),
            Self::Tag(name) => write!(f, "tag:{name}"),
        }
    }
}

impl FromStr for TargetScope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        match text.split_once(':') {
            None if text == "all" => Ok(Self::All),
            Some(("tenant", name)) if !name.is_empty() => Ok(Self::Tenant(name.to_owned())),
            Some(("tag", name)) if !name.is_empty() => Ok(Self::Tag(name.to_owned())),
            _ => Err("expected all, tenant:NAME or tag:NAME".to_owned()),
        }
    }
}

impl TargetScope {
    /// Checks that jobs can have the name.
    ///
    /// # Errors
    /// The syntax of a name.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::All => Ok(()),
            Self::Tenant(name) => name.parse::<Tenant>().map(drop),
            Self::Tag(name) if Options::is_tag(name) => Ok(()),
            Self::Tag(_) => Err(format!(
                "a tag is 1 to {} characters of A-Z a-z 0-9 . _ - : /",
                Options::TAG_BYTES_MAX
            )),
        }
    }
}

/// Targets of tenants and tags: `{"tenant:acme" = "share:10%", "tag:draft" = "share:5%"}`, or in a
/// variable or a flag `tenant:acme=share:10%,tag:draft=share:5%`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteTargets(BTreeMap<TargetScope, RouteTarget>);

impl RouteTargets {
    /// Most entries of `router.targets`, and most stored in the database.
    pub const ENTRIES_MAX: usize = 256;

    /// Targets by scope, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (&TargetScope, RouteTarget)> {
        self.0.iter().map(|(scope, target)| (scope, *target))
    }

    fn collect<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Option<Self> {
        let targets: BTreeMap<_, _> = pairs
            .map(|(scope, target)| Some((scope.parse().ok()?, target.parse().ok()?)))
            .collect::<Option<_>>()?;
        // The fleet's target is `router.target`.
        let is_scoped = !targets.contains_key(&TargetScope::All);
        (is_scoped && targets.len() <= Self::ENTRIES_MAX).then_some(Self(targets))
    }
}

impl Setting for RouteTargets {
    fn read(raw: &RawValue<'_>) -> Option<Self> {
        match raw {
            RawValue::Toml(DeValue::Table(table)) => {
                let pairs: Option<Vec<_>> = table
                    .iter()
                    .map(|(scope, target)| match target.get_ref() {
                        DeValue::String(target) => {
                            Some((scope.get_ref().as_ref(), target.as_ref()))
                        }
                        _ => None,
                    })
                    .collect();
                Self::collect(pairs?.into_iter())
            }
            RawValue::Toml(_) => None,
            RawValue::Text(text) => {
                let pairs: Option<Vec<_>> = text
                    .split(',')
                    .filter(|pair| !pair.trim().is_empty())
                    .map(|pair| pair.split_once('='))
                    .collect();
                Self::collect(pairs?.into_iter())
            }
        }
    }

    fn show(&self) -> Option<String> {
        // An inline table escapes line breaks in names.
        let target = |target: RouteTarget| toml::Value::String(target.to_string());
        let table: toml::Table = self
            .iter()
            .map(|(scope, of)| (scope.to_string(), target(of)))
            .collect();
        Some(toml::Value::Table(table).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_round_trip() {
        for (text, target) in [
            ("threshold", RouteTarget::Threshold),
            ("threshold:0.4", RouteTarget::ThresholdOf(0.4)),
            ("share:30%", RouteTarget::Share(0.3)),
            ("share:0.07", RouteTarget::Share(0.07)),
            ("quality:99.5%", RouteTarget::Quality(0.995)),
            (
                "latency:2.5s",
                RouteTarget::Latency(Duration::from_millis(2500)),
            ),
            (
                "latency:800ms",
                RouteTarget::Latency(Duration::from_millis(800)),
            ),
        ] {
            assert_eq!(text.parse(), Ok(target), "{text}");
            assert_eq!(target.to_string().parse(), Ok(target), "{target}");
        }
        assert_eq!(RouteTarget::Share(0.07).to_string(), "share:7%");
    }

    #[test]
    fn targets_with_any_name_round_trip() {
        let names = ["a", "a\nb", "\"", "'''\"\"\"\n", "\\", "\u{7f}"];
        let pairs: Vec<_> = names.iter().map(|name| format!("tag:{name}")).collect();
        let targets = RouteTargets::collect(pairs.iter().map(|pair| (pair.as_str(), "share:7%")));
        let targets = targets.expect("targets");
        let shown = format!("targets = {}", targets.show().expect("set"));
        let table = toml::de::DeTable::parse(&shown).expect("TOML");
        let read = RouteTargets::read(&RawValue::Toml(table.get_ref()["targets"].get_ref()));
        assert_eq!(read, Some(targets), "{shown}");
    }

    #[test]
    fn scopes_round_trip_and_are_checked() {
        for text in ["all", "tenant:acme", "tag:a:b/c"] {
            let scope: TargetScope = text.parse().expect("a scope");
            assert_eq!((scope.to_string().as_str(), scope.check()), (text, Ok(())));
        }
        for text in ["tenant:a b", "tag:a b", "tag:é"] {
            let scope: TargetScope = text.parse().expect("a scope");
            assert!(scope.check().is_err(), "{text}");
        }
        for text in ["", "acme", "tag", "tag:", "all:x"] {
            assert!(text.parse::<TargetScope>().is_err(), "{text}");
        }
    }

    #[test]
    fn invalid_targets_are_rejected() {
        for text in [
            "",
            "share",
            "share:",
            "share:130%",
            "share:-1%",
            "share:NaN",
            "quality:x",
            "latency:2",
            "latency:0s",
            "latency:infs",
            "cost:3",
        ] {
            assert!(text.parse::<RouteTarget>().is_err(), "{text}");
        }
        for text in [
            "acme=share:1%",
            "all=share:1%",
            "tenant:=share:1%",
            "tag:a",
            "tag:a=share:200%",
        ] {
            assert_eq!(RouteTargets::read(&RawValue::Text(text)), None, "{text}");
        }
    }
}
