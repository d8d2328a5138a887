//! Whether a fleet kept its word.

use std::collections::{BTreeMap, HashMap};

use crate::{
    job::JobRecord,
    store::{AttemptRecord, Store, StoreError},
};

use super::Sent;

/// Faults told of each kind; more say nothing new.
const TOLD_MAX: usize = 5;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    /// Jobs by their state.
    pub states: BTreeMap<String, usize>,
    pub attempts: usize,
    /// One sentence for each promise that was not kept.
    pub broken: Vec<String>,
}

/// Checks the rows of all that was sent.
///
/// # Errors
/// When the ledger cannot be read.
pub(super) async fn check(
    store: &Store,
    sent: &[Sent],
    records: &[JobRecord],
) -> Result<Verdicts, StoreError> {
    let mut verdicts = Verdicts::default();
    let mut by_key: HashMap<&str, Vec<&JobRecord>> = HashMap::new();
    for record in records {
        let key = record.key.as_deref().unwrap_or_default();
        by_key.entry(key).or_default().push(record);
        *verdicts.states.entry(record.state.to_string()).or_default() += 1;
    }
    let mut broken = Broken::default();
    let mut answers: HashMap<(&str, String), &str> = HashMap::new();
    for one in sent {
        let rows = by_key.get(one.key.as_str()).map_or(&[][..], Vec::as_slice);
        let [record] = rows else {
            broken.tell("rows", format!("{} has {} rows", one.key, rows.len()));
            continue;
        };
        if !record.state.is_terminal() {
            broken.tell("open", format!("{} is still {}", record.id, record.state));
        }
        let Some(answer) = &record.answer else {
            continue;
        };
        // Equal greedy prompts have equal answers of equal models.
        let by = (
            one.prompt.as_str(),
            format!("{} {}", answer.model, answer.revision),
        );
        let first = *answers.entry(by).or_insert(&answer.text);
        if first != answer.text {
            let message = format!("{} has another answer than an equal prompt had", record.id);
            broken.tell("answers", message);
        }
    }
    for record in records {
        let attempts = store.attempts(record.id).await?;
        verdicts.attempts += attempts.len();
        if let Some(fault) = fault_of(record, &attempts) {
            broken.tell("attempts", format!("{}: {fault}", record.id));
        }
    }
    verdicts.broken = broken.into_sentences();
    Ok(verdicts)
}

/// What is wrong with a job's attempts.
fn fault_of(record: &JobRecord, attempts: &[AttemptRecord]) -> Option<String> {
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

/// Broken promises, a few of each kind.
#[derive(Debug, Default)]
struct Broken(BTreeMap<&'static str, (usize, Vec<String>)>);

impl Broken {
    fn tell(&mut self, kind: &'static str, sentence: String) {
        let (count, told) = self.0.entry(kind).or_default();
        *count += 1;
        if told.len() < TOLD_MAX {
            told.push(sentence);
        }
    }

    fn into_sentences(self) -> Vec<String> {
        let mut sentences = Vec::new();
        for (kind, (count, told)) in self.0 {
            let more = count - told.len();
            sentences.extend(told);
            if more > 0 {
                sentences.push(format!("and {more} more of the kind {kind}"));
            }
        }
        sentences
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::*;
    use crate::job::{ContextSavings, JobId, JobState, Tenant, Tier};

    fn record(attempts: u32) -> JobRecord {
        JobRecord {
            id: JobId::now(),
            tenant: Tenant::default(),
            key: None,
            custom_id: None,
            batch: None,
            state: JobState::Succeeded,
            tier: None,
            score: None,
            answer: None,
            source: None,
            answered_by: None,
            cosine: None,
            saved: ContextSavings::default(),
            reason: None,
            attempts,
            confidence: None,
            escalated: None,
            reply_to: None,
            submitted_at: Utc::now(),
            started_at: None,
            finished_at: None,
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
            claimed_at: Utc::now(),
            finished_at: None,
        }
    }

    #[test]
    fn attempts_must_add_up() {
        let fault = |count, outcomes: &[&str]| {
            let attempts: Vec<_> = (1..).zip(outcomes).map(|(n, o)| attempt(n, o)).collect();
            fault_of(&record(count), &attempts)
        };
        assert_eq!(fault(2, &["lost", "succeeded"]), None);
        assert_eq!(fault(0, &[]), None);
        assert!(fault(2, &["succeeded"]).is_some(), "one is missing");
        assert!(fault(1, &["running"]).is_some(), "one is open");
        assert!(
            fault(2, &["succeeded", "succeeded"]).is_some(),
            "it ran twice"
        );
    }
}
