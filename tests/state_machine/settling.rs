//! Settles attempts in a database and in the model.

use std::collections::BTreeSet;

use promptyard::{
    job::{Answer, JobId, JobState, Tier},
    store::{AttemptOutcome, Settled, Settlement},
};
use proptest::{prelude::*, test_runner::TestCaseError};

use crate::{
    driver::{Case, span},
    model::Model,
    operations::{End, Which, Word},
    support::store::{answer, reason, settlement},
};

impl Case {
    pub async fn settle(&mut self, word: &Word) -> Result<bool, TestCaseError> {
        let id = self.pick(word.pick, |job| job.has_attempt());
        let job = self.model.jobs.get(&id);
        let latest = job.map_or(1, |job| u32::try_from(job.attempts.len()).unwrap());
        let attempt = match word.attempt {
            Which::Latest => latest,
            Which::Older => latest.saturating_sub(1),
            Which::Newer => latest + 1,
        };
        self.answers += 1;
        let generated = answer(&format!("answer {}", self.answers));
        let is_its_own = job.is_some_and(|job| job.state == JobState::Running) && attempt == latest;
        let outcome = outcome_for(word.end, is_its_own, generated);
        let keeps_lead = matches!(
            word.end,
            End::Escalate {
                keeps_lead: true,
                ..
            }
        );
        let settlement = Settlement {
            // An escalated job still leads its entry and does not touch the cache.
            cache_key: job.and_then(|job| job.cache_key).filter(|_| !keeps_lead),
            reusable: word.reusable,
            ..settlement(id, attempt, outcome)
        };
        let batch = vec![settlement; 1 + usize::from(word.twice)];
        let outcomes = self.store.settle(&batch, span(word.ttl)).await.unwrap();
        prop_assert_eq!(outcomes.len(), batch.len());
        let is_open_attempt =
            |model: &Model| model.jobs.get(&id).is_some_and(|job| job.has_attempt());
        let had_attempt = is_open_attempt(&self.model);
        let mut is_changed = false;
        for (settlement, outcome) in batch.iter().zip(&outcomes) {
            let expected = self.model.settle(settlement, word.ttl);
            is_changed |= expected.is_some();
            match (outcome, expected) {
                (Settled::Committed { record, shared }, Some(expected)) => {
                    prop_assert_eq!(record.id, id);
                    let settled: BTreeSet<JobId> = shared.iter().map(|record| record.id).collect();
                    prop_assert_eq!(settled, expected);
                    for record in shared.iter().chain([&**record]) {
                        self.agrees(record)?;
                    }
                    match &settlement.outcome {
                        AttemptOutcome::RetryIsolated(_) => self.note("settle: retry isolated"),
                        AttemptOutcome::Expired(_, Some(_)) => self.note("settle: written in part"),
                        _ => {}
                    }
                    if !shared.is_empty() {
                        self.note("settle: shared");
                    }
                }
                (Settled::Fenced, None) if had_attempt && !is_open_attempt(&self.model) => {
                    self.note("settle: closed");
                }
                (Settled::Fenced, None) => self.note("settle: fenced"),
                (found, expected) => prop_assert!(
                    false,
                    "{:?} came to {:?} instead of {:?}",
                    settlement,
                    found,
                    expected
                ),
            }
        }
        Ok(is_changed)
    }
}

/// `is_its_own`: the job runs on this attempt, so its worker would not report a cancellation.
fn outcome_for(end: End, is_its_own: bool, generated: Answer) -> AttemptOutcome {
    let some = |is_there: bool| is_there.then(|| Box::new(generated.clone()));
    match end {
        End::Succeeded => AttemptOutcome::Succeeded(generated),
        End::Failed => AttemptOutcome::Failed(reason("unservable")),
        End::Exhausted => AttemptOutcome::AttemptsExhausted(reason("engine_crashed")),
        End::Expired { written } => {
            AttemptOutcome::Expired(reason("deadline_passed"), some(written))
        }
        End::Cancelled { .. } if is_its_own => AttemptOutcome::Returned,
        End::Cancelled { written } => {
            AttemptOutcome::Cancelled(reason("superseded"), some(written))
        }
        End::Retry => AttemptOutcome::Retry(reason("engine_unavailable")),
        End::RetryIsolated => AttemptOutcome::RetryIsolated(reason("engine_crashed")),
        End::Escalate { answered, .. } => AttemptOutcome::Escalate {
            to: Tier::Large,
            reason: reason("low_confidence"),
            answer: some(answered),
        },
        End::Returned => AttemptOutcome::Returned,
    }
}
