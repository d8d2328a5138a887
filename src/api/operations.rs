//! Operations that the HTTP interface and the command line share.

use tokio::time::sleep;
use uuid::Uuid;

use crate::{
    broker::{Broker, PublishError, wire::redriven},
    job::JobRecord,
    store::{CANCEL_SETTLES, CancelFilter, DeadLetter, DeadResolution, Store, StoreError},
};

/// Most jobs of a batch cancelled in one transaction.
const STEP: usize = 512;

/// A cancellation in steps of one transaction each.
#[derive(Debug)]
pub struct Cancellation<'a> {
    store: &'a Store,
    filter: &'a CancelFilter,
    step: usize,
    rounds_left: u32,
    is_between_rounds: bool,
}

impl<'a> Cancellation<'a> {
    /// Starts cancelling the jobs of a filter. A batch takes two rounds: a router may be admitting jobs
    /// of it during the first one.
    pub fn new(store: &'a Store, filter: &'a CancelFilter) -> Self {
        let (step, rounds_left) = match filter {
            CancelFilter::Jobs(_, ids) => (ids.len() + 1, 1),
            CancelFilter::Batch(..) => (STEP, 2),
        };
        Self {
            store,
            filter,
            step,
            rounds_left,
            is_between_rounds: false,
        }
    }

    /// Cancels the next jobs; `None` when all are cancelled.
    pub async fn next(&mut self) -> Result<Option<Vec<JobRecord>>, StoreError> {
        if self.rounds_left == 0 {
            return Ok(None);
        }
        if std::mem::take(&mut self.is_between_rounds) {
            sleep(CANCEL_SETTLES).await;
        }
        let cancelled = self.store.cancel(self.filter, self.step).await?;
        if cancelled.len() < self.step {
            self.rounds_left -= 1;
            self.is_between_rounds = true;
        }
        Ok(Some(cancelled))
    }
}

/// Resubmits dead letters as new jobs. Returns how many were redriven, and the letters that could not be
/// published.
pub async fn redrive(
    broker: &Broker,
    store: &Store,
    letters: &[DeadLetter],
) -> Result<(u64, Vec<(Uuid, PublishError)>), StoreError> {
    // Publish first: if marking the letters fails, the new jobs' keys prevent a second redrive from
    // running them twice.
    let messages: Vec<_> = letters
        .iter()
        .map(|letter| redriven(letter.id, &letter.body))
        .collect();
    let outcomes = broker.publish(&messages).await;
    let (mut published, mut failed) = (Vec::new(), Vec::new());
    for (letter, outcome) in letters.iter().zip(outcomes) {
        match outcome {
            Ok(()) => published.push(letter.id),
            Err(error) => failed.push((letter.id, error)),
        }
    }
    let count = store
        .resolve_dead(&published, DeadResolution::Redriven)
        .await?;
    Ok((count, failed))
}
