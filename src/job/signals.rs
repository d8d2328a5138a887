//! Signals of an answer's tokens, from which its confidence is computed.

use serde::{Deserialize, Serialize};

/// Statistics over the generated tokens of one answer, the end-of-sequence token included where the
/// engine counts it. Log-probabilities are natural logarithms of the model's probabilities before
/// temperature and truncation (top-p, top-k, min-p), so they are never above 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Signals {
    /// Tokens generated; never 0.
    pub tokens: u32,
    /// Mean log-probability.
    pub mean_logprob: f32,
    /// The lowest log-probability.
    pub min_logprob: f32,
    /// The 10th percentile of the log-probabilities, interpolated.
    pub p10_logprob: f32,
    /// Their median, interpolated.
    pub p50_logprob: f32,
    /// The first token's log-probability.
    pub first_logprob: f32,
    /// Statistics that only an engine with whole distributions provides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distribution: Option<DistributionSignals>,
    /// True when the answer was cut off by its token limit or the context's end.
    pub truncated: bool,
}

impl Signals {
    /// The signals as stored in the database and in files of labelled answers.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and flags are representable in JSON")
    }
}

/// Statistics over the next-token distributions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DistributionSignals {
    /// Mean entropy in nats.
    pub mean_entropy: f32,
    /// Highest entropy in nats.
    pub max_entropy: f32,
    /// Smallest difference between the probabilities of the two likeliest tokens, 0 to 1.
    pub min_margin: f32,
}
