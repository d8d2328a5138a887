//! Attempts that are stopped early: their job's deadline has passed, it was cancelled, or another
//! attempt has it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::task::JoinHandle;

use crate::{
    engine::Generation,
    job::{Answer, JobId, Reason},
    store::{AttemptOutcome, Store},
};

/// How often running attempts are checked.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Why an attempt was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// The job's deadline passed.
    Late(DateTime<Utc>),
    /// The job was cancelled, or another attempt has it.
    Superseded,
}

impl Stopped {
    /// The outcome of a stopped attempt; the error is an answer that was complete before the
    /// deadline and counts like any other.
    pub(super) fn outcome(
        self,
        generation: Option<Generation>,
    ) -> Result<AttemptOutcome, Box<Generation>> {
        let partial = |generation: Option<Generation>| -> Option<Box<Answer>> {
            let answer = generation?.answer;
            (answer.usage.completion_tokens > 0).then(|| Box::new(answer))
        };
        match self {
            Self::Superseded => Ok(AttemptOutcome::superseded(partial(generation).as_deref())),
            Self::Late(deadline) => match generation {
                Some(whole) if whole.finished_at <= deadline => Err(Box::new(whole)),
                generation => {
                    let reason = Reason::new(
                        "deadline_passed",
                        format!("the deadline {deadline} passed while the job ran"),
                    );
                    Ok(AttemptOutcome::Expired(reason, partial(generation)))
                }
            },
        }
    }
}

/// Reads, in a task of its own, which of the attempts are superseded.
pub(super) fn superseded(
    store: Store,
    attempts: Vec<(JobId, u32)>,
) -> JoinHandle<Vec<(JobId, u32)>> {
    tokio::spawn(async move {
        match store.superseded(&attempts).await {
            Ok(jobs) => attempts
                .into_iter()
                .filter(|(job, _)| jobs.contains(job))
                .collect(),
            Err(error) => {
                tracing::debug!(%error, "cannot read which running jobs were cancelled; trying again");
                Vec::new()
            }
        }
    })
}
