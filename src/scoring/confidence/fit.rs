//! Fits a calibration to labelled answers: logistic regression on standardised features, evaluated by
//! cross-validation.

use serde::{Deserialize, Serialize};

use crate::job::Signals;

use super::{
    Confidence, ConfidenceWeights, DISTRIBUTION_FROM, FEATURE_NAMES, FEATURES, FORMAT, Term,
    features, logistic,
};

/// Fewest rows of a fit: a few for each weight.
pub const ROWS_MIN: usize = 50;
/// Folds of the cross-validation.
const FOLDS: usize = 5;
/// Ridge penalty on the standardised weights.
const RIDGE: f64 = 1.0;
/// Newton's method ends when no weight moves more than this, or after [`STEPS_MAX`] steps.
const TOLERANCE: f64 = 1e-9;
const STEPS_MAX: usize = 50;
/// Bins of the calibration error.
const BINS: usize = 10;

/// An answer with its label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelledAnswer {
    /// Whether it is right.
    pub right: bool,
    /// Signals of its tokens.
    pub signals: Signals,
    /// The model that gave it.
    #[serde(default)]
    pub model: String,
    /// The model's revision.
    #[serde(default)]
    pub revision: String,
}

/// Why a calibration cannot be fitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FitError {
    /// There are too few rows.
    #[error("{found} labelled answers; at least {ROWS_MIN} are needed")]
    TooFew {
        /// Rows found.
        found: usize,
    },
    /// All answers are right, or all are wrong.
    #[error("every labelled answer is {0}; both kinds are needed")]
    OneClass(&'static str),
    /// A row has impossible signals.
    #[error("labelled answer {row}: {message}")]
    BadRow {
        /// Counted from 1.
        row: usize,
        /// What was expected.
        message: &'static str,
    },
    /// The answers come from several models.
    #[error("the labelled answers are of more than one model: {0} and {1}")]
    Mixed(String, String),
}

/// Measures of a calibration on held-out answers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct FitReport {
    /// Labelled answers.
    pub rows: usize,
    /// Share of right ones.
    pub right: f64,
    /// Area under the ROC curve for "the answer is wrong".
    pub auc: f64,
    /// Expected calibration error over ten bins of equal width.
    pub ece: f64,
    /// The chosen threshold: answers below it are escalated.
    pub escalate_below: f64,
    /// Share of the answers that are kept at this threshold.
    pub kept: f64,
    /// Share of right ones among the kept; `None` when none is kept.
    pub kept_right: Option<f64>,
}

/// Fits a calibration. The threshold is the lowest one at which a share `quality` of the kept answers
/// is right.
///
/// # Errors
/// [`FitError`] when the rows cannot be fitted to.
pub fn fit(rows: &[LabelledAnswer], quality: f64) -> Result<(Confidence, FitReport), FitError> {
    check(rows)?;
    let values: Vec<_> = rows.iter().map(|row| features(&row.signals)).collect();
    let labels: Vec<bool> = rows.iter().map(|row| row.right).collect();
    let mut held_out = vec![0.0; rows.len()];
    for fold in 0..FOLDS {
        let of_fold = |at: &usize| at % FOLDS == fold;
        let (test, train): (Vec<usize>, Vec<usize>) = (0..rows.len()).partition(of_fold);
        let fitted = LogisticFit::fit(&values, &labels, &train);
        for at in test {
            held_out[at] = fitted.probability(&values[at]);
        }
    }
    // Rounded down to the file's precision, so that the answer at the threshold is kept.
    let exact = threshold(&held_out, &labels, quality);
    let single = match exact as f32 {
        above if f64::from(above) > exact => above.next_down(),
        single => single,
    };
    let escalate_below = f64::from(single);
    let kept: Vec<usize> = (0..rows.len())
        .filter(|at| held_out[*at] >= escalate_below)
        .collect();
    let kept_right = kept.iter().filter(|at| labels[**at]).count();
    let wrong: Vec<bool> = labels.iter().map(|right| !right).collect();
    let negated: Vec<f64> = held_out.iter().map(|p| -p).collect();
    let report = FitReport {
        rows: rows.len(),
        right: labels.iter().filter(|right| **right).count() as f64 / rows.len() as f64,
        auc: auc(&negated, &wrong),
        ece: calibration_error(&held_out, &labels),
        escalate_below,
        kept: kept.len() as f64 / rows.len() as f64,
        kept_right: (!kept.is_empty()).then(|| kept_right as f64 / kept.len() as f64),
    };
    let all: Vec<usize> = (0..rows.len()).collect();
    let fitted = LogisticFit::fit(&values, &labels, &all);
    let weights = ConfidenceWeights {
        format: FORMAT,
        model: rows[0].model.clone(),
        revision: rows[0].revision.clone(),
        rows: rows.len(),
        escalate_below: single,
        bias: fitted.bias,
        terms: fitted.terms,
    };
    Ok((Confidence { weights }, report))
}

