//! Told to a request that is to end before its answer is whole.

use tokio_util::sync::CancellationToken;

/// Ends one request early. An engine then answers with what there is, as if the limit of tokens had been
/// reached, or with [`super::EngineError::Stopped`] where it has nothing. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Stop(CancellationToken);

impl Stop {
    /// Asks for the end. Asking twice is the same as once.
    pub fn request(&self) {
        self.0.cancel();
    }

    /// True once asked.
    pub fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until asked.
    pub async fn requested(&self) {
        self.0.cancelled().await;
    }
}

/// Requests that ask the same are equal, whether or not one of them has been stopped.
impl PartialEq for Stop {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
