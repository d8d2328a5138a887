//! Measures against brute force, and fits against known probabilities.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::job::DistributionSignals;

use super::*;

/// An answer whose signals are drawn around a surprise.
fn signals(surprise: f32, tokens: u32, spread: bool) -> Signals {
    Signals {
        tokens,
        mean_logprob: -surprise,
        min_logprob: -2.0 * surprise,
        p10_logprob: -1.5 * surprise,
        p50_logprob: -surprise,
        first_logprob: -surprise,
        distribution: spread.then_some(DistributionSignals {
            mean_entropy: surprise,
            max_entropy: 2.0 * surprise,
            min_margin: (-surprise).exp(),
        }),
        truncated: false,
    }
}

/// Rows whose true probability of being right is known: a logistic of the log of the surprise.
fn synthetic(count: usize, seed: u64, spread: bool) -> (Vec<LabelledAnswer>, Vec<f64>) {
    let mut random = StdRng::seed_from_u64(seed);
    (0..count)
        .map(|_| {
            let surprise = (random.random::<f32>() * 8.0 - 6.0).exp();
            let truth = 1.0 / (1.0 + (1.5 * (f64::from(surprise).ln() + 2.0)).exp());
            let row = LabelledAnswer {
                right: random.random::<f64>() < truth,
                signals: signals(surprise, 1 + random.random::<u32>() % 20, spread),
                model: "m".to_owned(),
                revision: "1".to_owned(),
            };
            (row, truth)
        })
        .unzip()
}

#[test]
fn the_area_is_the_share_of_pairs_in_order() {
    let mut random = StdRng::seed_from_u64(1);
    for count in [2, 5, 40, 300] {
        // Few different values, so that there are ties.
        let scores: Vec<f64> = (0..count)
            .map(|_| f64::from(random.random::<u32>() % 7))
            .collect();
        let mut positive: Vec<bool> = (0..count).map(|_| random.random::<bool>()).collect();
        (positive[0], positive[1]) = (true, false);
        let (mut pairs, mut ordered) = (0.0, 0.0);
        for (a, score_a) in scores.iter().enumerate().filter(|(a, _)| positive[*a]) {
            for (_, score_b) in scores.iter().enumerate().filter(|(b, _)| !positive[*b]) {
                pairs += 1.0;
                ordered += f64::from(u8::from(score_a > score_b))
                    + 0.5 * f64::from(u8::from(score_a == score_b));
            }
            assert!(a < scores.len());
        }
        assert!((auc(&scores, &positive) - ordered / pairs).abs() < 1e-12);
    }
    assert!(auc(&[1.0], &[true]).is_nan());
}

#[test]
fn the_calibration_error_by_hand() {
    // Bin .9: says .95 and .95, half is right; bin .1: says .15, none is right.
    let error = calibration_error(&[0.95, 0.95, 0.15, 1.0], &[true, false, false, true]);
    assert!((error - ((2.9_f64 - 2.0).abs() + 0.15) / 4.0).abs() < 1e-12);
}

#[test]
fn the_threshold_is_the_lowest_of_its_quality() {
    let confidences = [0.9, 0.8, 0.8, 0.7, 0.6, 0.5];
    let labels = [true, true, false, true, true, false];
    for quality in [0.5, 0.6, 0.75, 0.8, 0.9, 1.0] {
        // Brute force over every value that a threshold can take.
        let right_share = |below: f64| {
            let kept: Vec<bool> = (0..6)
                .filter(|at| confidences[*at] >= below)
                .map(|at| labels[at])
                .collect();
            kept.iter().filter(|right| **right).count() as f64 / kept.len() as f64
        };
        let lowest = confidences
            .iter()
            .copied()
            .filter(|below| right_share(*below) >= quality)
            .fold(1.0, f64::min);
        assert_eq!(
            threshold(&confidences, &labels, quality),
            lowest,
            "{quality}"
        );
    }
    assert_eq!(
        threshold(&[0.5], &[false], 0.9),
        1.0,
        "nothing is good enough"
    );
}

