//! Quality against cost of a routing threshold and an escalation threshold, on jobs that both models
//! have answered.
//!
//! Pure arithmetic over recorded answers, so every point of a curve is evaluated on the same ones.

use serde::Serialize;

/// Most thresholds tried in each direction.
const STEPS_MAX: usize = 100;

/// A job that both models have answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelledJob {
    /// Its weight in the traffic; weights need no particular sum.
    pub weight: f64,
    /// The router's score, 0 to 1, higher for large.
    pub score: f64,
    /// Confidence in the small model's answer; `None` where it is unknown, which keeps the answer, and
    /// below 0 where there is no answer.
    pub confidence: Option<f64>,
    /// The small model's answer.
    pub small: Shot,
    /// The large model's answer.
    pub large: Shot,
}

/// One model's answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shot {
    /// Whether it is right.
    pub right: bool,
    /// Its cost, in any fixed unit.
    pub cost: f64,
}

/// Quality and cost of a pair of thresholds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Jobs from this score on go directly to the large model; above 1 none does.
    pub threshold: f64,
    /// Answers of lower confidence are escalated to it; 0 for none.
    pub escalate_below: f64,
    /// Share of the jobs that end with a right answer.
    pub accuracy: f64,
    /// Mean cost of a job, as a share of what the large model alone costs.
    pub cost: f64,
    /// Share of the jobs that go directly to the large model.
    pub direct: f64,
    /// Share of the jobs whose small answer is escalated.
    pub escalated: f64,
}

/// Evaluates two thresholds.
pub fn at(cases: &[LabelledJob], threshold: f64, escalate_below: f64) -> Point {
    let (mut total, mut always_large) = (0.0, 0.0);
    let (mut right, mut cost, mut direct, mut escalated) = (0.0, 0.0, 0.0, 0.0);
    for case in cases {
        let weight = case.weight;
        total += weight;
        always_large += weight * case.large.cost;
        let is_right = if case.score >= threshold {
            direct += weight;
            cost += weight * case.large.cost;
            case.large.right
        } else if case.confidence.is_some_and(|sure| sure < escalate_below) {
            escalated += weight;
            cost += weight * (case.small.cost + case.large.cost);
            case.large.right
        } else {
            cost += weight * case.small.cost;
            case.small.right
        };
        right += weight * f64::from(u8::from(is_right));
    }
    Point {
        threshold,
        escalate_below,
        accuracy: right / total,
        cost: cost / always_large,
        direct: direct / total,
        escalated: escalated / total,
    }
}

/// A threshold above every score.
pub const NEVER: f64 = 1.1;

/// The curve of the routing threshold alone, from always small to always large.
pub fn before_generation(cases: &[LabelledJob]) -> Vec<Point> {
    let scores = steps(cases.iter().map(|case| case.score));
    let thresholds = [NEVER].into_iter().chain(scores.into_iter().rev());
    thresholds.map(|step| at(cases, step, 0.0)).collect()
}

/// The curve of the escalation threshold alone, from always small to always both.
pub fn after_generation(cases: &[LabelledJob]) -> Vec<Point> {
    let confidences = confidences(cases);
    confidences
        .iter()
        .map(|step| at(cases, NEVER, *step))
        .collect()
}

/// The Pareto front of both thresholds: points by rising cost, each more accurate than all cheaper
/// ones.
pub fn both(cases: &[LabelledJob]) -> Vec<Point> {
    let scores = steps(cases.iter().map(|case| case.score));
    let confidences = confidences(cases);
    let mut points: Vec<Point> = [NEVER]
        .into_iter()
        .chain(scores)
        .flat_map(|score| confidences.iter().map(move |level| (score, *level)))
        .map(|(score, level)| at(cases, score, level))
        .collect();
    points.sort_by(|a, b| {
        a.cost
            .total_cmp(&b.cost)
            .then(b.accuracy.total_cmp(&a.accuracy))
    });
    let mut best = f64::NEG_INFINITY;
    points.retain(|point| {
        let is_better = point.accuracy > best;
        best = best.max(point.accuracy);
        is_better
    });
    points
}

/// The cheapest point of at least this accuracy.
pub fn cheapest(points: &[Point], accuracy_min: f64) -> Option<Point> {
    let enough = points.iter().filter(|point| point.accuracy >= accuracy_min);
    enough.min_by(|a, b| a.cost.total_cmp(&b.cost)).copied()
}

