//! Outcomes in the ledger, made into labels.
//!
//! Rows are not a fair sample of the jobs: a few of small's sure answers were drawn for a copy, and
//! all of its doubted ones were escalated. Each row therefore carries the probability with which it
//! became one, and [`crate::scoring::samples`] weighs it by that: drawn jobs stand for those that were not
//! drawn, escalated ones for themselves. What nobody says a probability of is not weighed: feedback
//! tells how good an answer was, not whether the job is a row. Jobs that never had a chance, such as
//! those sent straight to large where nothing is explored, no weight can speak for.

use serde_json::{Value, json};

use crate::{
    job::{ChatRequest, JobId, Role, Tenant},
    store::{PairRow, Store, StoreError},
};

use super::target::{KnownPair, isotonic::Pair};

/// Most labelled rows that are read from a ledger, the latest.
pub const ROWS_MAX: usize = 100_000;

/// A prompt with what each tier made of it: what the router is fitted to.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledRow {
    /// The job it was.
    pub job: JobId,
    /// Whose.
    pub tenant: Tenant,
    /// What was asked.
    pub request: ChatRequest,
    /// How good small's answer was, 0 to 1.
    pub small: f64,
    /// How good large's answer was, 0 to 1.
    pub large: f64,
    /// Probability with which the job became a row: that of going to small, times that of being drawn
    /// for a copy; an escalated job needed no copy.
    pub propensity: f64,
}

impl LabelledRow {
    /// The row as a line of a file of labelled prompts: the tenant is the set, the job's first tag the
    /// domain.
    pub fn to_line(&self) -> Value {
        let asked = self
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
            "prompt": asked.map(|turn| turn.content.as_str()).unwrap_or_default(),
            "weak_score": self.small,
            "strong_score": self.large,
            "propensity": self.propensity,
        })
    }
}

/// Reads the jobs of which both tiers' outcomes are known, the latest first.
///
/// # Errors
/// When the ledger cannot be read.
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

/// From this feedback score on an answer counts as right.
const RIGHT: f64 = 0.5;

/// How good each tier's answer to a pair was, 0 to 1: (small, large).
///
/// What was said about an answer counts first. Where nothing was said, answers that agree are worth
/// the same, and where they differ large is taken to be right: it is the better model, and which of
/// the two is right was not asked. Small's answer is then wrong, unless it was called right by
/// somebody; one that a mark against an expected answer called right leaves large, which said
/// something else, wrong.
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

/// The pairs that tell a threshold of `scorer`: those that it scored itself.
pub fn calibration_pairs(rows: Vec<PairRow>, scorer: &str) -> Vec<KnownPair> {
    rows.into_iter()
        .filter(|row| row.scorer.as_deref() == Some(scorer))
        .filter_map(|row| {
            let (small, large) = outcomes(&row);
            let pair = Pair {
                score: row.score?,
                small,
                large,
            };
            Some(KnownPair {
                tenant: row.tenant.to_string(),
                tags: row.tags,
                pair,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::job::{JobId, Tenant};
    use crate::router::learning::*;

    #[test]
    fn what_was_said_counts_before_agreement() {
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
