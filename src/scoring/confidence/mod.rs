//! The probability that the small model's answer is right, from its tokens' log-probabilities.
//!
//! Comes in: an answer's [`Signals`]. Goes out: a calibrated probability, and the threshold below which
//! the answer is escalated. Weights are fitted for one model ([`fit`]) and do not transfer: a model
//! without its own gets [`Confidence::generic`], a rough rule on the mean log-probability. The router's
//! score is no feature: retraining the router would invalidate the calibration.

pub mod fit;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::job::Signals;

/// Changes whenever a feature does.
const FORMAT: u32 = 1;
/// How many features there are.
pub const FEATURES: usize = 10;
/// Their names, in order. Logarithms separate values near certainty, where most answers are.
pub const FEATURE_NAMES: [&str; FEATURES] = [
    "ln_mean_surprise",
    "ln_max_surprise",
    "ln_p90_surprise",
    "ln_median_surprise",
    "ln_first_surprise",
    "ln_tokens",
    "truncated",
    "ln_mean_entropy",
    "ln_max_entropy",
    "min_margin",
];
/// From here on the features need an engine that has whole distributions.
const DISTRIBUTION_FROM: usize = 7;
/// Added before each logarithm; smaller values are rounding errors.
const FLOOR: f64 = 1e-6;
/// Upper limit of surprises and entropies; NaN counts as this.
const MOST: f32 = 100.0;

/// The features of an answer; `None` where the engine does not provide them.
pub fn features(signals: &Signals) -> [Option<f64>; FEATURES] {
    let ln = |value: f32| {
        let value = if value.is_nan() {
            MOST
        } else {
            value.clamp(0.0, MOST)
        };
        Some((FLOOR + f64::from(value)).ln())
    };
    let spread = signals.distribution;
    [
        ln(-signals.mean_logprob),
        ln(-signals.min_logprob),
        ln(-signals.p10_logprob),
        ln(-signals.p50_logprob),
        ln(-signals.first_logprob),
        Some(f64::from(signals.tokens.max(1)).ln()),
        Some(f64::from(u8::from(signals.truncated))),
        spread.and_then(|spread| ln(spread.mean_entropy)),
        spread.and_then(|spread| ln(spread.max_entropy)),
        spread.map(|spread| match spread.min_margin {
            margin if margin.is_nan() => 0.0,
            margin => f64::from(margin.clamp(0.0, 1.0)),
        }),
    ]
}

/// Why weights cannot be used; the ones in use stay.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the confidence weights {path}: {message}")]
pub struct ConfidenceError {
    /// The file.
    pub path: String,
    /// What is wrong, and what was expected.
    pub message: String,
}

/// One feature's term in the sum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Term {
    name: String,
    /// Mean and standard deviation over the rows of the fit. Single precision round-trips exactly
    /// through JSON, which the checksum needs.
    mean: f32,
    scale: f32,
    weight: f32,
}

/// The logistic of the weighted sum; a missing feature counts as its mean.
fn logistic(terms: &[Term], bias: f32, features: &[Option<f64>; FEATURES]) -> f64 {
    let known = terms.iter().zip(features);
    let sum: f64 = known
        .filter_map(|(term, value)| {
            let distance = value.as_ref()? - f64::from(term.mean);
            Some(distance / f64::from(term.scale) * f64::from(term.weight))
        })
        .sum();
    1.0 / (1.0 + (-(sum + f64::from(bias))).exp())
}

/// The contents of a calibration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfidenceWeights {
    format: u32,
    /// The model of the labelled answers.
    model: String,
    revision: String,
    /// Labelled answers of the fit.
    rows: usize,
    /// Answers below it are escalated unless the configuration says otherwise.
    escalate_below: f32,
    bias: f32,
    terms: Vec<Term>,
}

#[derive(Serialize, Deserialize)]
struct Sealed {
    #[serde(flatten)]
    weights: ConfidenceWeights,
    checksum: String,
}

/// Estimates the probability that an answer is right.
#[derive(Clone, Debug, PartialEq)]
pub struct Confidence {
    weights: ConfidenceWeights,
}

impl Confidence {
    /// The calibration of the small model that comes with the binary.
    ///
    /// # Errors
    /// When the bundled file is damaged.
    pub fn bundled() -> Result<Self, ConfidenceError> {
        let text = include_str!("../../../models/router/confidence.json");
        Self::from_json(text).map_err(|message| ConfidenceError {
            path: "bundled with promptyard".to_owned(),
            message,
        })
    }

    /// A rough rule for a model without its own calibration, not fitted to data: a mean log-probability of
    /// -0.5 (a perplexity of 1.65) gives one half.
    pub fn generic() -> Self {
        let term = |name: &str| Term {
            name: name.to_owned(),
            mean: if name == FEATURE_NAMES[0] {
                (FLOOR + 0.5).ln() as f32
            } else {
                0.0
            },
            scale: 1.0,
            weight: if name == FEATURE_NAMES[0] { -2.0 } else { 0.0 },
        };
        Self {
            weights: ConfidenceWeights {
                format: FORMAT,
                model: String::new(),
                revision: String::new(),
                rows: 0,
                escalate_below: 0.5,
                bias: 0.0,
                terms: FEATURE_NAMES.iter().map(|name| term(name)).collect(),
            },
        }
    }

    /// Reads a calibration file.
    ///
    /// # Errors
    /// One line: the file cannot be read, is damaged, or is of another version.
    pub fn read(path: &Path) -> Result<Self, ConfidenceError> {
        let error = |message| ConfidenceError {
            path: path.display().to_string(),
            message,
        };
        let text = std::fs::read_to_string(path).map_err(|cause| error(cause.to_string()))?;
        Self::from_json(&text).map_err(error)
    }

