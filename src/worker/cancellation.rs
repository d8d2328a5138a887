//! Attempts that are to end early: their deadline has passed, or the ledger has taken the job away from
//! them.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::task::JoinHandle;

use crate::{
    engine::Generation,
    job::{Answer, JobId, Reason},
    store::{AttemptOutcome, Store},
};

use super::{disposition::Disposition, run_loop::Running};

/// How often running attempts are looked at.
pub(super) const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// Why an attempt was told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// The job's deadline passed.
    Late(DateTime<Utc>),
    /// The job was taken back, or another attempt has it.
    Withdrawn,
}

/// Tells an attempt to stop whose deadline has passed.
pub(super) fn stop_late(running: &mut Running, now: DateTime<Utc>) {
    let deadline = running.routed.job.head.deadline;
    if let Some(deadline) = deadline.filter(|deadline| *deadline <= now)
        && running.stopped.is_none()
    {
        running.stopped = Some(Stopped::Late(deadline));
        running.stop.request();
    }
}

/// Tells an attempt to stop whose job is its own no more.
pub(super) fn withdraw(running: &mut Running) {
    running.stopped = Some(Stopped::Withdrawn);
    running.stop.request();
}

/// Asks the ledger, beside the loop, which of the attempts are superseded.
pub(super) fn ask(store: Store, attempts: Vec<(JobId, u32)>) -> JoinHandle<Vec<(JobId, u32)>> {
    tokio::spawn(async move {
        match store.superseded(&attempts).await {
            Ok(gone) => attempts
                .into_iter()
                .filter(|(job, _)| gone.contains(job))
                .collect(),
            Err(error) => {
                tracing::debug!(%error, "whether running jobs were taken back is not known");
                Vec::new()
            }
        }
    })
}

/// Judges an attempt that was told to stop; an answer that was whole in time is judged as any other.
pub(super) fn judge_stopped(
    stopped: Stopped,
    generation: Option<Generation>,
) -> Result<(AttemptOutcome, Disposition), Box<Generation>> {
    let partial = |generation: Option<Generation>| -> Option<Box<Answer>> {
        let answer = generation?.answer;
        (answer.usage.completion_tokens > 0).then(|| Box::new(answer))
    };
    match stopped {
        Stopped::Withdrawn => {
            let written = partial(generation);
            Ok((
                AttemptOutcome::superseded(written.as_deref()),
                Disposition::Done,
            ))
        }
        Stopped::Late(deadline) => match generation {
            Some(whole) if whole.finished_at <= deadline => Err(Box::new(whole)),
            generation => {
                let reason = Reason::new(
                    "deadline_passed",
                    format!("the deadline {deadline} passed while the job ran"),
                );
                Ok((
                    AttemptOutcome::Expired(reason, partial(generation)),
                    Disposition::Done,
                ))
            }
        },
    }
}