fn check(rows: &[LabelledAnswer]) -> Result<(), FitError> {
    if rows.len() < ROWS_MIN {
        return Err(FitError::TooFew { found: rows.len() });
    }
    for (at, row) in rows.iter().enumerate() {
        let signals = &row.signals;
        let logprobs = [
            signals.mean_logprob,
            signals.min_logprob,
            signals.p10_logprob,
            signals.p50_logprob,
            signals.first_logprob,
        ];
        let spread = signals.distribution;
        let message = if !logprobs.iter().all(|p| p.is_finite() && *p <= 0.0) {
            "a log-probability is a number up to 0"
        } else if signals.tokens == 0 {
            "an answer has at least one token"
        } else if spread.is_some_and(|s| {
            !(s.mean_entropy.is_finite() && s.max_entropy.is_finite() && s.min_margin.is_finite())
        }) {
            "entropies and margins are numbers"
        } else {
            continue;
        };
        return Err(FitError::BadRow {
            row: at + 1,
            message,
        });
    }
    if let Some(other) = rows.iter().find(|row| row.revision != rows[0].revision) {
        let name = |row: &LabelledAnswer| format!("{} {}", row.model, row.revision);
        return Err(FitError::Mixed(name(&rows[0]), name(other)));
    }
    match rows.iter().filter(|row| row.right).count() {
        0 => Err(FitError::OneClass("wrong")),
        count if count == rows.len() => Err(FitError::OneClass("right")),
        _ => Ok(()),
    }
}

/// The lowest threshold at which a share `quality` of the kept answers is right; 1 if there is none.
fn threshold(confidences: &[f64], labels: &[bool], quality: f64) -> f64 {
    let mut order: Vec<usize> = (0..confidences.len()).collect();
    order.sort_by(|a, b| confidences[*b].total_cmp(&confidences[*a]));
    let (mut right, mut found) = (0, 1.0);
    for (kept, at) in order.iter().enumerate() {
        right += usize::from(labels[*at]);
        // Equal confidences are kept or escalated together.
        let is_last_of_equal = order
            .get(kept + 1)
            .is_none_or(|next| confidences[*next] < confidences[*at]);
        if is_last_of_equal && right as f64 >= quality * (kept + 1) as f64 {
            found = confidences[*at];
        }
    }
    found
}

/// Area under the ROC curve: the share of (positive, negative) pairs in which the positive one scores
/// higher, ties counting half. NaN when either class is missing.
pub fn auc(scores: &[f64], positive: &[bool]) -> f64 {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    let (mut pairs, mut below, mut from) = (0.0, 0.0, 0);
    while from < order.len() {
        let same = order[from..]
            .iter()
            .take_while(|at| scores[**at] == scores[order[from]])
            .count()
            .max(1);
        let group = &order[from..from + same];
        let positives = group.iter().filter(|at| positive[**at]).count() as f64;
        let negatives = same as f64 - positives;
        pairs += positives * (below + negatives / 2.0);
        below += negatives;
        from += same;
    }
    pairs / (below * (scores.len() as f64 - below))
}

/// Expected calibration error (Guo et al. 2017): the mean distance between predicted and true
/// share over bins of equal width, weighted by their rows.
pub fn calibration_error(confidences: &[f64], labels: &[bool]) -> f64 {
    let mut bins = [(0.0, 0.0); BINS];
    for (confidence, right) in confidences.iter().zip(labels) {
        let bin = &mut bins[((confidence * BINS as f64) as usize).min(BINS - 1)];
        bin.0 += confidence;
        bin.1 += f64::from(u8::from(*right));
    }
    let distance: f64 = bins.iter().map(|(said, true_)| (said - true_).abs()).sum();
    distance / confidences.len() as f64
}

/// A logistic model.
struct LogisticFit {
    terms: Vec<Term>,
    bias: f32,
}

