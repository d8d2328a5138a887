//! Log-probabilities of an answer's tokens, as OpenAI's API writes them.

use serde::{Deserialize, Serialize};

/// A token and how likely the model held it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Likelihood {
    /// The token's text; bytes that are no character by themselves are U+FFFD in it.
    pub token: String,
    /// Natural logarithm of the model's own probability, before penalties, temperature and cuts.
    pub logprob: f32,
    /// The token's bytes, where they are known: a character may be spread over several tokens.
    pub bytes: Option<Vec<u8>>,
}

/// A generated token, and the likeliest ones in its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token that was chosen.
    #[serde(flatten)]
    pub chosen: Likelihood,
    /// The likeliest tokens, the likeliest first; as many as were asked for.
    #[serde(default)]
    pub top_logprobs: Vec<Likelihood>,
}
