//! What makes vectors of texts.

use std::fmt::Debug;

/// An encoder of sentences. Equal revisions give equal vectors.
pub trait Encoder: Debug + Send + Sync {
    /// Digest of everything that its vectors depend on.
    fn revision(&self) -> &str;

    /// Values of a vector.
    fn width(&self) -> usize;

    /// One unit vector for each text, in order.
    ///
    /// # Errors
    /// What went wrong; then there is none for any of them.
    fn encode(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, String>;
}
