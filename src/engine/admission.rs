//! What engines without a thread of their own share: a bounded number of requests, begun at once.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::{EngineError, Generation};

/// Requests that may wait for each that may run. A worker takes no more from the broker than it
/// can start, so few ever wait here.
pub(super) const WAITING_PER_RUNNING: usize = 4;

/// Places for requests: so many run, so many wait, the next is refused.
#[derive(Debug)]
pub(super) struct Places {
    running: Arc<Semaphore>,
    accepted: Arc<AtomicUsize>,
    accepted_max: usize,
}

/// Gives a place back when its request is answered or dropped.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Places {
    pub(super) fn new(batch_max: usize) -> Self {
        Self {
            running: Arc::new(Semaphore::new(batch_max)),
            accepted: Arc::default(),
            accepted_max: batch_max * (1 + WAITING_PER_RUNNING),
        }
    }

    /// Begins the work as soon as its turn comes; dropping the future stops it.
    pub(super) fn begin(
        &self,
        work: impl Future<Output = Result<Generation, EngineError>> + Send + 'static,
    ) -> BoxFuture<'static, Result<Generation, EngineError>> {
        let place = Place(self.accepted.clone());
        if self.accepted.fetch_add(1, Ordering::AcqRel) >= self.accepted_max {
            return std::future::ready(Err(queue_full())).boxed();
        }
        let running = self.running.clone();
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let _place = place;
            let _running = running
                .acquire_owned()
                .await
                .map_err(|_| EngineError::Closed)?;
            work.await
        }));
        async {
            task.await
                .unwrap_or_else(|error| match error.try_into_panic() {
                    Ok(_) => Err(EngineError::Crashed("panic".to_owned())),
                    Err(_) => Err(EngineError::Closed),
                })
        }
        .boxed()
    }
}

/// What a request hears that finds as many waiting as may.
pub(super) fn queue_full() -> EngineError {
    EngineError::Unavailable {
        message: "as many requests wait as may".to_owned(),
        retry_after_ms: None,
    }
}
