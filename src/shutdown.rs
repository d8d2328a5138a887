//! The stop request: made once, seen by every task.
//!
//! The first SIGTERM or SIGINT makes every role drain; a second one ends the process at once.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// A stop request that any number of tasks can wait for. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// A stop that has not been requested.
    pub fn new() -> Self {
        Self::default()
    }

    /// Requests the stop; requesting it again changes nothing.
    pub fn request(&self) {
        self.0.cancel();
    }

    /// True once the stop was requested.
    pub fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until the stop is requested.
    pub async fn requested(&self) {
        self.0.cancelled().await;
    }

    /// Sleeps; false, at once, when the stop is requested.
    pub async fn sleep(&self, duration: Duration) -> bool {
        tokio::select! {
            () = self.requested() => false,
            () = tokio::time::sleep(duration) => true,
        }
    }

    /// A stop request of its own that also follows this one.
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }

    /// Requests the stop at the first SIGTERM or SIGINT and exits with 130 at the second.
    ///
    /// # Errors
    /// When the signal handlers cannot be installed.
    pub fn on_signals(&self) -> std::io::Result<()> {
        let mut signals = Signals::install()?;
        let shutdown = self.clone();
        tokio::spawn(async move {
            signals.next().await;
            tracing::info!("stop requested: draining; a second signal ends the process at once");
            shutdown.request();
            signals.next().await;
            std::process::exit(130);
        });
        Ok(())
    }
}

#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn install() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn install() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        // Without a handler the process can only be killed.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn children_follow_their_parent_but_not_each_other() {
        let parent = Shutdown::new();
        let child = parent.child();
        let sibling = parent.child();
        child.request();
        assert!(!parent.is_requested() && !sibling.is_requested());
        parent.request();
        parent.request();
        sibling.requested().await;
    }
}
