//! How good a router's ranking is.
//!
//! APGR and CPT as RouteLLM's evaluation computes them (Ong et al., 2024): thresholds at the
//! deciles of the scores, the trapezoid area under quality over share of large, and the
//! interpolated share at which a part of the gap is recovered. The `exact` figures take every
//! distinct score as a threshold and cross ties by a straight line, as random order within them
//! would. One scale for both: 0 at the small model's level, 1 at the large one's. Prompts count by
//! their weight, so that rows whose labels were collected by chance speak for those not collected.

use std::cmp::Ordering;

/// A scored prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// The router's score; higher for large.
    pub score: f64,
    /// The gain the router expected, if it says one.
    pub expected: Option<f64>,
    /// The small model's score, 0 to 1.
    pub weak: f64,
    /// The large model's score, 0 to 1.
    pub strong: f64,
    /// How much the prompt counts; above 0.
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

/// How a router does on a set of prompts.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Prompts.
    pub prompts: usize,
    /// Percentage that the small model gets right.
    pub weak: f64,
    /// Percentage that the large model gets right.
    pub strong: f64,
    /// At the deciles, as RouteLLM; not a number when all scores are one.
    pub deciles: Curve,
    /// At every score.
    pub exact: Curve,
    /// Probability that a prompt on which the large model is better scores above one on which it
    /// is not.
    pub auc_helps: f64,
    /// Probability that a prompt which the small model fails scores above one which it does not.
    pub auc_small_fails: f64,
    /// Mean distance of the expected from the observed gain over ten bins of as many prompts.
    pub calibration_error: Option<f64>,
    /// Scores below which 0, 10, 25, 50, 75, 90 and 100 % of the prompts lie.
    pub distribution: [f64; 7],
    /// Distinct scores.
    pub distinct: usize,
}

/// Shares of [`Report::distribution`].
pub const DISTRIBUTION: [f64; 7] = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0];

/// Why scores cannot be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvaluateError {
    /// There is nothing to judge.
    #[error("there are no labelled prompts")]
    Empty,
    /// No ranking can recover a gap that is not there.
    #[error("the large model is nowhere better in sum: there is no gap to recover")]
    NoGap,
}

/// Judges scores.
///
/// # Errors
/// When there are none, or the large model is not better in sum.
pub fn evaluate(judged: &[Judged]) -> Result<Report, EvaluateError> {
    if judged.is_empty() {
        return Err(EvaluateError::Empty);
    }
    if sum(judged, gain) <= 0.0 {
        return Err(EvaluateError::NoGap);
    }
    let scores = places(judged);
    let distribution = DISTRIBUTION.map(|share| quantile(&scores, share));
    let percent = |of: fn(&Judged) -> f64| 100.0 * sum(judged, of) / sum(judged, |_| 1.0);
    Ok(Report {
        prompts: judged.len(),
        weak: percent(|one| one.weak),
        strong: percent(|one| one.strong),
        deciles: deciles(judged, &scores),
        exact: exact(judged),
        auc_helps: auc(judged, |one| one.strong > one.weak),
        auc_small_fails: auc(judged, |one| one.weak < 0.5),
        calibration_error: calibration_error(judged),
        distribution,
        distinct: scores.chunk_by(|a, b| a.0 == b.0).count(),
    })
}

fn gain(one: &Judged) -> f64 {
    one.strong - one.weak
}

/// The weighted sum of something.
fn sum(judged: &[Judged], of: impl Fn(&Judged) -> f64) -> f64 {
    judged.iter().map(|one| one.weight * of(one)).sum()
}

