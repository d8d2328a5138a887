//! Log-probabilities of an answer's tokens, as OpenAI's API writes them.

use serde::{Deserialize, Serialize};

/// A token and its probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Likelihood {
    /// The token's text; an incomplete character is U+FFFD.
    pub token: String,
    /// Natural logarithm of the model's probability, before penalties, temperature and truncation.
    pub logprob: f32,
    /// The token's bytes, where they are known: a character may be spread over several tokens.
    pub bytes: Option<Vec<u8>>,
}

/// A generated token and its most likely alternatives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token that was chosen.
    #[serde(flatten)]
    pub chosen: Likelihood,
    /// The most likely tokens, in descending order; as many as requested.
    #[serde(default)]
    pub top_logprobs: Vec<Likelihood>,
}
