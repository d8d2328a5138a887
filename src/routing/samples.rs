//! Labelled prompts as lines of JSON.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{features::Features, train::Sample};

/// Why a line is no sample. The message is one line and quotes no prompt.
#[derive(Debug, thiserror::Error)]
pub enum SampleFault {
    /// It is no object with the fields wanted.
    #[error(
        "line {line}: expected an object with a string prompt and numbers weak_score and strong_score: {what}"
    )]
    Malformed {
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        what: String,
    },
    /// A score lies outside 0 to 1, or is no number at all.
    #[error("line {line}: {field} must be a number from 0 to 1, found {found}")]
    Score {
        /// The line, from 1.
        line: usize,
        /// The field.
        field: &'static str,
        /// What came.
        found: String,
    },
}

#[derive(Deserialize)]
struct Row {
    prompt: String,
    weak_score: Value,
    strong_score: Value,
    #[serde(default = "default_name")]
    set: String,
    #[serde(default = "default_name")]
    domain: String,
    #[serde(default)]
    tags: Vec<String>,
}

fn default_name() -> String {
    "all".to_owned()
}

/// Reads a sample of a line: `prompt`, `weak_score`, `strong_score`, and if it has them `set`,
/// `domain` and `tags`.
///
/// # Errors
/// When the line is malformed or a score lies outside 0 to 1.
pub fn read(line: usize, text: &str) -> Result<Sample, SampleFault> {
    // JSON has no NaN, but Python's writer does.
    let text = text.replace(": NaN", ": \"NaN\"");
    let row: Row = serde_json::from_str(&text).map_err(|fault| SampleFault::Malformed {
        line,
        what: match fault.classify() {
            serde_json::error::Category::Data => fault.to_string(),
            _ => "not valid JSON".to_owned(),
        },
    })?;
    let score = |field, value: &Value| {
        value
            .as_f64()
            .filter(|score| (0.0..=1.0).contains(score))
            .ok_or_else(|| SampleFault::Score {
                line,
                field,
                found: value.to_string().chars().take(40).collect(),
            })
    };
    let tags = row.tags.iter().map(String::as_str);
    let hash = blake3::hash(row.prompt.as_bytes());
    Ok(Sample {
        features: Features::of_text(&row.prompt).with_tags(tags),
        weak: score("weak_score", &row.weak_score)?,
        strong: score("strong_score", &row.strong_score)?,
        set: row.set,
        domain: row.domain,
        group: hash
            .as_bytes()
            .first_chunk()
            .map_or(0, |bytes| u64::from_le_bytes(*bytes)),
        weight: 1.0,
    })
}

/// The places of samples in groups of one name, by name.
pub fn by(samples: &[&Sample], name: impl Fn(&Sample) -> String) -> BTreeMap<String, Vec<usize>> {
    let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (at, sample) in samples.iter().enumerate() {
        groups.entry(name(sample)).or_default().push(at);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_line_and_the_field_and_quotes_no_prompt() {
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
                "missing field `strong_score`",
            ),
            (
                r#"{"prompt": "secret", "weak_score": NaN, "strong_score": 1}"#,
                "line 7: weak_score",
            ),
            (
                r#"{"prompt": "secret", "weak_score": 0, "strong_score": 1.5}"#,
                "strong_score must be",
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
}
