//! Measures a router's ranking.
//!
//! APGR and CPT as RouteLLM's evaluation computes them (Ong et al., 2024): thresholds at the
//! deciles of the scores, the trapezoid area under quality over share of large, and the
//! interpolated share at which a part of the gap is recovered. The `exact` figures take every
//! distinct score as a threshold and interpolate linearly within ties, as the mean over random orders
//! would. Both scale from 0, the small model's level, to 1, the large one's. Prompts count by their
//! weight, so that sampled rows represent those not sampled.

use std::cmp::Ordering;

/// A scored prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoredPrompt {
    /// The router's score; higher for large.
    pub score: f64,
    /// The gain the router expected, if it predicts one.
    pub expected: Option<f64>,
    /// The small model's score, 0 to 1.
    pub weak: f64,
    /// The large model's score, 0 to 1.
    pub strong: f64,
    /// The prompt's weight; above 0.
    pub weight: f64,
}

/// The area under the recovered gap, and the percentages of large calls that recover parts of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Curve {
    /// Average performance gap recovered; .5 is random.
    pub apgr: f64,
    /// Percentage of large calls that recovers half of the gap.
    pub cpt50: f64,
    /// Percentage of large calls that recovers four fifths.
    pub cpt80: f64,
}

/// Measures of a ranking on a set of prompts.
#[derive(Clone, Debug, PartialEq)]
pub struct RankingReport {
    /// Prompts.
    pub prompts: usize,
    /// Percentage of right answers of the small model.
    pub weak: f64,
    /// Percentage of right answers of the large model.
    pub strong: f64,
    /// At the deciles, as RouteLLM; NaN when all scores are equal.
    pub deciles: Curve,
    /// At every score.
    pub exact: Curve,
    /// Probability that a prompt on which the large model is better scores above one on which it
    /// is not.
    pub auc_helps: f64,
    /// Probability that a prompt which the small model fails scores above one which it does not.
    pub auc_small_fails: f64,
    /// Mean distance of the expected from the observed gain over ten bins of equally many prompts.
    pub calibration_error: Option<f64>,
    /// Quantiles of the scores at [`DISTRIBUTION`].
    pub distribution: [f64; 7],
    /// Distinct scores.
    pub distinct: usize,
}

/// Shares of [`RankingReport::distribution`].
pub const DISTRIBUTION: [f64; 7] = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0];

/// Why scores cannot be evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvaluateError {
    /// There are no prompts.
    #[error("there are no labelled prompts")]
    Empty,
    /// The large model is not better: there is no gap to recover.
    #[error(
        "the large model is not better than the small one on these prompts: there is no gap to recover"
    )]
    NoGap,
}

/// Evaluates a ranking.
///
/// # Errors
/// When there are no prompts, or the large model is not better in sum.
pub fn evaluate(scored: &[ScoredPrompt]) -> Result<RankingReport, EvaluateError> {
    if scored.is_empty() {
        return Err(EvaluateError::Empty);
    }
    if sum(scored, gain) <= 0.0 {
        return Err(EvaluateError::NoGap);
    }
    let scores = places(scored);
    let distribution = DISTRIBUTION.map(|share| quantile(&scores, share));
    let percent = |of: fn(&ScoredPrompt) -> f64| 100.0 * sum(scored, of) / sum(scored, |_| 1.0);
    Ok(RankingReport {
        prompts: scored.len(),
        weak: percent(|one| one.weak),
        strong: percent(|one| one.strong),
        deciles: deciles(scored, &scores),
        exact: exact(scored),
        auc_helps: auc(scored, |one| one.strong > one.weak),
        auc_small_fails: auc(scored, |one| one.weak < 0.5),
        calibration_error: calibration_error(scored),
        distribution,
        distinct: scores.chunk_by(|a, b| a.0 == b.0).count(),
    })
}

fn gain(one: &ScoredPrompt) -> f64 {
    one.strong - one.weak
}