    fn from_json(text: &str) -> Result<Self, String> {
        let sealed: Sealed =
            serde_json::from_str(text).map_err(|error| format!("it cannot be parsed: {error}"))?;
        let weights = sealed.weights;
        if weights.format != FORMAT {
            return Err(format!(
                "its format is {}, this version reads {FORMAT}; run `promptyard router calibrate` again",
                weights.format
            ));
        }
        let names: Vec<_> = weights.terms.iter().map(|term| &*term.name).collect();
        if names != FEATURE_NAMES {
            return Err(
                "its features differ from this version's; run `promptyard router calibrate` again"
                    .to_owned(),
            );
        }
        let numbers = weights
            .terms
            .iter()
            .flat_map(|term| [term.mean, term.scale, term.weight]);
        if !numbers.chain([weights.bias]).all(f32::is_finite)
            || weights.terms.iter().any(|term| term.scale <= 0.0)
            || !(0.0..=1.0).contains(&weights.escalate_below)
        {
            return Err("a number in it is out of range".to_owned());
        }
        if sealed.checksum != weights.checksum() {
            return Err("its checksum is wrong: it was changed or damaged".to_owned());
        }
        Ok(Self { weights })
    }

    /// The contents of the calibration file.
    pub fn to_json(&self) -> String {
        let sealed = Sealed {
            checksum: self.weights.checksum(),
            weights: self.weights.clone(),
        };
        serde_json::to_string_pretty(&sealed).expect("texts and finite numbers fit into JSON")
            + "\n"
    }

    /// The probability that an answer is right, 0 to 1.
    pub fn of(&self, signals: &Signals) -> f64 {
        logistic(&self.weights.terms, self.weights.bias, &features(signals))
    }

    /// Answers below this probability are escalated by default.
    pub fn escalate_below(&self) -> f64 {
        f64::from(self.weights.escalate_below)
    }

    /// The model and revision that it was fitted for; `None` for the generic one.
    pub fn fitted_for(&self) -> Option<(&str, &str)> {
        let weights = &self.weights;
        (weights.rows > 0).then_some((&*weights.model, &*weights.revision))
    }
}

impl ConfidenceWeights {
    /// BLAKE3 of the weights as compact JSON, in the order of their fields.
    fn checksum(&self) -> String {
        let json = serde_json::to_vec(self).expect("texts and finite numbers fit into JSON");
        blake3::hash(&json).to_hex().to_string()
    }
}

#[cfg(test)]
mod tests {
    use crate::job::DistributionSignals;
    use crate::scoring::confidence::*;

    pub(super) fn signals(logprob: f32) -> Signals {
        Signals {
            tokens: 5,
            mean_logprob: logprob,
            min_logprob: 2.0 * logprob,
            p10_logprob: 1.5 * logprob,
            p50_logprob: logprob,
            first_logprob: logprob,
            distribution: None,
            truncated: false,
        }
    }

    #[test]
    fn the_generic_calibration_falls_with_the_logprob() {
        let generic = Confidence::generic();
        assert!((generic.of(&signals(-0.5)) - 0.5).abs() < 1e-6);
        assert!(generic.of(&signals(-0.1)) > 0.9);
        assert!(generic.of(&signals(-2.0)) < 0.1);
        assert_eq!(generic.fitted_for(), None);
        for extreme in [-100.0, f32::NAN, f32::NEG_INFINITY] {
            assert!(generic.of(&signals(extreme)) < 0.1, "{extreme}");
        }
        for extreme in [0.0, -100.0] {
            assert!(
                (0.0..=1.0).contains(&generic.of(&signals(extreme))),
                "{extreme}"
            );
        }
    }

    #[test]
    fn the_bundled_calibration_separates_likely_and_unlikely_answers() {
        let bundled = Confidence::bundled().expect("whole");
        let with = |logprob: f32, entropy: f32, margin: f32| Signals {
            distribution: Some(DistributionSignals {
                mean_entropy: entropy,
                max_entropy: 2.0 * entropy,
                min_margin: margin,
            }),
            ..signals(logprob)
        };
        assert!(bundled.of(&with(-0.001, 0.005, 0.99)) > bundled.escalate_below());
        assert!(bundled.of(&with(-1.5, 1.5, 0.05)) < bundled.escalate_below());
        assert!(bundled.fitted_for().is_some());
    }

    #[test]
    fn a_file_round_trips_and_damage_is_rejected() {
        let json = Confidence::generic().to_json();
        assert_eq!(Confidence::from_json(&json), Ok(Confidence::generic()));
        for (from, to, expected) in [
            ("\"format\": 1", "\"format\": 2", "its format is 2"),
            ("\"weight\": -2.0", "\"weight\": -2.5", "checksum"),
            ("\"scale\": 1.0", "\"scale\": 0.0", "out of range"),
            ("\"bias\": 0.0", "\"bias\": null", "cannot be parsed"),
            ("\"bias\": 0.0", "\"bias\": 1e999", "cannot be parsed"),
            ("ln_tokens", "tokens", "features"),
            ("\"rows\"", "\"lines\"", "cannot be parsed"),
            ("{", "", "cannot be parsed"),
        ] {
            let damaged = json.replacen(from, to, 1);
            assert_ne!(damaged, json, "{from}");
            let error = Confidence::from_json(&damaged).expect_err(to);
            assert!(error.contains(expected), "{to}: {error}");
            assert_eq!(error.lines().count(), 1);
        }
        let missing = Confidence::read(Path::new("no/such/file.json")).expect_err("missing");
        assert!(missing.to_string().contains("no/such/file.json"));
    }
}
