//! Checks a fleet's guarantees against the rows of the jobs sent.

use std::collections::{BTreeMap, HashMap};

use crate::{
    job::JobRecord,
    store::{AttemptRecord, Store, StoreError},
};

/// Most violations reported per kind.
const REPORTED_MAX: usize = 5;

/// A job that was sent.
#[derive(Debug)]
pub(super) struct SentJob {
    pub key: String,
    pub prompt: String,
}

/// The result of the checks.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Jobs by their state.
    pub states: BTreeMap<String, usize>,
    pub attempts: usize,
    /// One sentence per violated guarantee.
    pub violations: Vec<String>,
}

/// Checks the rows of all jobs sent.
///
/// # Errors
/// When the job database cannot be read.
pub(super) async fn check(
    store: &Store,
    sent: &[SentJob],
    records: &[JobRecord],
) -> Result<Findings, StoreError> {
    let mut findings = Findings::default();
    let mut by_key: HashMap<&str, Vec<&JobRecord>> = HashMap::new();
    for record in records {
        let key = record.key.as_deref().unwrap_or_default();
        by_key.entry(key).or_default().push(record);
        *findings.states.entry(record.state.to_string()).or_default() += 1;
    }
    let mut violations = Violations::default();
    let mut answers: HashMap<(&str, String), &str> = HashMap::new();
    for one in sent {
        let rows = by_key.get(one.key.as_str()).map_or(&[][..], Vec::as_slice);
        let [record] = rows else {
            violations.add("rows", format!("{} has {} rows", one.key, rows.len()));
            continue;
        };
        if !record.state.is_terminal() {
            violations.add("open", format!("{} is still {}", record.id, record.state));
        }
        let Some(answer) = &record.answer else {
            continue;
        };
        // Equal greedy prompts have equal answers from the same model.
        let by = (
            one.prompt.as_str(),
            format!("{} {}", answer.model, answer.revision),
        );
        let first = *answers.entry(by).or_insert(&answer.text);
        if first != answer.text {
            let message = format!(
                "the answer of {} differs from that of an equal prompt",
                record.id
            );
            violations.add("answers", message);
        }
    }
    for record in records {
        let attempts = store.attempts(record.id).await?;
        findings.attempts += attempts.len();
        if let Some(error) = attempts_error(record, &attempts) {
            violations.add("attempts", format!("{}: {error}", record.id));
        }
    }
    findings.violations = violations.into_sentences();
    Ok(findings)
}

/// What is wrong with a job's attempts.
fn attempts_error(record: &JobRecord, attempts: &[AttemptRecord]) -> Option<String> {
    let numbers: Vec<u32> = attempts.iter().map(|attempt| attempt.attempt).collect();
    let expected: Vec<u32> = (1..=record.attempts).collect();
    if numbers != expected {
        return Some(format!("attempts {numbers:?}, expected {expected:?}"));
    }
    let open = attempts.iter().find(|attempt| attempt.outcome == "running");
    if let Some(open) = open.filter(|_| record.state.is_terminal()) {
        return Some(format!("attempt {} has no outcome", open.attempt));
    }
    let succeeded = attempts.iter().filter(|a| a.outcome == "succeeded").count();
    (succeeded > 1).then(|| format!("{succeeded} attempts succeeded"))
}

/// Violated guarantees by kind, with at most [`REPORTED_MAX`] sentences each.
#[derive(Debug, Default)]
struct Violations(BTreeMap<&'static str, (usize, Vec<String>)>);

impl Violations {
    fn add(&mut self, kind: &'static str, sentence: String) {
        let (count, reported) = self.0.entry(kind).or_default();
        *count += 1;
        if reported.len() < REPORTED_MAX {
            reported.push(sentence);
        }
    }

    fn into_sentences(self) -> Vec<String> {
        let mut sentences = Vec::new();
        for (kind, (count, reported)) in self.0 {
            let more = count - reported.len();
            sentences.extend(reported);
            if more > 0 {
                sentences.push(format!("and {more} more of kind {kind}"));
            }
        }
        sentences
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::job::{JobHead, JobState, Tenant, Tier};

    fn record(attempts: u32) -> JobRecord {
        JobRecord {
            attempts,
            ..JobRecord::new(&JobHead::new(Tenant::default()), JobState::Succeeded)
        }
    }

    fn attempt(number: u32, outcome: &str) -> AttemptRecord {
        AttemptRecord {
            attempt: number,
            tier: Tier::Small,
            model: "m".to_owned(),
            revision: "1".to_owned(),
            worker: "w".to_owned(),
            outcome: outcome.to_owned(),
            reason: None,
            prompt_tokens: None,
            completion_tokens: None,
            confidence: None,
            signals: None,
            answer: None,
            claimed_at: chrono::Utc::now(),
            finished_at: None,
        }
    }

    #[test]
    fn attempts_must_be_complete_and_succeed_at_most_once() {
        let error = |count, outcomes: &[&str]| {
            let attempts: Vec<_> = (1..).zip(outcomes).map(|(n, o)| attempt(n, o)).collect();
            attempts_error(&record(count), &attempts)
        };
        assert_eq!(error(2, &["lost", "succeeded"]), None);
        assert_eq!(error(0, &[]), None);
        assert!(error(2, &["succeeded"]).is_some(), "one is missing");
        assert!(error(1, &["running"]).is_some(), "one is open");
        assert!(
            error(2, &["succeeded", "succeeded"]).is_some(),
            "it ran twice"
        );
    }
}