/// The weighted sum of something.
fn sum(scored: &[ScoredPrompt], of: impl Fn(&ScoredPrompt) -> f64) -> f64 {
    scored.iter().map(|one| one.weight * of(one)).sum()
}

/// Ascending scores with their positions; neighbours are half of both weights apart, so that positions
/// are 0, 1, 2, … where all weights are one.
fn places(scored: &[ScoredPrompt]) -> Vec<(f64, f64)> {
    let mut order: Vec<(f64, f64)> = scored.iter().map(|one| (one.score, one.weight)).collect();
    order.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let (mut place, mut before) = (0.0, None);
    for (_, weight) in &mut order {
        place += before.map_or(0.0, |before| f64::midpoint(before, *weight));
        before = Some(std::mem::replace(weight, place));
    }
    order
}

/// Score below which a share of the prompts lies, linearly interpolated as numpy does.
fn quantile(places: &[(f64, f64)], share: f64) -> f64 {
    let at = share * places[places.len() - 1].1;
    let above = places.partition_point(|place| place.1 <= at).max(1);
    let (low, from) = places[above - 1];
    match places.get(above) {
        Some((high, to)) => low + (high - low) * ((at - from) / (to - from)),
        None => low,
    }
}

/// The curve at the deciles, as RouteLLM computes it.
fn deciles(scored: &[ScoredPrompt], places: &[(f64, f64)]) -> Curve {
    let mut edges: Vec<f64> = (0..=10)
        .map(|decile| quantile(places, f64::from(decile) / 10.0))
        .collect();
    edges.dedup();
    let (weak, total) = (sum(scored, |one| one.weak), sum(scored, gain));
    let prompts = sum(scored, |_| 1.0);
    let mut points: Vec<(f64, f64)> = Vec::with_capacity(edges.len());
    for (at, edge) in edges.iter().enumerate() {
        // The last threshold sends nothing to large.
        let is_last = at + 1 == edges.len();
        let (mut large, mut quality) = (0.0, 0.0);
        for one in scored {
            let to_large = if is_last {
                one.score > *edge
            } else {
                one.score >= *edge
            };
            large += one.weight * f64::from(u8::from(to_large));
            quality += one.weight * if to_large { one.strong } else { one.weak };
        }
        points.push((large / prompts, (quality - weak) / total));
    }
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let width = points[points.len() - 1].0 - points[0].0;
    if points.len() < 2 || width == 0.0 {
        return Curve {
            apgr: f64::NAN,
            cpt50: f64::NAN,
            cpt80: f64::NAN,
        };
    }
    Curve {
        apgr: area(&points),
        cpt50: 100.0 * interpolate(&points, 0.5),
        cpt80: 100.0 * interpolate(&points, 0.8),
    }
}

/// The curve at every score.
fn exact(scored: &[ScoredPrompt]) -> Curve {
    let mut order: Vec<&ScoredPrompt> = scored.iter().collect();
    order.sort_by(|a, b| b.score.total_cmp(&a.score));
    let (total, prompts) = (sum(scored, gain), sum(scored, |_| 1.0));
    let mut points = vec![(0.0, 0.0)];
    let (mut large, mut recovered) = (0.0, 0.0);
    for (at, one) in order.iter().enumerate() {
        large += one.weight;
        recovered += one.weight * gain(one);
        if order.get(at + 1).is_none_or(|next| next.score != one.score) {
            points.push((large / prompts, recovered / total));
        }
    }
    let reach = |goal: f64| {
        // The last point reaches the whole gap, up to rounding.
        let at = points.iter().position(|point| point.1 >= goal);
        let at = at.unwrap_or(points.len() - 1).max(1);
        let ((x0, y0), (x1, y1)) = (points[at - 1], points[at]);
        100.0 * (x0 + (goal - y0) / (y1 - y0) * (x1 - x0))
    };
    Curve {
        apgr: area(&points),
        cpt50: reach(0.5),
        cpt80: reach(0.8),
    }
}

