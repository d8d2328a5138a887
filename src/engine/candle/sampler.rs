//! Logits become a token: greedy, or drawn with temperature, top-k and top-p.

use std::cmp::Ordering;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::{engine::signals::Spread, job::Sampling};

/// Chooses tokens for one sequence; its random numbers are its own, whoever shares the batch.
#[derive(Debug)]
pub(super) struct Sampler {
    temperature: f32,
    top_p: f32,
    top_k: usize,
    random: StdRng,
}

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Choice {
    pub(super) token: u32,
    /// Natural logarithm of the model's own probability, before temperature and cuts.
    pub(super) logprob: f32,
    /// Of the distribution that it was chosen from, likewise before temperature and cuts.
    pub(super) spread: Spread,
}

/// A logit is infinite or no number: the computation went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotFinite;

impl Sampler {
    pub(super) fn new(sampling: &Sampling, seed_default: u64) -> Self {
        Self {
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k as usize,
            random: StdRng::seed_from_u64(sampling.seed.unwrap_or(seed_default)),
        }
    }

    /// Chooses the next token.
    ///
    /// # Errors
    /// [`NotFinite`] when the logits are not all finite.
    pub(super) fn choose(&mut self, logits: &[f32]) -> Result<Choice, NotFinite> {
        let (best, second) = best(logits)?;
        let token = if self.temperature > 0.0 {
            self.draw(logits, logits[best])
        } else {
            best
        };
        // In f64, where no difference of two finite f32 overflows. With z the logits less the
        // highest and Z the sum of e^z, entropy is ln Z - sum(z e^z) / Z.
        let shifted = |logit: f32| f64::from(logit) - f64::from(logits[best]);
        let (mut total, mut weighted) = (0.0_f64, 0.0_f64);
        for logit in logits {
            let z = shifted(*logit);
            let weight = z.exp();
            total += weight;
            weighted += z * weight;
        }
        let second = second.map_or(0.0, |token| shifted(logits[token]).exp());
        Ok(Choice {
            token: token as u32,
            logprob: (shifted(logits[token]) - total.ln()) as f32,
            spread: Spread {
                entropy: (total.ln() - weighted / total).max(0.0) as f32,
                margin: ((1.0 - second) / total) as f32,
            },
        })
    }

    /// As transformers orders it: temperature, then top-k, then top-p.
    fn draw(&mut self, logits: &[f32], highest: f32) -> usize {
        let mut kept: Vec<(usize, f64)> = logits
            .iter()
            .map(|logit| (f64::from(logit - highest) / f64::from(self.temperature)).exp())
            .enumerate()
            .collect();
        // Ties go to the smaller token, so that a draw is the same everywhere.
        let likelier = |a: &(usize, f64), b: &(usize, f64)| -> Ordering {
            b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
        };
        if (1..kept.len()).contains(&self.top_k) {
            kept.select_nth_unstable_by(self.top_k, likelier);
            kept.truncate(self.top_k);
        }
        if self.top_p < 1.0 {
            kept.sort_unstable_by(likelier);
            let target = kept.iter().map(|(_, weight)| weight).sum::<f64>() * f64::from(self.top_p);
            let mut reached = 0.0;
            let enough = kept.iter().position(|(_, weight)| {
                reached += weight;
                reached >= target
            });
            kept.truncate(enough.map_or(kept.len(), |at| at + 1));
        } else {
            kept.sort_unstable_by_key(|(token, _)| *token);
        }
        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        let mut point = self.random.random::<f64>() * total;
        let drawn = kept.iter().find(|(_, weight)| {
            point -= weight;
            point < 0.0
        });
        // Rounding may leave the point just beyond the last token.
        drawn.or(kept.last()).map_or(0, |(token, _)| *token)
    }
}

