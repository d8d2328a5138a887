//! Modifies logits before sampling: penalties, biases and forbidden tokens.

use std::collections::{BTreeMap, BTreeSet};

use crate::job::Sampling;

/// Penalties and biases of one sequence, and the tokens it has seen.
#[derive(Debug)]
pub(super) struct Penalties {
    repetition: f32,
    presence: f32,
    frequency: f32,
    bias: BTreeMap<u32, f32>,
    /// Tokens of prompt and answer; tracked only for the repetition penalty.
    seen: BTreeSet<u32>,
    /// Occurrences of each token in the answer.
    counts: BTreeMap<u32, u32>,
}

impl Penalties {
    /// `None` when no logit changes.
    pub(super) fn of(sampling: &Sampling, prompt: &[u32]) -> Option<Self> {
        let repeats = sampling.repetition_penalty != 1.0;
        let is_none = !repeats
            && sampling.presence_penalty == 0.0
            && sampling.frequency_penalty == 0.0
            && sampling.logit_bias.is_empty();
        (!is_none).then(|| Self {
            repetition: sampling.repetition_penalty,
            presence: sampling.presence_penalty,
            frequency: sampling.frequency_penalty,
            bias: sampling.logit_bias.clone(),
            seen: prompt.iter().copied().filter(|_| repeats).collect(),
            counts: BTreeMap::new(),
        })
    }

    /// Counts a token of the answer.
    pub(super) fn count(&mut self, token: u32) {
        if self.repetition != 1.0 {
            self.seen.insert(token);
        }
        *self.counts.entry(token).or_default() += 1;
    }

    /// Applies the repetition penalty as in transformers, then frequency and presence penalties as in
    /// OpenAI's API and vLLM, then the biases. Results are clamped to finite f32.
    pub(super) fn apply(&self, logits: &mut [f32]) {
        let mut change = |token: u32, change: &dyn Fn(f32) -> f32| {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = change(*logit).clamp(f32::MIN, f32::MAX);
            }
        };
        for token in &self.seen {
            change(*token, &|logit| {
                if logit > 0.0 {
                    logit / self.repetition
                } else {
                    logit * self.repetition
                }
            });
        }
        for (token, count) in &self.counts {
            let less = self.frequency * *count as f32 + self.presence;
            change(*token, &|logit| logit - less);
        }
        for (token, bias) in &self.bias {
            change(*token, &|logit| logit + bias);
        }
    }
}

/// Sets the logits of tokens whose bits are not set to minus infinity.
pub(super) fn forbid(logits: &mut [f32], allowed: &[u32]) {
    for (at, part) in logits.chunks_mut(32).enumerate() {
        let bits = allowed.get(at).copied().unwrap_or(0);
        if bits == u32::MAX {
            continue;
        }
        for (bit, logit) in part.iter_mut().enumerate() {
            if bits >> bit & 1 == 0 {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}
