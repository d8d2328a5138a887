//! Collects an answer's [`Signals`] token by token: four numbers per token, never a distribution.

use crate::job::{DistributionSignals, Signals};

/// Lowest log-probability kept. Servers report -9999 or nothing for a token outside their list;
/// below this bound the differences mean nothing.
const LOGPROB_MIN: f32 = -100.0;

/// Statistics of a next-token distribution besides the chosen token's probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct DistributionStats {
    /// Entropy in nats.
    pub(super) entropy: f32,
    /// Probability of the most likely token minus that of the second.
    pub(super) margin: f32,
}

/// Collects signals.
#[derive(Clone, Debug, Default)]
pub(super) struct SignalCollector {
    logprobs: Vec<f32>,
    entropy_sum: f64,
    entropy_max: f32,
    margin_min: f32,
    /// Tokens with known statistics.
    with_stats: usize,
}

impl SignalCollector {
    /// Adds the next token. NaN counts as [`LOGPROB_MIN`].
    pub(super) fn push(&mut self, logprob: f32, stats: Option<DistributionStats>) {
        self.logprobs.push(if logprob.is_nan() {
            LOGPROB_MIN
        } else {
            logprob.clamp(LOGPROB_MIN, 0.0)
        });
        let Some(stats) = stats else { return };
        self.margin_min = if self.with_stats == 0 {
            stats.margin
        } else {
            self.margin_min.min(stats.margin)
        };
        self.entropy_sum += f64::from(stats.entropy);
        self.entropy_max = self.entropy_max.max(stats.entropy);
        self.with_stats += 1;
    }

    /// The signals; `None` for an answer without tokens.
    pub(super) fn finish(&self, truncated: bool) -> Option<Signals> {
        let first_logprob = *self.logprobs.first()?;
        let count = self.logprobs.len();
        let sum: f64 = self.logprobs.iter().copied().map(f64::from).sum();
        let mut sorted = self.logprobs.clone();
        sorted.sort_unstable_by(f32::total_cmp);
        Some(Signals {
            tokens: u32::try_from(count).unwrap_or(u32::MAX),
            mean_logprob: (sum / count as f64) as f32,
            min_logprob: sorted[0],
            p10_logprob: quantile(&sorted, 0.1),
            p50_logprob: quantile(&sorted, 0.5),
            first_logprob,
            distribution: (self.with_stats == count).then(|| DistributionSignals {
                mean_entropy: (self.entropy_sum / count as f64) as f32,
                max_entropy: self.entropy_max,
                min_margin: self.margin_min,
            }),
            truncated,
        })
    }
}

/// Quantile of sorted values, interpolated (Hyndman and Fan's type 7, numpy's default).
fn quantile(sorted: &[f32], share: f64) -> f32 {
    let at = share * (sorted.len() - 1) as f64;
    let (low, part) = (at.floor() as usize, at.fract());
    let next = sorted[(low + 1).min(sorted.len() - 1)];
    (f64::from(sorted[low]) * (1.0 - part) + f64::from(next) * part) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_match_numpy() {
        // numpy.quantile([-4, -3, -1, -0.5], [0.1, 0.5]) is [-3.7, -2].
        let mut collector = SignalCollector::default();
        for logprob in [-1.0, -4.0, -0.5, -3.0] {
            collector.push(logprob, None);
        }
        let signals = collector.finish(true).expect("tokens");
        assert!((signals.p10_logprob + 3.7).abs() < 1e-6);
        assert!((signals.p50_logprob + 2.0).abs() < 1e-6);
        assert_eq!((signals.min_logprob, signals.first_logprob), (-4.0, -1.0));
        assert!((signals.mean_logprob + 2.125).abs() < 1e-6);
        assert_eq!((signals.tokens, signals.truncated), (4, true));
        assert_eq!(signals.distribution, None);
    }

    #[test]
    fn nan_counts_as_the_minimum_and_no_tokens_give_no_signals() {
        assert_eq!(SignalCollector::default().finish(false), None);
        for odd in [f32::NAN, f32::NEG_INFINITY, -9999.0] {
            let mut collector = SignalCollector::default();
            collector.push(odd, None);
            let signals = collector.finish(false).expect("a token");
            assert_eq!(signals.min_logprob, LOGPROB_MIN);
            assert_eq!(signals.mean_logprob, LOGPROB_MIN);
        }
        let mut collector = SignalCollector::default();
        collector.push(0.5, None);
        assert_eq!(collector.finish(false).expect("a token").min_logprob, 0.0);
    }

    #[test]
    fn distribution_signals_need_every_token() {
        let stats = |entropy, margin| Some(DistributionStats { entropy, margin });
        let mut collector = SignalCollector::default();
        collector.push(-0.1, stats(0.5, 0.8));
        collector.push(-0.2, stats(1.5, 0.3));
        let distribution = collector.finish(false).and_then(|s| s.distribution);
        let distribution = distribution.expect("both tokens have statistics");
        assert_eq!(
            (
                distribution.mean_entropy,
                distribution.max_entropy,
                distribution.min_margin
            ),
            (1.0, 1.5, 0.3)
        );
        collector.push(-0.2, None);
        assert_eq!(collector.finish(false).expect("tokens").distribution, None);
    }
}