/// The trapezoid area under points of ascending x.
fn area(points: &[(f64, f64)]) -> f64 {
    let pairs = points.windows(2);
    pairs
        .map(|pair| (pair[1].0 - pair[0].0) * f64::midpoint(pair[0].1, pair[1].1))
        .sum()
}

/// The x at which the curve reaches a height: numpy's `interp` on (y, x), with the same binary search,
/// since the curve need not be monotone.
fn interpolate(points: &[(f64, f64)], height: f64) -> f64 {
    let above = points.partition_point(|point| point.1 <= height);
    if above == 0 {
        return points[0].0;
    }
    if above == points.len() {
        return points[points.len() - 1].0;
    }
    let ((x0, y0), (x1, y1)) = (points[above - 1], points[above]);
    x0 + (height - y0) * (x1 - x0) / (y1 - y0)
}

/// Area under the receiver operating characteristic, ties counting half.
fn auc(scored: &[ScoredPrompt], is_positive: impl Fn(&ScoredPrompt) -> bool) -> f64 {
    let mut order: Vec<&ScoredPrompt> = scored.iter().collect();
    order.sort_by(|a, b| a.score.total_cmp(&b.score));
    let (mut below, mut wins, mut positives) = (0.0, 0.0, 0.0);
    for tied in order.chunk_by(|a, b| a.score.total_cmp(&b.score) == Ordering::Equal) {
        let (mut positive, mut negative) = (0.0, 0.0);
        for one in tied {
            if is_positive(one) {
                positive += one.weight;
            } else {
                negative += one.weight;
            }
        }
        wins += positive * (below + negative / 2.0);
        below += negative;
        positives += positive;
    }
    wins / (positives * below)
}

/// Bins of the calibration error.
const CALIBRATION_BINS: usize = 10;

fn calibration_error(scored: &[ScoredPrompt]) -> Option<f64> {
    // Each prompt's weighted error, by its expected gain.
    let mut off: Vec<(f64, f64)> = scored
        .iter()
        .map(|one| Some((one.expected?, one.weight * (one.expected? - gain(one)))))
        .collect::<Option<_>>()?;
    off.sort_by(|a, b| a.0.total_cmp(&b.0));
    let size = off.len().div_ceil(CALIBRATION_BINS);
    let bins = off.chunks(size);
    let bins = bins.map(|bin| bin.iter().map(|(_, off)| off).sum::<f64>().abs());
    Some(bins.sum::<f64>() / sum(scored, |_| 1.0))
}

#[cfg(test)]
mod tests {
    use crate::scoring::evaluate::*;
    use crate::scoring::random::Random;

    fn some(seed: u64, prompts: usize, levels: f64) -> Vec<ScoredPrompt> {
        let mut random = Random::new(seed);
        (0..prompts)
            .map(|_| {
                let hardness = random.unit();
                let right =
                    |chance: f64, random: &mut Random| f64::from(u8::from(random.unit() < chance));
                ScoredPrompt {
                    score: ((0.6 * hardness + 0.4 * random.unit()) * levels).floor() / levels,
                    expected: Some(hardness - 0.5),
                    weak: right(0.9 - 0.7 * hardness, &mut random),
                    strong: right(0.95 - 0.1 * hardness, &mut random),
                    weight: 1.0,
                }
            })
            .collect()
    }