/// The lower bound on the cost of any policy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bound {
    /// Mean cost of a job, as a share of what the large model alone costs.
    pub cost: f64,
    /// Share of the jobs that end with a right answer.
    pub accuracy: f64,
    /// Share of the jobs that go to the large model.
    pub direct: f64,
}

/// The least cost at which any policy can reach an accuracy; `None` when none can.
///
/// An oracle that knows both answers pays for one model only: the cheaper one, unless that is wrong and
/// the other right. This is a fractional knapsack: the cheapest corrections first, and the needed part
/// of the last one, as by a randomised policy.
pub fn oracle(cases: &[LabelledJob], accuracy_min: f64) -> Option<Bound> {
    let share = |is: bool| f64::from(u8::from(is));
    let (mut total, mut always_large) = (0.0, 0.0);
    let (mut right, mut cost, mut direct) = (0.0, 0.0, 0.0);
    // Each correction's extra cost, weight, and change of the share of large.
    let mut corrections = Vec::new();
    for case in cases {
        let weight = case.weight;
        total += weight;
        always_large += weight * case.large.cost;
        let takes_large = case.large.cost < case.small.cost;
        let (cheap, costly) = match takes_large {
            true => (case.large, case.small),
            false => (case.small, case.large),
        };
        right += weight * share(cheap.right);
        cost += weight * cheap.cost;
        direct += weight * share(takes_large);
        if costly.right && !cheap.right {
            let to_large = share(!takes_large) - share(takes_large);
            corrections.push((costly.cost - cheap.cost, weight, to_large));
        }
    }
    corrections.sort_by(|a, b| a.0.total_cmp(&b.0));
    let enough = accuracy_min * total;
    for (more, weight, to_large) in corrections {
        let part = weight.min(enough - right);
        if part <= 0.0 {
            break;
        }
        right += part;
        cost += part * more;
        direct += part * to_large;
    }
    // The tolerance absorbs rounding.
    (right >= enough - 1e-9 * total).then_some(Bound {
        cost: cost / always_large,
        accuracy: right / total,
        direct: direct / total,
    })
}

fn confidences(cases: &[LabelledJob]) -> Vec<f64> {
    let sure = cases.iter().filter_map(|case| case.confidence);
    let above_all = steps(sure).into_iter().chain([NEVER]);
    [0.0].into_iter().chain(above_all).collect()
}

