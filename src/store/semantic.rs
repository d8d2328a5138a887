//! Semantic reuse: known questions, lookups and rechecks.

use chrono::{DateTime, Utc};

use crate::job::{CacheKey, JobId};

/// A question that may be answered from a similar one.
#[derive(Clone, Debug, PartialEq)]
pub struct Lookup {
    /// Digest of everything besides the question that two requests must share.
    pub scope: [u8; 32],
    /// The last user message.
    pub question: String,
    /// Revision of the encoder that made the embedding.
    pub embedder: String,
    /// The question's unit vector; empty when there is none, and then the question is not kept.
    pub embedding: Vec<f32>,
    /// Least cosine similarity that other questions need, until a recheck raises it.
    pub cosine_min: f32,
    /// The nearest known question, if one is near.
    pub nearest: Option<NearQuestion>,
}

/// How similar another question is, and whether its answer is reused.
#[derive(Clone, Debug, PartialEq)]
pub struct NearQuestion {
    /// The cache entry that holds its answer.
    pub entry: CacheKey,
    /// That question.
    pub question: String,
    /// Cosine similarity of the two.
    pub cosine: f32,
    /// Least cosine similarity that the entry needs.
    pub cosine_min: f32,
    /// What follows.
    pub outcome: NearOutcome,
    /// Set when a hit is drawn for a recheck: the probability of the draw.
    pub recheck: Option<f64>,
}

/// Whether a near question's answer is reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NearOutcome {
    /// It is, if it still exists.
    Hit,
    /// The job's model is asked first.
    Candidate,
    /// It is not, for this reason.
    Miss(&'static str),
}

/// A question with a ready answer.
#[derive(Clone, Debug, PartialEq)]
pub struct KnownQuestion {
    /// The cache entry that holds the answer.
    pub entry: CacheKey,
    /// Digest of everything besides the question that requests must share.
    pub scope: [u8; 32],
    /// The question.
    pub question: String,
    /// Its unit vector.
    pub embedding: Vec<f32>,
    /// Least cosine similarity that other questions need.
    pub cosine_min: f32,
    /// When the row or its answer last changed.
    pub changed_at: DateTime<Utc>,
    /// When the answer expires.
    pub expires_at: DateTime<Utc>,
}

/// A rerun hit with both answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Recheck {
    /// The job that got another job's answer.
    pub job: JobId,
    /// The entry it came from.
    pub entry: CacheKey,
    /// Cosine similarity of the two questions.
    pub cosine: f32,
    /// The answer it got.
    pub given: String,
    /// The model's answer to its own question; `None` when the copy ended without one.
    pub own: Option<String>,
}

/// The outcome of a recheck.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecheckOutcome {
    /// The job that got another job's answer.
    pub job: JobId,
    /// The entry it came from.
    pub entry: CacheKey,
    /// Whether the answers are equivalent; `None` without one to compare.
    pub agrees: Option<bool>,
    /// Least cosine similarity that the entry needs from now on, unless it is higher already.
    pub cosine_min: Option<f32>,
}

/// An embedding as SQLite keeps it: 32-bit floats, little-endian.
pub(super) fn to_bytes(embedding: &[f32]) -> Vec<u8> {
    embedding.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// The inverse of [`to_bytes`]; ignores an incomplete float at the end.
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
