//! Accuracy of answers in marked files, by family and by tier.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::job::JobRecord;

/// The fields of a marked line: `"expect"` and optionally `"family"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// The only right answer.
    pub answer: String,
    /// The kind of question.
    pub family: String,
}

impl Expectation {
    /// Removes the two fields from a line, leaving the request.
    ///
    /// # Errors
    /// The name of a field that is not a string.
    pub fn take(line: &mut Map<String, Value>) -> Result<Option<Self>, &'static str> {
        let family = line.shift_remove("family");
        let Some(answer) = line.shift_remove("expect") else {
            return if family.is_none() {
                Ok(None)
            } else {
                Err("expect")
            };
        };
        let Value::String(answer) = answer else {
            return Err("expect");
        };
        let family = match family {
            None => "all".to_owned(),
            Some(Value::String(family)) => family,
            Some(_) => return Err("family"),
        };
        Ok(Some(Self { answer, family }))
    }

    /// Whether an answer, or the text after its last `#`, is the expected one, ignoring surrounding
    /// space. Models that show their reasoning put `#` before the answer.
    pub fn is_met(&self, text: &str) -> bool {
        let last = text.rsplit('#').next().unwrap_or(text);
        [text, last]
            .iter()
            .any(|answer| answer.trim() == self.answer.trim())
    }
}

/// Right answers among marked ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Accuracy {
    right: u64,
    marked: u64,
}

impl Accuracy {
    fn add(&mut self, is_right: bool) {
        self.right += u64::from(is_right);
        self.marked += 1;
    }

    fn percent(self) -> f64 {
        (1000.0 * self.right as f64 / self.marked as f64).round() / 10.0
    }

    fn to_json(self) -> Value {
        json!({"right": self.right, "marked": self.marked, "percent": self.percent()})
    }
}

/// The accuracy of a run.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    all: Accuracy,
    families: BTreeMap<String, Accuracy>,
    tiers: BTreeMap<&'static str, Accuracy>,
}

impl Marks {
    /// Marks a terminal record; a job without an answer counts as wrong.
    pub fn add(&mut self, record: &JobRecord, expectation: &Expectation) {
        let answer = record.answer.as_ref();
        let is_right = answer.is_some_and(|answer| expectation.is_met(&answer.text));
        self.all.add(is_right);
        self.families
            .entry(expectation.family.clone())
            .or_default()
            .add(is_right);
        if let Some(tier) = record.tier {
            self.tiers.entry(tier.as_str()).or_default().add(is_right);
        }
    }

    /// True when no line was marked.
    pub fn is_empty(&self) -> bool {
        self.all.marked == 0
    }

    /// The marks as JSON.
    pub fn to_json(&self) -> Value {
        let families: Map<_, _> = self
            .families
            .iter()
            .map(|(name, accuracy)| (name.clone(), accuracy.to_json()))
            .collect();
        let tiers: Map<_, _> = self
            .tiers
            .iter()
            .map(|(name, accuracy)| ((*name).to_owned(), accuracy.to_json()))
            .collect();
        json!({"all": self.all.to_json(), "families": families, "tiers": tiers})
    }

    /// The marks as labelled lines of text.
    pub fn to_lines(&self) -> Vec<(&'static str, String)> {
        let show = |name: &str, accuracy: &Accuracy| {
            format!("{name} {} % of {}", accuracy.percent(), accuracy.marked)
        };
        let families: Vec<_> = self
            .families
            .iter()
            .map(|(name, accuracy)| show(name, accuracy))
            .collect();
        let tiers: Vec<_> = self
            .tiers
            .iter()
            .map(|(name, accuracy)| show(name, accuracy))
            .collect();
        vec![
            (
                "right",
                format!("{} ({})", show("all", &self.all), tiers.join(", ")),
            ),
            ("families", families.join(", ")),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(
        line: &str,
    ) -> (
        Result<Option<Expectation>, &'static str>,
        Map<String, Value>,
    ) {
        let Ok(Value::Object(mut line)) = serde_json::from_str(line) else {
            panic!("an object")
        };
        (Expectation::take(&mut line), line)
    }

    #[test]
    fn taking_the_expectation_leaves_the_request() {
        let (taken, rest) = take(r#"{"prompt":"a","expect":"b","family":"f"}"#);
        let expectation = taken.expect("strings").expect("given");
        assert_eq!(
            (expectation.answer.as_str(), expectation.family.as_str()),
            ("b", "f")
        );
        assert_eq!(Value::Object(rest), json!({"prompt": "a"}));
        assert_eq!(take(r#"{"prompt":"a"}"#).0, Ok(None));
        assert_eq!(take(r#"{"expect":7}"#).0, Err("expect"));
        assert_eq!(take(r#"{"family":"f"}"#).0, Err("expect"));
    }

    #[test]
    fn an_answer_is_right_as_a_whole_or_after_its_last_hash() {
        let expectation = Expectation {
            answer: "42".into(),
            family: "sum".into(),
        };
        for right in ["42", " 42 ", " 40+2=42 # 42", "# 1 # 42"] {
            assert!(expectation.is_met(right), "{right}");
        }
        for wrong in ["", "4 2", "42 # 41", "the answer is 42"] {
            assert!(!expectation.is_met(wrong), "{wrong}");
        }
    }
}
