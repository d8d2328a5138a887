//! Learns what a step costs from the steps that were computed.

/// What determines a step's duration.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct StepSize {
    /// Tokens computed.
    pub tokens: usize,
    /// Positions attended to, summed over the tokens.
    pub attended: usize,
}

impl StepSize {
    /// The size of computing `tokens` tokens that follow `from` others.
    pub(crate) fn of(from: usize, tokens: usize) -> Self {
        // The token at position p attends to p + 1 positions.
        let attended = tokens * from + tokens * (tokens + 1) / 2;
        Self { tokens, attended }
    }

    /// The sum of both.
    #[must_use]
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            tokens: self.tokens + other.tokens,
            attended: self.attended + other.attended,
        }
    }
}

/// Predicts a step's seconds as a constant, plus a cost per token and one per attended position.
///
/// Least squares over past steps with exponential decay, regularised towards the last estimate so
/// that steps of a single size do not erase what is known about others, and never negative.
#[derive(Clone, Debug)]
pub(crate) struct StepCost {
    /// Decayed sums of products of the sizes (1, tokens, attended), in units near 1.
    products: [[f64; 3]; 3],
    /// Decayed sums of the sizes times the seconds.
    times: [f64; 3],
    seconds: [f64; 3],
    steps: u32,
}

/// Weight of a step relative to the next: roughly the last 100 steps count.
const DECAY: f64 = 0.99;
/// Regularisation towards the last estimate.
const PULL: f64 = 1e-3;
/// Scales tokens and positions to values near 1, for numerical stability.
const UNITS: [f64; 3] = [1.0, 1e-2, 1e-5];
/// Steps needed before an estimate is given.
const STEPS_MIN: u32 = 8;

impl Default for StepCost {
    fn default() -> Self {
        Self {
            products: [[0.0; 3]; 3],
            times: [0.0; 3],
            seconds: [0.0; 3],
            steps: 0,
        }
    }
}

impl StepCost {
    /// Records a step's duration.
    pub(crate) fn observe(&mut self, size: StepSize, seconds: f64) {
        if !seconds.is_finite() || seconds < 0.0 || size.tokens == 0 {
            return;
        }
        let x = scaled(size);
        for (row, left) in self.products.iter_mut().zip(x) {
            for (sum, right) in row.iter_mut().zip(x) {
                *sum = *sum * DECAY + left * right;
            }
        }
        for (sum, left) in self.times.iter_mut().zip(x) {
            *sum = *sum * DECAY + left * seconds;
        }
        self.steps = self.steps.saturating_add(1);
        self.seconds = self.fit();
    }

    /// Predicted seconds of a step of this size; `None` until enough steps were observed.
    pub(crate) fn seconds(&self, size: StepSize) -> Option<f64> {
        (self.steps >= STEPS_MIN).then(|| {
            let parts = scaled(size).into_iter().zip(self.seconds);
            parts.map(|(size, seconds)| size * seconds).sum()
        })
    }

    /// Non-negative least squares: fixes the most negative coefficient at 0 until none is negative.
    fn fit(&self) -> [f64; 3] {
        let mut free = [true; 3];
        loop {
            let solution = self.solve(free);
            let lowest = (0..3)
                .filter(|at| free[*at] && solution[*at] < 0.0)
                .min_by(|a, b| solution[*a].total_cmp(&solution[*b]));
            match lowest {
                Some(at) => free[at] = false,
                None => return solution,
            }
        }
    }

    fn solve(&self, free: [bool; 3]) -> [f64; 3] {
        let mut rows = [[0.0; 4]; 3];
        for (at, row) in rows.iter_mut().enumerate() {
            if !free[at] {
                row[at] = 1.0;
                continue;
            }
            for other in (0..3).filter(|other| free[*other]) {
                row[other] = self.products[at][other];
            }
            row[at] += PULL;
            row[3] = self.times[at] + PULL * self.seconds[at];
        }
        // Elimination without pivoting: the matrix is positive definite.
        for at in 0..3 {
            for below in at + 1..3 {
                let pivot = rows[at];
                let factor = rows[below][at] / pivot[at];
                for (value, above) in rows[below].iter_mut().zip(pivot) {
                    *value -= factor * above;
                }
            }
        }
        let mut solution = [0.0; 3];
        for at in (0..3).rev() {
            let known: f64 = (at + 1..3).map(|c| rows[at][c] * solution[c]).sum();
            solution[at] = (rows[at][3] - known) / rows[at][at];
        }
        solution
    }
}

fn scaled(size: StepSize) -> [f64; 3] {
    [
        UNITS[0],
        size.tokens as f64 * UNITS[1],
        size.attended as f64 * UNITS[2],
    ]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_chunk_attends_to_itself_and_all_before_it() {
        assert_eq!(
            StepSize::of(0, 3),
            StepSize {
                tokens: 3,
                attended: 1 + 2 + 3
            }
        );
        assert_eq!(
            StepSize::of(10, 1),
            StepSize {
                tokens: 1,
                attended: 11
            }
        );
        let both = StepSize::of(0, 2).and(StepSize::of(2, 1));
        assert_eq!(both, StepSize::of(0, 3));
    }

    proptest! {
        #[test]
        fn learns_a_machines_cost_and_follows_its_changes(
            fixed in 0.0f64..0.05,
            per_token in 1e-5f64..5e-3,
            per_position in 0.0f64..2e-6,
            slower in 1.0f64..3.0,
            steps in prop::collection::vec((0usize..33, 0usize..400, 1usize..600), 60..90),
        ) {
            let mut cost = StepCost::default();
            for (round, factor) in [(0, 1.0), (1, slower)] {
                let truth = |size: StepSize| {
                    factor * (fixed + per_token * size.tokens as f64 + per_position * size.attended as f64)
                };
                // The second round is long enough to forget the first.
                for (decodes, prefill, context) in steps.iter().cycle().take(steps.len() * (1 + 7 * round)) {
                    let decode = StepSize { tokens: *decodes, attended: decodes * context };
                    let size = decode.and(StepSize::of(*context, *prefill));
                    cost.observe(size, truth(size));
                }
                for (decodes, prefill, context) in &steps {
                    let size = StepSize { tokens: decodes + prefill + 1, attended: decodes * context };
                    let found = cost.seconds(size).expect("enough steps");
                    prop_assert!((found - truth(size)).abs() <= 0.15 * truth(size) + 1e-4, "{found} for {}", truth(size));
                }
            }
        }

        #[test]
        fn predictions_are_never_negative(
            steps in prop::collection::vec((0usize..600, 0usize..100_000, 0.0f64..10.0), 0..60),
        ) {
            let mut cost = StepCost::default();
            for (tokens, attended, seconds) in steps {
                cost.observe(StepSize { tokens, attended }, seconds);
            }
            cost.observe(StepSize::of(0, 1), f64::NAN);
            for size in [StepSize::of(0, 1), StepSize::of(1000, 600)] {
                prop_assert!(cost.seconds(size).is_none_or(|seconds| seconds >= 0.0 && seconds.is_finite()));
            }
        }
    }

    #[test]
    fn steps_of_one_size_keep_the_estimates_for_others() {
        let truth = |size: StepSize| 0.01 + 1e-3 * size.tokens as f64;
        let mut cost = StepCost::default();
        for tokens in (1..60).chain(std::iter::repeat_n(8, 2_000)) {
            cost.observe(StepSize::of(0, tokens), truth(StepSize::of(0, tokens)));
        }
        let large = StepSize::of(0, 200);
        let found = cost.seconds(large).expect("enough steps");
        assert!((found / truth(large) - 1.0).abs() < 0.3, "{found}");
    }
}