impl LogisticFit {
    /// Fits to `rows` by Newton's method on the penalised likelihood.
    fn fit(values: &[[Option<f64>; FEATURES]], labels: &[bool], rows: &[usize]) -> Self {
        let has_spread = rows
            .iter()
            .all(|at| values[*at].iter().all(Option::is_some));
        let used = if has_spread {
            FEATURES
        } else {
            DISTRIBUTION_FROM
        };
        let count = rows.len() as f64;
        let column = |feature: usize| {
            rows.iter()
                .map(move |at| values[*at][feature].unwrap_or_default())
        };
        let mut terms: Vec<Term> = (0..FEATURES)
            .map(|feature| {
                let mean = column(feature).sum::<f64>() / count;
                let variance = column(feature).map(|x| (x - mean).powi(2)).sum::<f64>() / count;
                let scale = variance.sqrt();
                Term {
                    name: FEATURE_NAMES[feature].to_owned(),
                    mean: if feature < used { mean as f32 } else { 0.0 },
                    // A constant feature must not divide by zero.
                    scale: if feature < used && scale > 1e-9 {
                        scale as f32
                    } else {
                        1.0
                    },
                    weight: 0.0,
                }
            })
            .collect();
        let design: Vec<Vec<f64>> = rows
            .iter()
            .map(|at| {
                let standard = |feature: usize| {
                    let term = &terms[feature];
                    (values[*at][feature].unwrap_or_default() - f64::from(term.mean))
                        / f64::from(term.scale)
                };
                (0..used).map(standard).chain([1.0]).collect()
            })
            .collect();
        let targets: Vec<f64> = rows
            .iter()
            .map(|at| f64::from(u8::from(labels[*at])))
            .collect();
        let weights = newton(&design, &targets);
        for (term, weight) in terms[..used].iter_mut().zip(&weights) {
            term.weight = *weight as f32;
        }
        Self {
            terms,
            bias: weights[used] as f32,
        }
    }

    fn probability(&self, features: &[Option<f64>; FEATURES]) -> f64 {
        logistic(&self.terms, self.bias, features)
    }
}

/// The weights of the penalised logistic likelihood; the last column is the bias, without penalty.
fn newton(design: &[Vec<f64>], targets: &[f64]) -> Vec<f64> {
    let size = design.first().map_or(0, Vec::len);
    let mut weights = vec![0.0; size];
    for _ in 0..STEPS_MAX {
        let mut gradient = vec![0.0; size];
        let mut hessian = vec![vec![0.0; size]; size];
        for at in 0..size - 1 {
            gradient[at] = RIDGE * weights[at];
            hessian[at][at] = RIDGE;
        }
        // Keeps the system solvable when every probability is 0 or 1.
        hessian[size - 1][size - 1] = TOLERANCE;
        for (row, target) in design.iter().zip(targets) {
            let sum: f64 = row.iter().zip(&weights).map(|(x, w)| x * w).sum();
            let p = 1.0 / (1.0 + (-sum).exp());
            for i in 0..size {
                gradient[i] += row[i] * (p - target);
                for j in 0..=i {
                    hessian[i][j] += row[i] * row[j] * p * (1.0 - p);
                }
            }
        }
        let step = solve(hessian, gradient);
        let longest = step.iter().fold(0.0_f64, |most, s| most.max(s.abs()));
        for (weight, step) in weights.iter_mut().zip(step) {
            *weight -= step;
        }
        if longest < TOLERANCE {
            break;
        }
    }
    weights
}

/// Solves a positive definite system by Cholesky's decomposition; only the lower triangle is read.
fn solve(mut lower: Vec<Vec<f64>>, mut right: Vec<f64>) -> Vec<f64> {
    let size = right.len();
    for i in 0..size {
        for j in 0..=i {
            let inner: f64 = (0..j).map(|k| lower[i][k] * lower[j][k]).sum();
            let rest = lower[i][j] - inner;
            lower[i][j] = if i == j {
                rest.max(f64::MIN_POSITIVE).sqrt()
            } else {
                rest / lower[j][j]
            };
        }
    }
    for i in 0..size {
        let inner: f64 = (0..i).map(|k| lower[i][k] * right[k]).sum();
        right[i] = (right[i] - inner) / lower[i][i];
    }
    for i in (0..size).rev() {
        let inner: f64 = (i + 1..size).map(|k| lower[k][i] * right[k]).sum();
        right[i] = (right[i] - inner) / lower[i][i];
    }
    right
}

#[cfg(test)]
#[path = "fit_tests.rs"]
mod tests;
