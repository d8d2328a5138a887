//! Waits for many jobs with one database query at a time.
//!
//! Polling costs one indexed look-up of all awaited ids every few milliseconds, however many
//! requests wait. It works on both databases and misses nothing after a reconnection.

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

/// Wait between two polls while any request waits.
const POLL_INTERVAL: Duration = Duration::from_millis(15);
/// Most ids in one query.
const IDS_MAX: usize = 512;
/// Wait before polling again after a database error.
const STORE_RETRY_WAIT: Duration = Duration::from_millis(500);

type Awaited = HashMap<JobId, Vec<oneshot::Sender<JobRecord>>>;

/// The jobs that requests wait for. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    awaited: Arc<Mutex<Awaited>>,
    arrived: Arc<Notify>,
    waiting_max: usize,
}

/// As many requests wait as the configuration allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooManyWaiting;

impl Answers {
    /// An empty set of at most `waiting_max` jobs.
    pub(super) fn new(waiting_max: usize) -> Self {
        Self {
            awaited: Arc::default(),
            arrived: Arc::default(),
            waiting_max,
        }
    }

    /// Waits for a job to end. Dropping the receiver stops the wait.
    ///
    /// # Errors
    /// When too many requests wait already.
    pub(super) fn of(&self, job: JobId) -> Result<oneshot::Receiver<JobRecord>, TooManyWaiting> {
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

    /// Polls for ended jobs until asked to stop.
    pub(super) async fn run(self, store: Store, shutdown: Shutdown) {
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
                        tracing::warn!(%error, "cannot poll for answers; trying again");
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

    /// The awaited ids, without those whose requests are gone.
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
                // Fails when the request has just gone away.
                let _ = sender.send(record.clone());
            }
        }
    }
}
