//! Questions whose answers may serve others, and what became of those that asked for it.

use chrono::{DateTime, Utc};

use crate::job::{CacheKey, JobId};

/// A question that may be answered by what another was answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Lookup {
    /// All that two requests must agree in beside the question.
    pub scope: [u8; 32],
    /// The last user message.
    pub question: String,
    /// Revision of the encoder that made the embedding.
    pub embedder: String,
    /// The question's unit vector; empty when there is none, and then nothing is kept of it.
    pub embedding: Vec<f32>,
    /// NearQuestion that others must have to it, as long as no recheck raises it.
    pub cosine_min: f32,
    /// The nearest question there is, if one is near at all.
    pub nearest: Option<NearQuestion>,
}

/// How near another question is, and whether its answer serves.
#[derive(Clone, Debug, PartialEq)]
pub struct NearQuestion {
    /// The cache entry that holds its answer.
    pub entry: CacheKey,
    /// That question.
    pub question: String,
    /// NearQuestion of the two.
    pub cosine: f32,
    /// NearQuestion that the entry asks for.
    pub cosine_min: f32,
    /// What follows from it.
    pub outcome: NearOutcome,
    /// Set when a hit is drawn to be run again: the probability of that.
    pub recheck: Option<f64>,
}

/// Whether a near question's answer serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NearOutcome {
    /// It does, if it is there still.
    Hit,
    /// The job's own model is asked first whether it does.
    Candidate,
    /// It does not, for this reason.
    Miss(&'static str),
}

/// A question with an answer that is ready.
#[derive(Clone, Debug, PartialEq)]
pub struct KnownQuestion {
    /// The cache entry that holds the answer.
    pub entry: CacheKey,
    /// All that requests must agree in beside the question.
    pub scope: [u8; 32],
    /// What was asked.
    pub question: String,
    /// Its unit vector.
    pub embedding: Vec<f32>,
    /// NearQuestion that others must have to it.
    pub cosine_min: f32,
    /// When the row or its answer last changed.
    pub changed_at: DateTime<Utc>,
    /// When the answer is not reused any more.
    pub expires_at: DateTime<Utc>,
}

/// A hit that was run again, with both answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Recheck {
    /// The job that was given another's answer.
    pub job: JobId,
    /// The entry it came from.
    pub entry: CacheKey,
    /// NearQuestion of the two questions.
    pub cosine: f32,
    /// What it was given.
    pub given: String,
    /// What the model answers to its own question; `None` when the copy ended without an answer.
    pub own: Option<String>,
}

/// What a recheck came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecheckOutcome {
    /// The job that was given another's answer.
    pub job: JobId,
    /// The entry it came from.
    pub entry: CacheKey,
    /// Whether both answers say the same; `None` when there was none to compare.
    pub agrees: Option<bool>,
    /// NearQuestion that the entry asks for from now on, if it did not ask for more.
    pub cosine_min: Option<f32>,
}

/// An embedding as SQLite keeps it: 32-bit floats, little-endian.
pub(super) fn to_bytes(embedding: &[f32]) -> Vec<u8> {
    embedding.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// The inverse of [`to_bytes`]; a rest that is no float is left out.
pub(super) fn from_bytes(bytes: &[u8]) -> Vec<f32> {
    let (floats, _) = bytes.as_chunks::<4>();
    floats.iter().copied().map(f32::from_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeddings_come_back_as_they_were() {
        let embedding = [0.25, -1.0, f32::MIN_POSITIVE];
        assert_eq!(from_bytes(&to_bytes(&embedding)), embedding);
    }
}
