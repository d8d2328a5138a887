//! Turns logits into a token: greedy, or sampled with temperature, top-k, top-p and min-p, after
//! penalties and biases, among the tokens that the format allows.

mod filter;
mod penalties;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::{engine::signals::DistributionStats, job::Sampling};

use self::{
    filter::{SamplingFilter, most_likely},
    penalties::{Penalties, forbid},
};
use super::cpu::kernels::{Isa, highest_two, softmax_sums};

/// Chooses tokens for one sequence; its random numbers do not depend on the rest of the batch.
#[derive(Debug)]
pub(super) struct Sampler {
    filter: Option<SamplingFilter>,
    penalties: Option<Penalties>,
    /// Alternatives to report per token; `None` if not requested.
    alternatives: Option<usize>,
    random: StdRng,
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SampledToken {
    pub(super) token: u32,
    /// Natural logarithm of the model's probability, before penalties, temperature and filters.
    pub(super) logprob: f32,
    /// Statistics of the model's distribution, likewise unmodified.
    pub(super) stats: DistributionStats,
    /// The most likely tokens with their log-probabilities, as many as requested.
    pub(super) alternatives: Vec<(u32, f32)>,
}

/// Why no token can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SamplingError {
    /// A logit is infinite or NaN: the computation failed.
    NotFinite,
    /// The format allows no token.
    NothingAllowed,
}

impl Sampler {
    /// A sampler for the tokens after `prompt`.
    pub(super) fn new(sampling: &Sampling, seed_default: u64, prompt: &[u32]) -> Self {
        Self {
            filter: SamplingFilter::of(sampling),
            penalties: Penalties::of(sampling, prompt),
            alternatives: sampling.logprobs.map(usize::from),
            random: StdRng::seed_from_u64(sampling.seed.unwrap_or(seed_default)),
        }
    }

    /// Chooses the next token, among those whose bits are set in `allowed` if a format applies.
    ///
    /// # Errors
    /// [`SamplingError`] when the logits are not all finite, or no token is allowed.
    pub(super) fn choose(
        &mut self,
        logits: &[f32],
        allowed: Option<&[u32]>,
    ) -> Result<SampledToken, SamplingError> {
        let isa = Isa::best();
        let own = highest_two(isa, logits);
        if logits.is_empty() || !own.all_finite {
            return Err(SamplingError::NotFinite);
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
                return Err(SamplingError::NothingAllowed);
            }
            self.pick(&changed, highest)
        };
        if let Some(penalties) = &mut self.penalties {
            penalties.count(token as u32);
        }
        // Differences of finite f32 may overflow f32, so use f64. With z the logits minus the highest and
        // Z the sum of e^z, the entropy is ln Z - sum(z e^z) / Z.
        let shifted = |logit: f32| f64::from(logit) - f64::from(own.first);
        let sums = softmax_sums(isa, logits, own.first, 1.0);
        let logprob = |logit: f32| (shifted(logit) - sums.weights.ln()) as f32;
        let alternatives = most_likely(logits, self.alternatives.unwrap_or(0));
        Ok(SampledToken {
            token: token as u32,
            logprob: logprob(logits[token]),
            stats: DistributionStats {
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
        match self.filter {
            None => first_of(logits, highest),
            Some(filter) => filter.draw(logits, highest, self.random.random::<f64>()),
        }
    }
}

/// Index of the first occurrence of a value.
fn first_of(values: &[f32], wanted: f32) -> usize {
    const PART: usize = 64;
    // Compare whole chunks without a branch per value.
    let has = |part: &[f32]| part.iter().fold(false, |found, v| found | (*v == wanted));
    let part = values.chunks(PART).position(has).unwrap_or(0) * PART;
    let within = values[part..].iter().position(|value| *value == wanted);
    part + within.unwrap_or(0)
}

#[cfg(test)]
mod tests;
