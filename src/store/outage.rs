//! What callers of the store do when a write fails: wait for a database that is away, and halve a
//! batch that it refuses until the refused item stands alone.

use std::time::Duration;

use crate::shutdown::Shutdown;

use super::StoreError;

/// Pause before the next try.
const RETRY_WAIT: Duration = Duration::from_millis(500);

/// Waits before the next try of a call that failed. False when another try would not help, or when
/// the stop was requested: the error is then the call's result. The failed call may have committed
/// before the connection broke.
pub async fn wait_out(error: &StoreError, waiting: &'static str, stop: &Shutdown) -> bool {
    if !error.is_transient() {
        return false;
    }
    tracing::warn!(%error, "{waiting} wait for the job database");
    stop.sleep(RETRY_WAIT).await
}

/// Items to be written in one transaction, each with what its caller keeps beside it.
#[derive(Debug)]
pub struct Batch<T, C> {
    /// What the store writes.
    pub items: Vec<T>,
    /// One for each item.
    pub carried: Vec<C>,
}

impl<T, C> Default for Batch<T, C> {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            carried: Vec::new(),
        }
    }
}

impl<T, C> Batch<T, C> {
    /// Adds an item.
    pub fn push(&mut self, item: T, carried: C) {
        self.items.push(item);
        self.carried.push(carried);
    }
}

/// Batches still to be written.
#[derive(Debug)]
pub struct Batches<T, C> {
    open: Vec<Batch<T, C>>,
    waiting: &'static str,
    /// True once a try failed that may have committed.
    pub in_doubt: bool,
}

/// What a try to write a batch came to.
#[derive(Debug)]
pub enum Written<T, C, O> {
    /// It is committed, with one outcome for each item.
    Committed(Batch<T, C>, Vec<O>),
    /// The database refuses this item, whatever it is written with.
    Refused(C, StoreError),
    /// The stop was requested while the database was away.
    Abandoned(Vec<C>),
    /// It will be tried again, in halves if it was refused.
    Again,
}

impl<T, C> Batches<T, C> {
    /// One batch; `waiting` names its items in logs.
    pub fn new(batch: Batch<T, C>, waiting: &'static str) -> Self {
        Self {
            open: vec![batch],
            waiting,
            in_doubt: false,
        }
    }

    /// Adds a batch.
    pub fn push(&mut self, batch: Batch<T, C>) {
        self.open.push(batch);
    }

    /// The next batch to write, then to be given to [`Self::record`].
    pub fn next_batch(&mut self) -> Option<Batch<T, C>> {
        let batch = self.open.pop()?;
        if batch.items.is_empty() {
            return self.next_batch();
        }
        Some(batch)
    }

    /// Takes the result of a write, after waiting for a database that is away.
    pub async fn record<O>(
        &mut self,
        mut batch: Batch<T, C>,
        result: Result<Vec<O>, StoreError>,
        stop: &Shutdown,
    ) -> Written<T, C, O> {
        match result {
            Ok(outcomes) => return Written::Committed(batch, outcomes),
            Err(error) if error.is_transient() => {
                self.in_doubt = true;
                if !wait_out(&error, self.waiting, stop).await {
                    return Written::Abandoned(batch.carried);
                }
            }
            Err(error) if batch.items.len() == 1 => {
                if let Some(carried) = batch.carried.pop() {
                    return Written::Refused(carried, error);
                }
            }
            Err(_) => {
                let half = batch.items.len() / 2;
                self.open.push(Batch {
                    items: batch.items.split_off(half),
                    carried: batch.carried.split_off(half),
                });
            }
        }
        self.open.push(batch);
        Written::Again
    }
}

#[cfg(test)]
mod tests {
    use crate::store::outage::*;

    fn refused() -> StoreError {
        StoreError::Refused {
            message: "no".to_owned(),
        }
    }

    #[tokio::test]
    async fn a_refused_item_is_isolated_and_the_others_are_written() {
        let batch = Batch {
            items: (0..9).collect(),
            carried: (0..9).collect(),
        };
        let (mut written, mut refusals) = (Vec::new(), Vec::new());
        let mut batches = Batches::new(batch, "numbers");
        while let Some(batch) = batches.next_batch() {
            let result = if batch.items.contains(&5) {
                Err(refused())
            } else {
                Ok(batch.items.clone())
            };
            match batches.record(batch, result, &Shutdown::new()).await {
                Written::Committed(batch, outcomes) => {
                    assert_eq!(batch.carried, outcomes);
                    written.extend(outcomes);
                }
                Written::Refused(item, _) => refusals.push(item),
                Written::Abandoned(_) => panic!("no stop was requested"),
                Written::Again => {}
            }
        }
        written.sort_unstable();
        assert_eq!(written, [0, 1, 2, 3, 4, 6, 7, 8]);
        assert_eq!(refusals, [5]);
        assert!(!batches.in_doubt);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unreachable_database_is_waited_for_until_the_stop() {
        let away = || StoreError::Unreachable {
            url: "db".to_owned(),
            message: "down".to_owned(),
        };
        let stop = Shutdown::new();
        let batch = Batch {
            items: vec![1],
            carried: vec!['a'],
        };
        let mut batches = Batches::new(batch, "numbers");
        let batch = batches.next_batch().expect("one");
        let again = batches.record::<()>(batch, Err(away()), &stop).await;
        assert!(matches!(again, Written::Again) && batches.in_doubt);
        stop.request();
        let batch = batches.next_batch().expect("the same");
        let end = batches.record::<()>(batch, Err(away()), &stop).await;
        assert!(matches!(end, Written::Abandoned(carried) if carried == ['a']));
        assert!(batches.next_batch().is_none());
    }
}
