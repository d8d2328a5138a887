//! Waits for many jobs with one ledger query at a time.
//!
//! Polling costs one indexed look-up of all awaited ids every few milliseconds, whatever the
//! number of waiting requests; it needs nothing from the database beyond a query, and misses
//! nothing after a reconnection.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use metrics::gauge;
use tokio::sync::{Notify, oneshot};

use crate::{
    job::{JobId, JobRecord},
    metrics::HTTP_WAITING,
    shutdown::Shutdown,
    store::Store,
};

/// Wait between two looks while somebody waits.
const POLL_INTERVAL: Duration = Duration::from_millis(15);
/// Most ids in one query.
const IDS_MAX: usize = 512;
/// How long to wait before a ledger that failed is asked again.
const STORE_RETRY_WAIT: Duration = Duration::from_millis(500);

type Awaited = HashMap<JobId, Vec<oneshot::Sender<JobRecord>>>;

/// The jobs whose end somebody awaits. Clones share them.
#[derive(Clone, Debug)]
pub struct Answers {
    awaited: Arc<Mutex<Awaited>>,
    arrived: Arc<Notify>,
    waiting_max: usize,
}

/// More requests wait than the configuration allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyWaiting;

impl Answers {
    /// Nobody waits yet; at most `waiting_max` may.
    pub fn new(waiting_max: usize) -> Self {
        Self {
            awaited: Arc::default(),
            arrived: Arc::default(),
            waiting_max,
        }
    }

    /// Registers for a job's end. Dropping the receiver ends the waiting.
    ///
    /// # Errors
    /// When too many wait already.
    pub fn of(&self, job: JobId) -> Result<oneshot::Receiver<JobRecord>, TooManyWaiting> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut awaited = self.awaited.lock().expect("nobody panics while holding it");
            if awaited.len() >= self.waiting_max {
                return Err(TooManyWaiting);
            }
            awaited.entry(job).or_default().push(sender);
        }
        self.arrived.notify_one();
        Ok(receiver)
    }

    /// Looks for ends until asked to stop.
    pub async fn run(self, store: Store, shutdown: Shutdown) {
        loop {
            let ids = self.open_ids();
            gauge!(HTTP_WAITING).set(ids.len() as f64);
            if ids.is_empty() {
                tokio::select! {
                    () = shutdown.requested() => return,
                    () = self.arrived.notified() => continue,
                }
            }
            let mut wait = POLL_INTERVAL;
            for some in ids.chunks(IDS_MAX) {
                match store.records(some).await {
                    Ok(records) => self.deliver(records),
                    Err(error) => {
                        tracing::warn!(%error, "cannot look for answers");
                        wait = STORE_RETRY_WAIT;
                        break;
                    }
                }
            }
            tokio::select! {
                () = shutdown.requested() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// The awaited ids, after forgetting those whose requests have gone.
    fn open_ids(&self) -> Vec<JobId> {
        let mut awaited = self.awaited.lock().expect("nobody panics while holding it");
        awaited.retain(|_, senders| {
            senders.retain(|sender| !sender.is_closed());
            !senders.is_empty()
        });
        awaited.keys().copied().collect()
    }

    fn deliver(&self, records: Vec<JobRecord>) {
        let mut awaited = self.awaited.lock().expect("nobody panics while holding it");
        for record in records
            .into_iter()
            .filter(|record| record.state.is_terminal())
        {
            for sender in awaited.remove(&record.id).unwrap_or_default() {
                // The request may have gone in this instant.
                let _ = sender.send(record.clone());
            }
        }
    }
}