/// Ascending scores with their places, which lie half of both weights apart: 0, 1, 2 and so on where
/// all weights are one.
fn places(judged: &[Judged]) -> Vec<(f64, f64)> {
    let mut order: Vec<(f64, f64)> = judged.iter().map(|one| (one.score, one.weight)).collect();
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

/// RouteLLM's figures.
fn deciles(judged: &[Judged], places: &[(f64, f64)]) -> Curve {
    let mut edges: Vec<f64> = (0..=10)
        .map(|decile| quantile(places, f64::from(decile) / 10.0))
        .collect();
    edges.dedup();
    let (weak, total) = (sum(judged, |one| one.weak), sum(judged, gain));
    let prompts = sum(judged, |_| 1.0);
    let mut points: Vec<(f64, f64)> = Vec::with_capacity(edges.len());
    for (at, edge) in edges.iter().enumerate() {
        // The last threshold sends nothing to large.
        let is_last = at + 1 == edges.len();
        let (mut large, mut quality) = (0.0, 0.0);
        for one in judged {
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

/// Figures without bins.
fn exact(judged: &[Judged]) -> Curve {
    let mut order: Vec<&Judged> = judged.iter().collect();
    order.sort_by(|a, b| b.score.total_cmp(&a.score));
    let (total, prompts) = (sum(judged, gain), sum(judged, |_| 1.0));
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
        // The last point reaches all of the gap, but for rounding.
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

/// The x at which the curve has a height: numpy's `interp` on (y, x), its binary search included,
/// since the curve need not rise everywhere.
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
fn auc(judged: &[Judged], is_positive: impl Fn(&Judged) -> bool) -> f64 {
    let mut order: Vec<&Judged> = judged.iter().collect();
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

fn calibration_error(judged: &[Judged]) -> Option<f64> {
    // How far each is off, by its expected gain.
    let mut off: Vec<(f64, f64)> = judged
        .iter()
        .map(|one| Some((one.expected?, one.weight * (one.expected? - gain(one)))))
        .collect::<Option<_>>()?;
    off.sort_by(|a, b| a.0.total_cmp(&b.0));
    let size = off.len().div_ceil(CALIBRATION_BINS);
    let bins = off.chunks(size);
    let bins = bins.map(|bin| bin.iter().map(|(_, off)| off).sum::<f64>().abs());
    Some(bins.sum::<f64>() / sum(judged, |_| 1.0))
}

#[cfg(test)]
mod tests {
    use crate::scoring::evaluate::*;
    use crate::scoring::random::Random;

    fn some(seed: u64, prompts: usize, levels: f64) -> Vec<Judged> {
        let mut random = Random::new(seed);
        (0..prompts)
            .map(|_| {
                let hardness = random.unit();
                let right =
                    |chance: f64, random: &mut Random| f64::from(u8::from(random.unit() < chance));
                Judged {
                    score: ((0.6 * hardness + 0.4 * random.unit()) * levels).floor() / levels,
                    expected: Some(hardness - 0.5),
                    weak: right(0.9 - 0.7 * hardness, &mut random),
                    strong: right(0.95 - 0.1 * hardness, &mut random),
                    weight: 1.0,
                }
            })
            .collect()
    }

    /// Every threshold tried by hand, every pair compared.
    #[test]
    fn agrees_with_brute_force() {
        for (seed, levels) in [(1, 1e9), (2, 7.0), (3, 40.0)] {
            let judged = some(seed, 300, levels);
            let report = evaluate(&judged).expect("there is a gap");
            let count = judged.len() as f64;
            let weak: f64 = judged.iter().map(|one| one.weak).sum::<f64>() / count;
            let strong: f64 = judged.iter().map(|one| one.strong).sum::<f64>() / count;
            let mut levels: Vec<f64> = judged.iter().map(|one| one.score).collect();
            levels.sort_by(|a, b| b.total_cmp(a));
            levels.dedup();
            let mut last = (0.0, 0.0);
            let (mut sum, mut half) = (0.0, None);
            for level in levels {
                let share = judged.iter().filter(|one| one.score >= level).count() as f64 / count;
                let quality = judged
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
            for a in judged.iter().filter(|one| one.strong > one.weak) {
                for b in judged.iter().filter(|one| one.strong <= one.weak) {
                    pairs += 1.0;
                    wins += f64::from(u8::from(a.score > b.score))
                        + 0.5 * f64::from(u8::from(a.score == b.score));
                }
            }
            assert!((report.auc_helps - wins / pairs).abs() < 1e-9);
        }
    }

    /// A prompt of weight three counts as three of them do.
    #[test]
    fn weights_are_as_many_prompts() {
        let mut judged = some(6, 400, 40.0);
        for (at, one) in judged.iter_mut().enumerate() {
            one.weight = [1.0, 1.0, 3.0][at % 3];
        }
        let many: Vec<Judged> = judged
            .iter()
            .flat_map(|one| {
                vec![
                    Judged {
                        weight: 1.0,
                        ..*one
                    };
                    one.weight as usize
                ]
            })
            .collect();
        let (weighted, many) = (
            evaluate(&judged).expect("gap"),
            evaluate(&many).expect("gap"),
        );
        let of = |report: &Report| {
            let Report { exact, .. } = report;
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
        let mut judged = some(4, 2_000, 1e9);
        for one in &mut judged {
            one.score = one.strong - one.weak;
        }
        let perfect = evaluate(&judged).expect("gap");
        assert!(perfect.exact.apgr > 0.75 && perfect.exact.cpt80 < 50.0);
        for one in &mut judged {
            one.score = 0.25;
        }
        let constant = evaluate(&judged).expect("gap");
        assert!((constant.exact.apgr - 0.5).abs() < 1e-9 && constant.deciles.apgr.is_nan());
        assert!((constant.exact.cpt50 - 50.0).abs() < 1e-6);
        assert_eq!(constant.auc_helps, 0.5);
    }

    #[test]
    fn nothing_to_judge_is_a_fault() {
        assert_eq!(evaluate(&[]), Err(EvaluateError::Empty));
        let equal = Judged {
            score: 0.0,
            expected: None,
            weak: 1.0,
            strong: 1.0,
            weight: 1.0,
        };
        assert_eq!(evaluate(&[equal; 3]), Err(EvaluateError::NoGap));
    }
}
