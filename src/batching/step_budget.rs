//! Limits the size of a step so that running answers get their next token within the latency target.

use super::cost::{StepCost, StepSize};

/// Prompt tokens that a step always computes beside decodes, so that prompts make progress.
pub(crate) const PREFILL_TOKENS_MIN: usize = 8;
/// A target below this multiple of the cheapest step could be met only by giving up batching, so it
/// is raised to this multiple.
const CHEAPEST_STEPS: f64 = 2.0;
/// Fraction of the limit to plan for: predictions are off by a few percent.
const PLANNED: f64 = 0.9;

/// Derives token budgets from a latency target and the observed cost of steps.
#[derive(Clone, Debug)]
pub(crate) struct StepBudget {
    cost: StepCost,
    step_seconds_max: Option<f64>,
}

impl StepBudget {
    /// A budget for steps of at most so many seconds while decodes run; `None` for no limit.
    pub(crate) fn new(step_seconds_max: Option<f64>) -> Self {
        Self {
            cost: StepCost::default(),
            step_seconds_max,
        }
    }

    /// Records a step's duration.
    pub(crate) fn observe(&mut self, size: StepSize, seconds: f64) {
        self.cost.observe(size, seconds);
    }

    /// Predicted seconds of a step of this size; `None` until enough steps were observed.
    pub(crate) fn seconds(&self, size: StepSize) -> Option<f64> {
        self.cost.seconds(size)
    }

    /// True when these decodes fit one step.
    pub(crate) fn fits(&self, decodes: StepSize) -> bool {
        self.is_within(decodes, decodes)
    }

    /// The number of prompt tokens, up to `most`, that may follow `from` others in a step of size
    /// `so_far`, of which `decodes` is the decodes' share.
    pub(crate) fn prefill_tokens(
        &self,
        decodes: StepSize,
        so_far: StepSize,
        from: usize,
        most: usize,
    ) -> usize {
        let fits = |tokens| self.is_within(decodes, so_far.and(StepSize::of(from, tokens)));
        if decodes.tokens == 0 || fits(most) {
            return most;
        }
        // Cost grows with length, so bisect.
        let (mut fit, mut beyond) = (0, most);
        while beyond - fit > 1 {
            let middle = fit + (beyond - fit) / 2;
            if fits(middle) {
                fit = middle;
            } else {
                beyond = middle;
            }
        }
        if so_far == decodes {
            fit = fit.max(PREFILL_TOKENS_MIN.min(most));
        }
        fit
    }

    fn is_within(&self, decodes: StepSize, step: StepSize) -> bool {
        let Some(target) = self.step_seconds_max else {
            return true;
        };
        let one = StepSize {
            tokens: 1,
            attended: decodes.attended / decodes.tokens.max(1),
        };
        match (self.seconds(step), self.seconds(one)) {
            (Some(seconds), Some(cheapest)) => {
                seconds <= PLANNED * target.max(CHEAPEST_STEPS * cheapest)
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine that takes 10 ms per step and 1 ms per token.
    fn step_budget(step_seconds_max: Option<f64>) -> StepBudget {
        let mut step_budget = StepBudget::new(step_seconds_max);
        for round in 0..60 {
            let size = StepSize {
                tokens: 1 + round * 37 % 50,
                attended: 500 + round * 71 % 400,
            };
            step_budget.observe(size, 0.01 + 1e-3 * size.tokens as f64);
        }
        step_budget
    }

    fn decodes(count: usize) -> StepSize {
        StepSize {
            tokens: count,
            attended: count * 100,
        }
    }

    #[test]
    fn prompts_fill_what_decodes_leave_of_the_target() {
        let step_budget = step_budget(Some(0.1));
        let tokens = step_budget.prefill_tokens(decodes(30), decodes(30), 0, 512);
        assert!(
            (42..=52).contains(&tokens),
            "10 + 30 + 50 ms is nine tenths of the target: {tokens}"
        );
        assert!(step_budget.prefill_tokens(decodes(60), decodes(60), 0, 512) < 35);
        assert_eq!(
            step_budget.prefill_tokens(decodes(0), decodes(0), 0, 512),
            512,
            "no decode waits"
        );
        assert_eq!(
            step_budget.prefill_tokens(decodes(90), decodes(90), 0, 512),
            PREFILL_TOKENS_MIN
        );
        let second = decodes(90).and(StepSize::of(0, PREFILL_TOKENS_MIN));
        assert_eq!(step_budget.prefill_tokens(decodes(90), second, 0, 512), 0);
    }

    #[test]
    fn an_unreachable_target_does_not_end_batching() {
        let step_budget = step_budget(Some(0.001));
        assert!(
            step_budget.fits(decodes(1)) && step_budget.fits(decodes(8)),
            "two cheapest steps are 22 ms"
        );
        assert!(!step_budget.fits(decodes(20)));
    }

    #[test]
    fn without_target_or_observations_nothing_is_limited() {
        assert!(step_budget(None).fits(decodes(1_000)));
        let fresh = StepBudget::new(Some(0.001));
        assert!(fresh.fits(decodes(1_000)));
        assert_eq!(fresh.prefill_tokens(decodes(5), decodes(5), 0, 512), 512);
    }
}
