//! Bounds the concurrent and waiting requests of engines that have no thread of their own.

use std::sync::Arc;

use futures::{FutureExt as _, future::BoxFuture};
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::{EngineError, Generation};

/// Requests that may wait per running one. A worker takes no more from the broker than it can start,
/// so few ever wait here.
pub(super) const WAITING_PER_RUNNING: usize = 4;

/// Concurrency limit: some requests run, more wait, further ones are rejected.
#[derive(Debug)]
pub(super) struct RequestSlots {
    running: Arc<Semaphore>,
    /// Running and waiting requests together.
    accepted: Arc<Semaphore>,
}

impl RequestSlots {
    pub(super) fn new(batch_max: usize) -> Self {
        Self {
            running: Arc::new(Semaphore::new(batch_max)),
            accepted: Arc::new(Semaphore::new(batch_max * (1 + WAITING_PER_RUNNING))),
        }
    }

    /// Runs the work as soon as a running slot is free; dropping the future cancels it.
    pub(super) fn begin(
        &self,
        work: impl Future<Output = Result<Generation, EngineError>> + Send + 'static,
    ) -> BoxFuture<'static, Result<Generation, EngineError>> {
        let Ok(accepted) = self.accepted.clone().try_acquire_owned() else {
            return std::future::ready(Err(queue_full())).boxed();
        };
        let running = self.running.clone();
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let _accepted = accepted;
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

/// The error for a request that finds the waiting queue full.
pub(super) fn queue_full() -> EngineError {
    EngineError::Unavailable {
        message: "the engine's waiting queue is full".to_owned(),
        retry_after_ms: None,
    }
}