#[test]
fn a_known_truth_is_found() {
    for spread in [true, false] {
        let (rows, _) = synthetic(4000, 7, spread);
        let (confidence, report) = fit(&rows, 0.9).expect("fits");
        assert!(report.ece < 0.03, "{report:?}");
        let kept_right = report.kept_right.expect("some are kept");
        assert!(kept_right >= 0.9 && report.kept > 0.1, "{report:?}");
        // On fresh rows, against the probabilities themselves.
        let (fresh, truths) = synthetic(2000, 8, spread);
        let distance: f64 = fresh
            .iter()
            .zip(&truths)
            .map(|(row, truth)| (confidence.of(&row.signals) - truth).abs())
            .sum();
        assert!(distance / 2000.0 < 0.03, "{}", distance / 2000.0);
        // No score ranks better than the truth itself, and the fit comes close.
        let wrong: Vec<bool> = rows.iter().map(|row| !row.right).collect();
        let (_, truths) = synthetic(4000, 7, spread);
        let best = auc(&truths.iter().map(|p| -p).collect::<Vec<_>>(), &wrong);
        assert!((best - report.auc).abs() < 0.01, "{best} {report:?}");
    }
}

#[test]
fn newton_ends_where_the_gradient_is_zero() {
    let (rows, _) = synthetic(300, 3, true);
    let design: Vec<Vec<f64>> = rows
        .iter()
        .map(|row| {
            vec![
                f64::from(row.signals.mean_logprob),
                f64::from(row.signals.tokens) / 10.0,
                1.0,
            ]
        })
        .collect();
    let targets: Vec<f64> = rows
        .iter()
        .map(|row| f64::from(u8::from(row.right)))
        .collect();
    let weights = newton(&design, &targets);
    let loss = |weights: &[f64]| -> f64 {
        let penalty: f64 = weights[..2].iter().map(|w| RIDGE / 2.0 * w * w).sum();
        design
            .iter()
            .zip(&targets)
            .fold(penalty, |loss, (row, target)| {
                let sum: f64 = row.iter().zip(weights).map(|(x, w)| x * w).sum();
                loss + (1.0 + sum.exp()).ln() - target * sum
            })
    };
    // Whichever way one goes from there, the loss rises.
    for at in 0..3 {
        for step in [1e-3, -1e-3] {
            let mut moved = weights.clone();
            moved[at] += step;
            assert!(loss(&moved) > loss(&weights), "{at} {step}");
        }
    }
}

#[test]
fn separable_rows_end_in_finite_weights() {
    let rows: Vec<_> = (0..100)
        .map(|at| LabelledAnswer {
            right: at % 2 == 0,
            signals: signals(if at % 2 == 0 { 0.001 } else { 3.0 }, 4, true),
            model: String::new(),
            revision: String::new(),
        })
        .collect();
    let (confidence, report) = fit(&rows, 0.95).expect("fits");
    assert_eq!((report.auc, report.kept_right), (1.0, Some(1.0)));
    let read = Confidence::from_json(&confidence.to_json()).expect("finite numbers");
    assert_eq!(read, confidence);
}

#[test]
fn unusable_rows_are_errors() {
    let (rows, _) = synthetic(60, 2, true);
    let error = |change: &dyn Fn(&mut Vec<LabelledAnswer>)| {
        let mut rows = rows.clone();
        change(&mut rows);
        fit(&rows, 0.9).expect_err("an error").to_string()
    };
    assert!(error(&|rows| rows.clear()).contains("0 labelled answers"));
    assert!(error(&|rows| rows.truncate(49)).contains("at least 50"));
    assert!(error(&|rows| rows.iter_mut().for_each(|row| row.right = true)).contains("is right"));
    assert!(error(&|rows| rows.iter_mut().for_each(|row| row.right = false)).contains("is wrong"));
    assert!(error(&|rows| rows[3].signals.mean_logprob = f32::NAN).contains("answer 4:"));
    assert!(error(&|rows| rows[0].signals.min_logprob = 0.5).contains("up to 0"));
    assert!(error(&|rows| rows[0].signals.tokens = 0).contains("one token"));
    assert!(error(&|rows| rows[9].revision = "2".to_owned()).contains("more than one model"));
}
