//! Labelled prompts as lines of JSON, and their weights.
//!
//! A row whose labels were collected with a known probability weighs one over it (Horvitz and Thompson,
//! 1952), so that a fit to such rows estimates the fit to all. [`level`] then scales a source's weights
//! to a mean of one, so that penalties do not depend on the probabilities.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{features::Features, sample::Sample};

/// Why a line is not a sample. The message is one line and quotes no prompt.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// It is not an object with the required fields.
    #[error(
        "line {line}: expected an object with a string prompt and numbers weak_score and strong_score: {what}"
    )]
    Malformed {
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// A score is not a number from 0 to 1.
    #[error("line {line}: {field} must be a number from 0 to 1, found {found}")]
    Score {
        /// The line, from 1.
        line: usize,
        /// The field.
        field: &'static str,
        /// The value found.
        found: String,
    },
    /// The propensity is not a probability.
    #[error("line {line}: propensity must be a number above 0 and up to 1, found {found}")]
    Propensity {
        /// The line, from 1.
        line: usize,
        /// The value found.
        found: String,
    },
}

/// Smaller propensities count as this one, so that a few rows of great weight do not dominate. It costs
/// some bias where exploration is rarer.
pub const PROPENSITY_MIN: f64 = 0.01;

/// Reads a sample from a line: `prompt`, `weak_score`, `strong_score`, and optionally `set`, `domain`,
/// `tags` and `propensity`, the probability with which its labels were collected (default 1).
///
/// # Errors
/// When the line is malformed, a score is not from 0 to 1, or the propensity is not a probability.
pub fn read(line: usize, text: &str) -> Result<Sample, SampleError> {
    let malformed = |what: String| SampleError::Malformed { line, what };
    let row = parse(text).ok_or_else(|| malformed("it is not valid JSON".to_owned()))?;
    let Value::Object(row) = row else {
        return Err(malformed(format!("it is {}", short(&row))));
    };
    let text_of = |field: &str, default: Option<&str>| match (row.get(field), default) {
        (Some(Value::String(text)), _) => Ok(text.clone()),
        (None, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(malformed(format!("{field} is missing"))),
        (Some(other), _) => Err(malformed(format!(
            "{field} must be a string, found {}",
            short(other)
        ))),
    };
    let prompt = text_of("prompt", None)?;
    let score = |field| match row.get(field) {
        None => Err(malformed(format!("{field} is missing"))),
        Some(value) => value
            .as_f64()
            .filter(|score| (0.0..=1.0).contains(score))
            .ok_or_else(|| SampleError::Score {
                line,
                field,
                found: short(value),
            }),
    };
    let propensity = match row.get("propensity") {
        None | Some(Value::Null) => 1.0,
        Some(value) => value
            .as_f64()
            .filter(|chance| *chance > 0.0 && *chance <= 1.0)
            .ok_or_else(|| SampleError::Propensity {
                line,
                found: short(value),
            })?,
    };
    let tags = tags(&row).ok_or_else(|| malformed("tags must be a list of strings".to_owned()))?;
    let hash = blake3::hash(prompt.as_bytes());
    Ok(Sample {
        features: Features::of_text(&prompt).with_tags(tags),
        weak: score("weak_score")?,
        strong: score("strong_score")?,
        set: text_of("set", Some("all"))?,
        domain: text_of("domain", Some("all"))?,
        group: hash
            .as_bytes()
            .first_chunk()
            .map_or(0, |bytes| u64::from_le_bytes(*bytes)),
        weight: 1.0 / propensity.max(PROPENSITY_MIN),
    })
}

/// The tags of a row, if any; `None` when they are not a list of strings.
fn tags(row: &Map<String, Value>) -> Option<Vec<&str>> {
    match row.get("tags") {
        None => Some(Vec::new()),
        Some(tags) => tags.as_array()?.iter().map(Value::as_str).collect(),
    }
}

/// Reads JSON, and the `NaN` and `Infinity` that Python writes: they become strings, so that the error
/// can name their field.
fn parse(text: &str) -> Option<Value> {
    if let Ok(value) = serde_json::from_str(text) {
        return Some(value);
    }
    let mut quoted = String::with_capacity(text.len() + 8);
    let (mut rest, mut is_string) = (text, false);
    while let Some(next) = rest.chars().next() {
        let bare = ["NaN", "-Infinity", "Infinity"];
        let bare = bare
            .iter()
            .find(|word| !is_string && rest.starts_with(**word))
            .copied();
        let taken = match bare {
            Some(word) => word.len(),
            // An escaped quote does not end a string.
            None if is_string && next == '\\' => {
                1 + rest[1..].chars().next().map_or(0, char::len_utf8)
            }
            None => next.len_utf8(),
        };
        is_string ^= next == '"';
        let (part, after) = rest.split_at(taken);
        match bare {
            Some(word) => quoted.extend(["\"", word, "\""]),
            None => quoted.push_str(part),
        }
        rest = after;
    }
    serde_json::from_str(&quoted).ok()
}

/// A value for error messages: numbers and single words in full, only the type of others, which may be
/// prompts.
fn short(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) if text.len() <= 12 && !text.contains(' ') => value.to_string(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// Scales the weights of one source's samples to a mean of one, so that a database's sampled rows do not
/// outweigh those of another source.
pub fn level(samples: &mut [Sample]) {
    let sum: f64 = samples.iter().map(|sample| sample.weight).sum();
    let mean = sum / samples.len() as f64;
    for sample in samples {
        sample.weight /= mean;
    }
}

/// The effective sample size: as many samples of equal weight give the same precision (Kish, 1965).
pub fn effective(samples: &[Sample]) -> f64 {
    let sum = |of: fn(f64) -> f64| -> f64 { samples.iter().map(|one| of(one.weight)).sum() };
    sum(|weight| weight).powi(2) / sum(|weight| weight * weight)
}

/// The positions of samples, grouped by name.
pub fn by(samples: &[&Sample], name: impl Fn(&Sample) -> String) -> BTreeMap<String, Vec<usize>> {
    let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (at, sample) in samples.iter().enumerate() {
        groups.entry(name(sample)).or_default().push(at);
    }
    groups
}

#[cfg(test)]
mod tests {
    use crate::scoring::samples::*;
    use crate::scoring::{
        cross_validation::score_samples,
        evaluate::{RankingReport, evaluate},
        random::Random,
        train::{Recipe, train},
        trees::Growth,
    };

    #[test]
    fn errors_name_the_line_and_the_field_and_quote_no_prompt() {
        let good = r#"{"prompt": "secret", "weak_score": 0, "strong_score": 1}"#;
        let sample = read(1, good).expect("valid");
        assert_eq!(
            (sample.weak, sample.strong, sample.set.as_str()),
            (0.0, 1.0, "all")
        );
        for (bad, expected) in [
            ("{", "line 7: expected an object"),
            (
                r#"{"prompt": "secret", "weak_score": 0}"#,
                "strong_score is missing",
            ),
            (
                r#"{"prompt": "secret", "weak_score": NaN, "strong_score": 1}"#,
                "line 7: weak_score",
            ),
            (
                r#"{"prompt": "secret", "weak_score": 0, "strong_score": 1.5}"#,
                "strong_score must be",
            ),
            (
                r#"{"prompt": "secret", "weak_score": 0, "strong_score": 1, "propensity": 0}"#,
                "line 7: propensity must be a number above 0 and up to 1, found 0",
            ),
            (
                r#"{"prompt": "secret", "weak_score": 0, "strong_score": 1, "propensity": "0.5"}"#,
                "found \"0.5\"",
            ),
            (r#""a secret prompt""#, "it is a string"),
            (r#"["secret"]"#, "it is a list"),
            (
                r#"{"prompt": ["secret"], "weak_score": 0, "strong_score": 1}"#,
                "prompt must be a string, found a list",
            ),
            (
                r#"{"prompt": "secret", "weak_score":-Infinity, "strong_score": 1}"#,
                "weak_score must be a number from 0 to 1, found \"-Infinity\"",
            ),
            (
                r#"{"prompt": "secret", "weak_score": "a secret prompt", "strong_score": 1}"#,
                "weak_score must be a number from 0 to 1, found a string",
            ),
            (
                r#"{"prompt": "secret", "weak_score": 0, "strong_score": 1, "tags": "secret"}"#,
                "tags must be a list",
            ),
        ] {
            let message = read(7, bad).expect_err(bad).to_string();
            assert!(message.contains(expected), "{message}");
            assert!(
                !message.contains("secret") && !message.contains('\n'),
                "{message}"
            );
        }
    }

    #[test]
    fn a_prompt_may_contain_nan() {
        let line =
            r#"{"prompt": "why: NaN, \"x\": Infinity?", "weak_score": 0, "strong_score": 1}"#;
        let plain = Features::of_text("why: NaN, \"x\": Infinity?");
        assert_eq!(read(1, line).expect("valid").features.grams, plain.grams);
        let bad = line.replace("\"weak_score\": 0", "\"weak_score\": NaN");
        let message = read(1, &bad).expect_err("no number").to_string();
        assert!(
            message.contains("weak_score must be") && message.contains("NaN"),
            "{message}"
        );
    }

    #[test]
    fn rarer_labels_weigh_more_up_to_a_bound() {
        let row = |propensity: &str| {
            let line = format!(
                r#"{{"prompt": "p", "weak_score": 0, "strong_score": 1, "propensity": {propensity}}}"#
            );
            read(1, &line).expect("valid")
        };
        let mut samples = ["1", "null", "0.5", "0.02", "0.0001"].map(row);
        let weights = samples.each_ref().map(|sample| sample.weight);
        assert_eq!(weights, [1.0, 1.0, 2.0, 50.0, 100.0]);
        level(&mut samples);
        let mean = samples.iter().map(|sample| sample.weight).sum::<f64>() / 5.0;
        assert!((mean - 1.0).abs() < 1e-12);
        assert!((samples[2].weight / samples[0].weight - 2.0).abs() < 1e-12);
        assert!((effective(&samples) - 154.0 * 154.0 / 12_506.0).abs() < 1e-9);
        assert_eq!(effective(&samples[..2]), 2.0);
    }

    /// A prompt's first word, how often small fails on it, and the probability that the router sends it to
    /// small.
    const KINDS: [(&str, f64, f64); 3] = [
        ("multiply", 0.6, 0.5),
        ("describe", 0.35, 1.0),
        ("name", 0.1, 1.0),
    ];

    /// Jobs with both answers, and the probability that their labels are collected: that of going to
    /// small, times that of being copied unless the answer has low confidence.
    fn fleet(random: &mut Random) -> Vec<(Sample, f64)> {
        let words = ["apple", "river", "stone", "cloud", "train", "paper"];
        let job = |at: usize, random: &mut Random| {
            let (kind, fails, to_small) = KINDS[at % KINDS.len()];
            let is_wrong = random.unit() < fails;
            let is_doubted = random.unit() < if is_wrong { 0.8 } else { 0.1 };
            let mut word = || words[(random.unit() * words.len() as f64) as usize];
            let line = serde_json::json!({
                "prompt": format!("{kind} the {} {} {} {}", word(), word(), word(), word()),
                "weak_score": u8::from(!is_wrong), "strong_score": 1,
            });
            let chance = to_small * if is_doubted { 1.0 } else { 0.2 };
            (read(1, &line.to_string()).expect("valid"), chance)
        };
        (0..6_000).map(|at| job(at, random)).collect()
    }

    /// The expected gain of each kind after training on samples, and the evaluation.
    fn learned(samples: &[Sample]) -> ([f64; 3], RankingReport) {
        let growth = Growth {
            trees: 10,
            rate: 0.1,
            leaves: 4,
            leaf_rows_min: 20,
            feature_share: 0.5,
            row_share: 0.8,
            penalty: 2.0,
        };
        let recipe = Recipe {
            cells: 1 << 14,
            growth,
            fails_growth: growth,
            words_share: 1.0,
            trees_share: 0.0,
            ..Recipe::default()
        };
        let all: Vec<&Sample> = samples.iter().collect();
        let weights = train(&all, &recipe).expect("sound");
        let gain = |kind: &str| {
            let texts = ["apple river cloud stone", "paper train stone apple"];
            let of = |text| Features::of_text(&format!("{kind} the {text}"));
            texts
                .map(|text| weights.parts(&of(text)).gain())
                .iter()
                .sum::<f64>()
                / 2.0
        };
        let report = evaluate(&score_samples(&weights, &all)).expect("a gap");
        (KINDS.map(|(kind, ..)| gain(kind)), report)
    }

    /// Training on rows sampled with unequal probabilities gives the gains of all jobs, and does not
    /// without their weights.
    #[test]
    fn weighted_rows_train_as_complete_data_does() {
        let mut random = Random::new(21);
        let jobs = fleet(&mut random);
        let complete: Vec<Sample> = jobs
            .iter()
            .map(|(sample, _)| Sample {
                weight: 1.0,
                ..sample.clone()
            })
            .collect();
        let mut collected: Vec<Sample> = jobs
            .into_iter()
            .filter(|(_, chance)| random.unit() < *chance)
            .map(|(sample, chance)| Sample {
                weight: 1.0 / chance,
                ..sample
            })
            .collect();
        level(&mut collected);
        let mut unweighted = collected.clone();
        unweighted.iter_mut().for_each(|sample| sample.weight = 1.0);
        let [
            (truth, whole),
            (weighted, weighted_report),
            (naive, naive_report),
        ] = [&complete, &collected, &unweighted].map(|samples| learned(samples));
        let off = |gains: &[f64; 3]| -> f64 {
            let pairs = gains.iter().zip(&truth);
            pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
        };
        assert!(off(&weighted) < 0.1, "{weighted:?} {truth:?}");
        assert!(off(&naive) > 0.15, "{naive:?} {truth:?}");
        // Points, but for the area under the curve.
        let apart = |a: &RankingReport| {
            [
                a.weak - whole.weak,
                100.0 * (a.auc_small_fails - whole.auc_small_fails),
            ]
        };
        assert!(
            apart(&weighted_report).iter().all(|off| off.abs() < 4.0),
            "{weighted_report:?} {whole:?}"
        );
        assert!(
            apart(&naive_report)[0].abs() > 12.0,
            "{naive_report:?} {whole:?}"
        );
    }
}
