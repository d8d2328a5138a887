//! The interface of sentence encoders.

use std::fmt::Debug;

/// A sentence encoder. Equal revisions give equal vectors.
pub trait Encoder: Debug + Send + Sync {
    /// Digest of everything that its vectors depend on.
    fn revision(&self) -> &str;

    /// Length of a vector.
    fn width(&self) -> usize;

    /// One unit vector for each text, in order.
    ///
    /// # Errors
    /// What failed; then no text has a vector.
    fn encode(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, String>;
}