/// Distinct values, rising, thinned out evenly.
fn steps(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.dedup();
    if sorted.len() <= STEPS_MAX {
        return sorted;
    }
    let last = sorted.len() - 1;
    (0..STEPS_MAX)
        .map(|step| sorted[step * last / (STEPS_MAX - 1)])
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::scoring::cascade::*;

    fn case(score: f64, confidence: f64, small: bool, large: bool) -> LabelledJob {
        LabelledJob {
            weight: 1.0,
            score,
            confidence: Some(confidence),
            small: Shot {
                right: small,
                cost: 1.0,
            },
            large: Shot {
                right: large,
                cost: 4.0,
            },
        }
    }

    /// Two that small answers, one that it fails with low confidence, one that it fails with high
    /// confidence.
    fn cases() -> [LabelledJob; 4] {
        [
            case(0.1, 0.9, true, true),
            case(0.2, 0.95, true, false),
            case(0.7, 0.2, false, true),
            case(0.9, 0.8, false, true),
        ]
    }

    #[test]
    fn points_match_a_hand_count() {
        let cases = cases();
        let small = at(&cases, NEVER, 0.0);
        assert_eq!((small.accuracy, small.cost), (0.5, 0.25));
        let large = at(&cases, 0.0, 0.0);
        assert_eq!((large.accuracy, large.cost, large.direct), (0.75, 1.0, 1.0));
        let after = at(&cases, NEVER, 0.5);
        assert_eq!((after.accuracy, after.escalated), (0.75, 0.25));
        assert_eq!(after.cost, (4.0 + 4.0) / 16.0);
        let both = at(&cases, 0.9, 0.5);
        assert_eq!(both.accuracy, 1.0);
        assert_eq!(both.cost, (1.0 + 1.0 + 5.0 + 4.0) / 16.0);
        // Weights are shares: four times the last case is four of it.
        let mut heavy = cases;
        heavy[3].weight = 4.0;
        let many = [
            cases[0], cases[1], cases[2], cases[3], cases[3], cases[3], cases[3],
        ];
        assert_eq!(at(&heavy, 0.5, 0.3), at(&many, 0.5, 0.3));
    }

    #[test]
    fn unknown_confidence_is_kept_and_failures_are_escalated() {
        let mut cases = cases();
        cases[2].confidence = None;
        assert_eq!(at(&cases, NEVER, NEVER).escalated, 0.75);
        cases[2].confidence = Some(-1.0);
        assert_eq!(at(&cases, NEVER, 0.0).escalated, 0.25);
    }

    #[test]
    fn both_thresholds_are_never_worse_than_one() {
        let mut cases = Vec::new();
        for at in 0..400 {
            let (a, b) = (
                f64::from(at * 37 % 400) / 400.0,
                f64::from(at * 91 % 400) / 400.0,
            );
            cases.push(case(a, b, (a + b) < 0.9, at % 10 != 0));
        }
        let (before, after, both) = (
            before_generation(&cases),
            after_generation(&cases),
            both(&cases),
        );
        let small = at(&cases, NEVER, 0.0);
        assert_eq!(
            (before[0].accuracy, after[0].accuracy),
            (small.accuracy, small.accuracy)
        );
        assert_eq!(before[before.len() - 1].cost, 1.0);
        assert_eq!(after[after.len() - 1].cost, 1.25);
        assert!(before.len() <= STEPS_MAX + 1 && after.len() <= STEPS_MAX + 2);
        for point in before.iter().chain(&after) {
            let best = cheapest(&both, point.accuracy).expect("both can do it as well");
            assert!(best.cost <= point.cost, "{point:?} {best:?}");
        }
        assert!(both.is_sorted_by(|a, b| a.cost < b.cost && a.accuracy < b.accuracy));
        assert_eq!(cheapest(&both, 1.1), None);
    }

    /// Tries every assignment of models to jobs.
    #[test]
    fn no_choice_beats_the_oracle() {
        let mut cases = Vec::new();
        for at in 0..10_u32 {
            let mut one = case(0.5, 0.5, at % 3 == 0, at % 5 != 0);
            one.small.cost = f64::from(1 + at % 2);
            one.large.cost = f64::from(1 + at * 7 % 10);
            cases.push(one);
        }
        let always_large: f64 = cases.iter().map(|case| case.large.cost).sum();
        for right_min in 0..=10_u32 {
            let tried = (0..1_u32 << cases.len()).filter_map(|choice| {
                let chosen = cases.iter().enumerate().map(|(at, case)| {
                    if choice >> at & 1 == 1 {
                        case.large
                    } else {
                        case.small
                    }
                });
                let right = chosen.clone().filter(|shot| shot.right).count();
                let cost: f64 = chosen.map(|shot| shot.cost).sum();
                (right >= right_min as usize).then_some(cost / always_large)
            });
            let least = tried.reduce(f64::min);
            let bound = oracle(&cases, f64::from(right_min) / 10.0);
            assert_eq!(bound.is_some(), least.is_some(), "{right_min}");
            if let (Some(bound), Some(least)) = (bound, least) {
                assert!(
                    (bound.cost - least).abs() < 1e-9,
                    "{right_min}: {bound:?} {least}"
                );
                assert!(bound.accuracy * 10.0 > f64::from(right_min) - 1e-6);
            }
        }
    }

    #[test]
    fn the_oracle_weighs_cases_and_takes_a_part_of_the_last() {
        let mut cases = vec![case(0.5, 0.5, true, true), case(0.5, 0.5, false, true)];
        cases[1].weight = 3.0;
        let large = at(&cases, 0.0, 0.0).cost;
        assert_eq!(large, 1.0);
        let all = oracle(&cases, 1.0).expect("large is right");
        assert_eq!((all.accuracy, all.direct), (1.0, 0.75));
        // Half of the traffic right: a third of the second case's.
        let half = oracle(&cases, 0.5).expect("large is right");
        assert!((half.accuracy - 0.5).abs() < 1e-9 && (half.direct - 0.25).abs() < 1e-9);
        assert!(half.cost < all.cost);
    }
}