    /// Tries every threshold and compares every pair.
    #[test]
    fn agrees_with_brute_force() {
        for (seed, levels) in [(1, 1e9), (2, 7.0), (3, 40.0)] {
            let scored = some(seed, 300, levels);
            let report = evaluate(&scored).expect("there is a gap");
            let count = scored.len() as f64;
            let weak: f64 = scored.iter().map(|one| one.weak).sum::<f64>() / count;
            let strong: f64 = scored.iter().map(|one| one.strong).sum::<f64>() / count;
            let mut levels: Vec<f64> = scored.iter().map(|one| one.score).collect();
            levels.sort_by(|a, b| b.total_cmp(a));
            levels.dedup();
            let mut last = (0.0, 0.0);
            let (mut sum, mut half) = (0.0, None);
            for level in levels {
                let share = scored.iter().filter(|one| one.score >= level).count() as f64 / count;
                let quality = scored
                    .iter()
                    .map(|one| {
                        if one.score >= level {
                            one.strong
                        } else {
                            one.weak
                        }
                    })
                    .sum::<f64>()
                    / count;
                let recovered = (quality - weak) / (strong - weak);
                sum += (share - last.0) * (recovered + last.1) / 2.0;
                if recovered >= 0.5 && half.is_none() {
                    half = Some(last.0 + (share - last.0) * (0.5 - last.1) / (recovered - last.1));
                }
                last = (share, recovered);
            }
            assert!((report.exact.apgr - sum).abs() < 1e-9);
            assert!((report.exact.cpt50 - 100.0 * half.expect("reached")).abs() < 1e-9);
            let (mut wins, mut pairs) = (0.0, 0.0);
            for a in scored.iter().filter(|one| one.strong > one.weak) {
                for b in scored.iter().filter(|one| one.strong <= one.weak) {
                    pairs += 1.0;
                    wins += f64::from(u8::from(a.score > b.score))
                        + 0.5 * f64::from(u8::from(a.score == b.score));
                }
            }
            assert!((report.auc_helps - wins / pairs).abs() < 1e-9);
        }
    }

    #[test]
    fn a_weight_of_three_equals_three_prompts() {
        let mut scored = some(6, 400, 40.0);
        for (at, one) in scored.iter_mut().enumerate() {
            one.weight = [1.0, 1.0, 3.0][at % 3];
        }
        let many: Vec<ScoredPrompt> = scored
            .iter()
            .flat_map(|one| {
                vec![
                    ScoredPrompt {
                        weight: 1.0,
                        ..*one
                    };
                    one.weight as usize
                ]
            })
            .collect();
        let (weighted, many) = (
            evaluate(&scored).expect("gap"),
            evaluate(&many).expect("gap"),
        );
        let of = |report: &RankingReport| {
            let RankingReport { exact, .. } = report;
            [
                report.weak,
                report.strong,
                exact.apgr,
                exact.cpt50,
                exact.cpt80,
                report.auc_helps,
            ]
        };
        for (a, b) in of(&weighted).into_iter().zip(of(&many)) {
            assert!((a - b).abs() < 1e-9, "{weighted:?} {many:?}");
        }
        assert!((weighted.deciles.apgr - many.deciles.apgr).abs() < 0.01);
        for (a, b) in weighted.distribution.iter().zip(many.distribution) {
            assert!((a - b).abs() <= 1.0 / 40.0, "{weighted:?} {many:?}");
        }
    }

    #[test]
    fn perfect_random_and_constant_scores() {
        let mut scored = some(4, 2_000, 1e9);
        for one in &mut scored {
            one.score = one.strong - one.weak;
        }
        let perfect = evaluate(&scored).expect("gap");
        assert!(perfect.exact.apgr > 0.75 && perfect.exact.cpt80 < 50.0);
        for one in &mut scored {
            one.score = 0.25;
        }
        let constant = evaluate(&scored).expect("gap");
        assert!((constant.exact.apgr - 0.5).abs() < 1e-9 && constant.deciles.apgr.is_nan());
        assert!((constant.exact.cpt50 - 50.0).abs() < 1e-6);
        assert_eq!(constant.auc_helps, 0.5);
    }

    #[test]
    fn an_empty_set_or_no_gap_is_an_error() {
        assert_eq!(evaluate(&[]), Err(EvaluateError::Empty));
        let equal = ScoredPrompt {
            score: 0.0,
            expected: None,
            weak: 1.0,
            strong: 1.0,
            weight: 1.0,
        };
        assert_eq!(evaluate(&[equal; 3]), Err(EvaluateError::NoGap));
    }
}
