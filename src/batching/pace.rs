//! How much a step may hold, so that no running answer waits longer for its next token than the
//! latency target says.

use super::cost::{StepCost, StepSize};

/// Prompt tokens that a step computes beside decodes whatever they cost, so that prompts get on.
pub const PREFILL_TOKENS_MIN: usize = 8;
/// A target below this many times the cheapest step cannot be met by smaller steps, only by giving
/// up on batching; so it counts as this much.
const CHEAPEST_STEPS: f64 = 2.0;
/// Part of the limit that is planned for: what a step is expected to cost is a few percent off.
const PLANNED: f64 = 0.9;

/// Turns a latency target and what steps were seen to cost into budgets.
#[derive(Clone, Debug)]
pub struct Pace {
    cost: StepCost,
    step_seconds_max: Option<f64>,
}

impl Pace {
    /// A pace for steps of up to so many seconds, as far as they hold up decodes; `None` for no limit.
    pub fn new(step_seconds_max: Option<f64>) -> Self {
        Self {
            cost: StepCost::default(),
            step_seconds_max,
        }
    }

    /// Takes in what a step took.
    pub fn observe(&mut self, size: StepSize, seconds: f64) {
        self.cost.observe(size, seconds);
    }

    /// Seconds that a step of this size takes; `None` until enough steps were seen.
    pub fn seconds(&self, size: StepSize) -> Option<f64> {
        self.cost.seconds(size)
    }

    /// True when so many decodes fit a step together.
    pub fn fits(&self, decodes: StepSize) -> bool {
        self.is_within(decodes, decodes)
    }

    /// The most tokens, up to `most`, that may follow `from` others in a step that holds `so_far`,
    /// of which `decodes` are the decodes.
    pub fn prefill_tokens(
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
        // A longer part is never cheaper: the border is found by halving.
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

    /// A machine that takes 10 ms a step and 1 ms a token.
    fn pace(step_seconds_max: Option<f64>) -> Pace {
        let mut pace = Pace::new(step_seconds_max);
        for round in 0..60 {
            let size = StepSize {
                tokens: 1 + round * 37 % 50,
                attended: 500 + round * 71 % 400,
            };
            pace.observe(size, 0.01 + 1e-3 * size.tokens as f64);
        }
        pace
    }

    fn decodes(count: usize) -> StepSize {
        StepSize {
            tokens: count,
            attended: count * 100,
        }
    }

    #[test]
    fn prompts_fill_what_the_target_leaves_beside_decodes() {
        let pace = pace(Some(0.1));
        let tokens = pace.prefill_tokens(decodes(30), decodes(30), 0, 512);
        assert!(
            (42..=52).contains(&tokens),
            "10 + 30 + 50 ms is nine tenths of the target: {tokens}"
        );
        assert!(pace.prefill_tokens(decodes(60), decodes(60), 0, 512) < 35);
        assert_eq!(
            pace.prefill_tokens(decodes(0), decodes(0), 0, 512),
            512,
            "nobody is held up"
        );
        assert_eq!(
            pace.prefill_tokens(decodes(90), decodes(90), 0, 512),
            PREFILL_TOKENS_MIN
        );
        let second = decodes(90).and(StepSize::of(0, PREFILL_TOKENS_MIN));
        assert_eq!(pace.prefill_tokens(decodes(90), second, 0, 512), 0);
    }

    #[test]
    fn a_target_that_no_step_meets_does_not_end_batching() {
        let pace = pace(Some(0.001));
        assert!(
            pace.fits(decodes(1)) && pace.fits(decodes(8)),
            "two cheapest steps are 22 ms"
        );
        assert!(!pace.fits(decodes(20)));
    }

    #[test]
    fn without_a_target_or_without_experience_nothing_is_held_back() {
        assert!(pace(None).fits(decodes(1_000)));
        let fresh = Pace::new(Some(0.001));
        assert!(fresh.fits(decodes(1_000)));
        assert_eq!(fresh.prefill_tokens(decodes(5), decodes(5), 0, 512), 512);
    }
}
