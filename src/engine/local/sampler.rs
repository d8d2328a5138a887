//! Logits become a token: greedy, or drawn with temperature, top-k, top-p and min-p, after
//! penalties and biases and among the tokens that a format allows.

mod cuts;
mod penalties;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::{engine::signals::Spread, job::Sampling};

use self::{
    cuts::{Cuts, likeliest},
    penalties::{Penalties, forbid},
};
use super::cpu::kernels::{Isa, highest_two, softmax_sums};

/// Chooses tokens for one sequence; its random numbers are its own, whoever shares the batch.
#[derive(Debug)]
pub(super) struct Sampler {
    cuts: Option<Cuts>,
    penalties: Option<Penalties>,
    /// Alternatives that are told beside each token; `None` where nobody asked for any.
    alternatives: Option<usize>,
    random: StdRng,
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Choice {
    pub(super) token: u32,
    /// Natural logarithm of the model's own probability, before penalties, temperature and cuts.
    pub(super) logprob: f32,
    /// Of the distribution that it was chosen from, likewise as the model gave it.
    pub(super) spread: Spread,
    /// The likeliest tokens with their log-probabilities, as many as were asked for.
    pub(super) alternatives: Vec<(u32, f32)>,
}

/// Why no token can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoChoice {
    /// A logit is infinite or no number: the computation went wrong.
    NotFinite,
    /// The format allows no token of the vocabulary.
    NothingAllowed,
}

impl Sampler {
    /// A sampler for what follows `prompt`.
    pub(super) fn new(sampling: &Sampling, seed_default: u64, prompt: &[u32]) -> Self {
        Self {
            cuts: Cuts::of(sampling),
            penalties: Penalties::of(sampling, prompt),
            alternatives: sampling.logprobs.map(usize::from),
            random: StdRng::seed_from_u64(sampling.seed.unwrap_or(seed_default)),
        }
    }

    /// Chooses the next token, among those whose bits are set in `allowed` where a format asks so.
    ///
    /// # Errors
    /// [`NoChoice`] when the logits are not all finite, or nothing is allowed.
    pub(super) fn choose(
        &mut self,
        logits: &[f32],
        allowed: Option<&[u32]>,
    ) -> Result<Choice, NoChoice> {
        let isa = Isa::best();
        let own = highest_two(isa, logits);
        if logits.is_empty() || !own.all_finite {
            return Err(NoChoice::NotFinite);
        }
        let token = if self.penalties.is_none() && allowed.is_none() {
            self.pick(logits, own.first)
        } else {
            let mut changed = logits.to_vec();
            if let Some(penalties) = &self.penalties {
                penalties.apply(&mut changed);
            }
            if let Some(allowed) = allowed {
                forbid(&mut changed, allowed);
            }
            let highest = highest_two(isa, &changed).first;
            if highest == f32::NEG_INFINITY {
                return Err(NoChoice::NothingAllowed);
            }
            self.pick(&changed, highest)
        };
        if let Some(penalties) = &mut self.penalties {
            penalties.note(token as u32);
        }
        // Differences in f64, where none of two finite f32 overflows. With z the logits less the
        // highest and Z the sum of e^z, entropy is ln Z - sum(z e^z) / Z.
        let shifted = |logit: f32| f64::from(logit) - f64::from(own.first);
        let sums = softmax_sums(isa, logits, own.first, 1.0);
        let logprob = |logit: f32| (shifted(logit) - sums.weights.ln()) as f32;
        let alternatives = likeliest(logits, self.alternatives.unwrap_or(0));
        Ok(Choice {
            token: token as u32,
            logprob: logprob(logits[token]),
            spread: Spread {
                entropy: (sums.weights.ln() - sums.weighted / sums.weights).max(0.0) as f32,
                margin: ((1.0 - shifted(own.second).exp()) / sums.weights) as f32,
            },
            alternatives: alternatives
                .into_iter()
                .map(|(token, logit)| (token, logprob(logit)))
                .collect(),
        })
    }

    fn pick(&mut self, logits: &[f32], highest: f32) -> usize {
        match self.cuts {
            None => first_of(logits, highest),
            Some(cuts) => cuts.draw(logits, highest, self.random.random::<f64>()),
        }
    }
}

/// Where a value stands first.
fn first_of(values: &[f32], wanted: f32) -> usize {
    const PART: usize = 64;
    // Whole parts are compared at once, without a branch for each value.
    let has = |part: &[f32]| part.iter().fold(false, |found, v| found | (*v == wanted));
    let part = values.chunks(PART).position(has).unwrap_or(0) * PART;
    let within = values[part..].iter().position(|value| *value == wanted);
    part + within.unwrap_or(0)
}

#[cfg(test)]
mod tests;
