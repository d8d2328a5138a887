//! Training labels from the outcomes in the database.
//!
//! Rows are a biased sample of the jobs: a few of small's confident answers were drawn for a copy on
//! large, and all its low-confidence ones were escalated. Each row therefore carries the probability of
//! its selection, and [`crate::scoring::samples`] weighs it by the inverse: drawn jobs represent those
//! not drawn, escalated ones themselves. Feedback changes labels, never weights. Jobs that cannot be
//! selected, such as those sent straight to large without exploration, are not represented.

use serde_json::{Value, json};

use crate::{
    job::{ChatRequest, JobId, Role, Tenant},
    store::{PairRow, Store, StoreError},
};

use super::target::{ScopedObservation, isotonic::Observation};

/// Most labelled rows read from the database, the latest.
pub const ROWS_MAX: usize = 100_000;

/// A prompt with both tiers' outcomes.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledRow {
    /// The job.
    pub job: JobId,
    /// Its tenant.
    pub tenant: Tenant,
    /// Its request.
    pub request: ChatRequest,
    /// Quality of small's answer, 0 to 1.
    pub small: f64,
    /// Quality of large's answer, 0 to 1.
    pub large: f64,
    /// Probability with which the job was selected: that of going to small, times that of being drawn for
    /// a copy unless it was escalated.
    pub propensity: f64,
}

impl LabelledRow {
    /// The row as a line of a file of labelled prompts: the tenant is the set, the job's first tag the
    /// domain.
    pub fn to_line(&self) -> Value {
        let question = self
            .request
            .messages
            .iter()
            .rfind(|turn| turn.role == Role::User);
        let tags = &self.request.options.tags;
        json!({
            "id": self.job,
            "set": self.tenant,
            "domain": tags.first().map_or("all", String::as_str),
            "tags": tags,
            "prompt": question.map(|turn| turn.content.as_str()).unwrap_or_default(),
            "weak_score": self.small,
            "strong_score": self.large,
            "propensity": self.propensity,
        })
    }
}

/// Reads the jobs with both tiers' outcomes, latest first.
///
/// # Errors
/// When the database cannot be read.
pub async fn labelled_rows(store: &Store) -> Result<Vec<LabelledRow>, StoreError> {
    let rows = store.pairs(ROWS_MAX, true).await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| {
            let (small, large) = outcomes(&row);
            Some(LabelledRow {
                job: row.job,
                tenant: row.tenant,
                request: row.request?,
                small,
                large,
                propensity: row.propensity,
            })
        })
        .collect())
}

/// Least feedback score of a right answer.
const RIGHT: f64 = 0.5;

/// The quality of each tier's answer, 0 to 1: (small, large).
///
/// Feedback counts first. Without feedback, agreeing answers have the same quality; of differing ones
/// large, the better model, counts as right and small as wrong. If small's answer equals an expected
/// answer, a differing answer of large is wrong.
pub fn outcomes(row: &PairRow) -> (f64, f64) {
    match (row.small_feedback, row.large_feedback) {
        (Some(small), Some(large)) => (small, large),
        (Some(small), None) if row.agrees => (small, small),
        (Some(small), None) if row.is_exact && small >= RIGHT => (small, 0.0),
        (Some(small), None) => (small, 1.0),
        (None, Some(large)) if row.agrees => (large, large),
        (None, Some(large)) => (0.0, large),
        (None, None) if row.agrees => (1.0, 1.0),
        (None, None) => (0.0, 1.0),
    }
}

/// The observations for calibrating thresholds of `scorer`: the rows that it scored itself.
pub fn calibration_pairs(rows: Vec<PairRow>, scorer: &str) -> Vec<ScopedObservation> {
    rows.into_iter()
        .filter(|row| row.scorer.as_deref() == Some(scorer))
        .filter_map(|row| {
            let (small, large) = outcomes(&row);
            let observation = Observation {
                score: row.score?,
                small,
                large,
            };
            Some(ScopedObservation {
                tenant: row.tenant.to_string(),
                tags: row.tags,
                observation,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::job::{JobId, Tenant};
    use crate::router::learning::*;

    #[test]
    fn feedback_counts_before_agreement() {
        let row = |agrees, small_feedback, is_exact, large_feedback| PairRow {
            job: JobId::now(),
            tenant: Tenant::default(),
            tags: Vec::new(),
            scorer: Some("s".to_owned()),
            score: Some(0.5),
            propensity: 1.0,
            agrees,
            small_feedback,
            is_exact,
            large_feedback,
            request: None,
        };
        for (row, expected) in [
            (row(true, None, false, None), (1.0, 1.0)),
            (row(false, None, false, None), (0.0, 1.0)),
            (row(true, Some(0.0), true, None), (0.0, 0.0)),
            (row(false, Some(0.0), true, None), (0.0, 1.0)),
            (row(false, Some(1.0), true, None), (1.0, 0.0)),
            (row(false, Some(0.9), false, None), (0.9, 1.0)),
            (row(false, Some(0.2), false, Some(0.4)), (0.2, 0.4)),
            (row(false, None, false, Some(0.4)), (0.0, 0.4)),
            (row(true, None, false, Some(0.4)), (0.4, 0.4)),
        ] {
            assert_eq!(outcomes(&row), expected, "{row:?}");
        }
        let other = row(true, None, false, None);
        assert_eq!(calibration_pairs(vec![other], "another").len(), 0);
    }
}
