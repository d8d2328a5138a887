//! Compares the attempts of a job with what their workers observed.

use std::collections::BTreeMap;

use promptyard::{
    job::{JobRecord, JobState},
    store::{AttemptRecord, Store},
};

use crate::actors::{Observed, Run, Said};

/// Every attempt went to one worker and has the outcome that the worker observed, or was lost.
pub async fn judge_attempts(
    store: &Store,
    record: &JobRecord,
    observed: &Observed,
    (attempts_max, seed): (u32, u64),
) {
    let id = record.id;
    let rows = store.attempts(id).await.unwrap();
    let mut runs: BTreeMap<u32, &Run> = BTreeMap::new();
    for run in observed.runs.iter().filter(|run| run.job == id) {
        let earlier = runs.insert(run.attempt, run);
        assert!(
            earlier.is_none(),
            "seed {seed}: {run:?} and {earlier:?} are one attempt"
        );
    }
    let numbers: Vec<u32> = rows.iter().map(|row| row.attempt).collect();
    assert_eq!(
        numbers,
        (1..=record.attempts).collect::<Vec<_>>(),
        "seed {seed}: {id}"
    );
    assert!(
        runs.keys().eq(&numbers),
        "seed {seed}: {runs:?} are not {numbers:?}"
    );
    let (mut counted, mut before) = (0, "");
    for row in &rows {
        let run = runs[&row.attempt];
        let words = observed
            .words
            .iter()
            .filter(|word| word.job == id && word.attempt == row.attempt);
        let (committed, fenced): (Vec<&Said>, Vec<&Said>) =
            words.partition(|word| word.is_committed);
        let outcomes: Vec<&str> = committed.iter().map(|word| word.outcome).collect();
        assert!(
            outcomes.len() <= 1,
            "seed {seed}: settled {outcomes:?} {row:?}"
        );
        let said = outcomes.first().copied();
        let is_withdrawn = record.state == JobState::Cancelled && row.attempt == record.attempts;
        let expected = match said {
            Some("retry isolated") => "retried",
            Some(outcome) => outcome,
            None if is_withdrawn => judge_withdrawn(row, &fenced, seed),
            None => "lost",
        };
        assert_eq!(row.outcome, expected, "seed {seed}: {id} {row:?}");
        assert_eq!(row.worker, run.worker);
        assert_eq!(
            run.poison_candidate,
            before == "lost",
            "seed {seed}: {run:?} after {before:?}"
        );
        let counts = !matches!(said, Some("returned" | "retry isolated"));
        counted += u32::from(counts);
        assert!(
            counted <= attempts_max,
            "seed {seed}: {id} has {counted} attempts"
        );
        let would_count = counted + u32::from(!counts);
        assert_eq!(
            run.last,
            would_count == attempts_max,
            "seed {seed}: {run:?}"
        );
        let is_end = matches!(expected, "succeeded" | "failed" | "expired");
        assert!(
            !is_end || row.attempt == record.attempts,
            "seed {seed}: {rows:?}"
        );
        before = expected;
    }
}

/// The attempt of a cancelled job: the first settlement closes it and stores its partial answer, unless
/// its lease was over before.
fn judge_withdrawn(row: &AttemptRecord, fenced: &[&Said], seed: u64) -> &'static str {
    match row.outcome.as_str() {
        "cancelled" => {
            let is_said = |text: &String| fenced.iter().any(|word| word.text == *text);
            assert!(!fenced.is_empty(), "seed {seed}: nobody closed {row:?}");
            assert!(
                row.answer.as_ref().is_none_or(is_said),
                "seed {seed}: {row:?} is not of {fenced:?}"
            );
            "cancelled"
        }
        "running" => {
            assert!(fenced.is_empty(), "seed {seed}: {fenced:?} closed nothing");
            "running"
        }
        _ => "lost",
    }
}