/// The first of the highest logits, and the first of the highest of the others.
fn best(logits: &[f32]) -> Result<(usize, Option<usize>), NotFinite> {
    let (mut best, mut second) = (0, None);
    for (token, logit) in logits.iter().enumerate() {
        if !logit.is_finite() {
            return Err(NotFinite);
        }
        if *logit > logits[best] {
            second = Some(best);
            best = token;
        } else if token > 0 && second.is_none_or(|second: usize| *logit > logits[second]) {
            second = Some(token);
        }
    }
    if logits.is_empty() {
        Err(NotFinite)
    } else {
        Ok((best, second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f32, top_k: u32, top_p: f32) -> Sampling {
        Sampling {
            temperature,
            top_p,
            top_k,
            seed: None,
            stop: Vec::new(),
            max_completion_tokens: 100,
        }
    }

    fn draws(sampling: &Sampling, seed: u64, logits: &[f32]) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling, seed);
        (0..2000)
            .map(|_| sampler.choose(logits).expect("finite").token)
            .collect()
    }

    const LOGITS: [f32; 4] = [0.0, 2.0, 1.0, 2.0];

    #[test]
    fn greedy_takes_the_first_of_the_best_with_its_own_probability() {
        let choice = Sampler::new(&sampling(0.0, 0, 1.0), 7)
            .choose(&LOGITS)
            .expect("finite");
        assert_eq!(choice.token, 1);
        let total: f32 = LOGITS.iter().map(|logit| logit.exp()).sum();
        assert!((choice.logprob - (2.0f32.exp() / total).ln()).abs() < 1e-6);
    }

    /// Log-probability, entropy and margin by the textbook: all probabilities, in f64.
    fn reference(logits: &[f32], token: usize) -> (f64, f64, f64) {
        let exps: Vec<f64> = logits.iter().map(|logit| f64::from(*logit).exp()).collect();
        let total: f64 = exps.iter().sum();
        let mut probabilities: Vec<f64> = exps.iter().map(|exp| exp / total).collect();
        let logprob = probabilities[token].ln();
        let entropy = probabilities.iter().map(|p| -p * p.ln()).sum();
        probabilities.sort_by(|a, b| b.total_cmp(a));
        (logprob, entropy, probabilities[0] - probabilities[1])
    }

    #[test]
    fn signals_agree_with_a_softmax_written_out() {
        let mut random = StdRng::seed_from_u64(5);
        for size in [2, 3, 17, 1000] {
            for spread in [0.1_f32, 3.0, 20.0] {
                let logits: Vec<f32> = (0..size)
                    .map(|_| (random.random::<f32>() - 0.5) * spread)
                    .collect();
                for temperature in [0.0, 1.5] {
                    let mut sampler = Sampler::new(&sampling(temperature, 0, 1.0), 3);
                    let choice = sampler.choose(&logits).expect("finite");
                    let (logprob, entropy, margin) = reference(&logits, choice.token as usize);
                    assert!((f64::from(choice.logprob) - logprob).abs() < 1e-5);
                    assert!((f64::from(choice.spread.entropy) - entropy).abs() < 1e-5);
                    assert!((f64::from(choice.spread.margin) - margin).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn signals_of_extreme_logits_are_numbers() {
        for logits in [
            vec![f32::MAX, f32::MIN],
            vec![f32::MIN, f32::MAX, f32::MAX],
            vec![7.0],
            vec![0.0; 5],
        ] {
            let choice = Sampler::new(&sampling(0.0, 0, 1.0), 1)
                .choose(&logits)
                .expect("finite");
            assert!(choice.logprob.is_finite() && choice.spread.entropy >= 0.0);
            assert!((0.0..=1.0).contains(&choice.spread.margin), "{logits:?}");
        }
    }

    #[test]
    fn a_seed_repeats_itself_and_frequencies_follow_probabilities() {
        let free = sampling(1.0, 0, 1.0);
        assert_eq!(draws(&free, 3, &LOGITS), draws(&free, 3, &LOGITS));
        assert_ne!(draws(&free, 3, &LOGITS), draws(&free, 4, &LOGITS));
        let drawn = draws(&free, 3, &LOGITS);
        let total: f64 = LOGITS.iter().map(|logit| f64::from(*logit).exp()).sum();
        for (token, logit) in LOGITS.iter().enumerate() {
            let share = drawn
                .iter()
                .filter(|drawn| **drawn as usize == token)
                .count() as f64
                / 2000.0;
            assert!(
                (share - f64::from(*logit).exp() / total).abs() < 0.04,
                "token {token}: {share}"
            );
        }
    }

    #[test]
    fn cuts_leave_only_the_likeliest() {
        assert!(
            draws(&sampling(1.0, 1, 1.0), 1, &LOGITS)
                .iter()
                .all(|token| *token == 1)
        );
        assert!(
            draws(&sampling(2.0, 3, 1.0), 1, &LOGITS)
                .iter()
                .all(|token| *token != 0)
        );
        // The two best have 0.799 of the probability, one alone 0.4.
        let nucleus = draws(&sampling(1.0, 0, 0.7), 1, &LOGITS);
        assert!(nucleus.iter().all(|token| [1, 3].contains(token)) && nucleus.contains(&3));
        assert!(
            draws(&sampling(1.0, 0, 1e-9), 1, &LOGITS)
                .iter()
                .all(|token| *token == 1)
        );
    }

    #[test]
    fn logits_that_are_no_numbers_are_a_fault() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut sampler = Sampler::new(&sampling(0.0, 0, 1.0), 1);
            assert_eq!(sampler.choose(&[1.0, bad]), Err(NotFinite));
        }
    }
}
