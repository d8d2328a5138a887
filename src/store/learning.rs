//! What routing learns from: decisions, answers of both tiers, feedback, weights and targets.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::{
    config::{RouteTarget, TargetScope},
    job::{ChatRequest, JobId, Reason, Tenant, Tier},
};

/// Why a job went to its tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum RouteReason {
    /// Its score and the base threshold.
    #[default]
    Score,
    /// Load moved the threshold across its score.
    Load,
    /// Random exploration of the other tier.
    Explore,
    /// Its context is too long for small.
    Rule,
    /// Its producer asked for the tier or the model.
    Producer,
    /// It is a shadow copy.
    Shadow,
}

impl RouteReason {
    /// The name used in SQL.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A rating of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Feedback {
    /// The rated job.
    pub job: JobId,
    /// Who rates: 1 to [`Feedback::SOURCE_CHARS_MAX`] characters; `expect` for exact marks.
    pub source: String,
    /// 0 useless to 1 right.
    pub score: f64,
    /// Why, in up to [`Feedback::COMMENT_CHARS_MAX`] characters.
    pub comment: Option<String>,
}

impl Feedback {
    /// Longest source, in characters.
    pub const SOURCE_CHARS_MAX: usize = 64;
    /// Longest comment, in characters.
    pub const COMMENT_CHARS_MAX: usize = 2000;
    /// The source of marks against an expected answer: right or wrong, nothing between.
    pub const EXPECT: &'static str = "expect";

    /// Rejects invalid fields.
    ///
    /// # Errors
    /// A reason that names the field.
    pub fn check(&self) -> Result<(), Reason> {
        let error = |message: String| Err(Reason::new("invalid_value", message));
        if !(0.0..=1.0).contains(&self.score) {
            return error(format!(
                "score: expected a number from 0 to 1, found {}",
                self.score
            ));
        }
        let source = self.source.chars().count();
        if !(1..=Self::SOURCE_CHARS_MAX).contains(&source) {
            let most = Self::SOURCE_CHARS_MAX;
            return error(format!(
                "source: expected 1 to {most} characters, found {source}"
            ));
        }
        let comment = self
            .comment
            .as_deref()
            .map_or(0, |text| text.chars().count());
        if comment > Self::COMMENT_CHARS_MAX {
            let most = Self::COMMENT_CHARS_MAX;
            return error(format!(
                "comment: expected up to {most} characters, found {comment}"
            ));
        }
        Ok(())
    }
}

/// A recent decision, to start calibration from.
#[derive(Clone, Debug, PartialEq)]
pub struct PastDecision {
    /// Whose job it was.
    pub tenant: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// Its score.
    pub score: f64,
}

/// The routing decision about one job, for display.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DecisionRecord {
    /// Name and version of the scorer.
    pub scorer: Option<String>,
    /// Version of the features.
    pub features_version: Option<i32>,
    /// What the scorer saw.
    pub features: Option<Value>,
    /// 0 to 1, higher for large.
    pub score: Option<f64>,
    /// The threshold that the target alone gave.
    pub threshold_base: Option<f64>,
    /// The threshold used.
    pub threshold: Option<f64>,
    /// What was to be delivered.
    pub target: Option<String>,
    /// Whose target it was.
    pub target_scope: Option<String>,
    /// Why the tier: see [`RouteReason::as_str`].
    pub route_reason: Option<String>,
    /// Probability of this decision.
    pub propensity: Option<f64>,
    /// The job that this one copies.
    pub shadow_of: Option<JobId>,
    /// The copy of this one, if one was made.
    pub shadow: Option<JobId>,
    /// Feedback on its answer: source and score.
    pub feedback: Vec<(String, f64)>,
}

/// Recent cost of a tier's jobs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TierCost {
    /// The tier.
    pub tier: Tier,
    /// Jobs in the sample.
    pub jobs: u64,
    /// Mean seconds from the engine's start to the commit.
    pub seconds_mean: f64,
    /// Mean tokens of a prompt.
    pub prompt_tokens_mean: f64,
    /// Mean tokens of an answer.
    pub completion_tokens_mean: f64,
}

/// A target set at run time.
#[derive(Clone, Debug, PartialEq)]
pub struct ScopedTarget {
    /// The jobs it applies to.
    pub scope: TargetScope,
    /// The target.
    pub target: RouteTarget,
    /// When it was set.
    pub changed_at: DateTime<Utc>,
}

impl ScopedTarget {
    /// Reads a row, which an operator may have written.
    pub(super) fn read(
        scope: &str,
        target: &str,
        changed_at: DateTime<Utc>,
    ) -> Result<Self, String> {
        let error = |error| format!("route_targets: scope {scope:?}, target {target:?}: {error}");
        Ok(Self {
            scope: scope.parse().map_err(error)?,
            target: target.parse().map_err(error)?,
            changed_at,
        })
    }

    /// The target as the command line shows it.
    pub fn to_json(&self) -> Value {
        json!({
            "scope": self.scope.to_string(),
            "target": self.target.to_string(),
            "changed_at": self.changed_at,
        })
    }
}

/// A job that both tiers answered.
#[derive(Clone, Debug, PartialEq)]
pub struct PairRow {
    /// The producer's job, answered by small.
    pub job: JobId,
    /// Whose it was.
    pub tenant: Tenant,
    /// Its tags.
    pub tags: Vec<String>,
    /// Name and version of the scorer that scored it.
    pub scorer: Option<String>,
    /// Its score then.
    pub score: Option<f64>,
    /// Probability with which it became a pair: that of its decision, times that of being drawn for a
    /// copy where it needed one.
    pub propensity: f64,
    /// True when both answers are the same but for white space at their ends.
    pub agrees: bool,
    /// Mean feedback on small's answer.
    pub small_feedback: Option<f64>,
    /// True when a mark against an expected answer is in it.
    pub is_exact: bool,
    /// Mean feedback on large's answer.
    pub large_feedback: Option<f64>,
    /// The request, if wanted.
    pub request: Option<ChatRequest>,
}

/// Trained weights in the database.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredWeights {
    /// Name and version.
    pub version: String,
    /// When they were stored.
    pub created_at: DateTime<Utc>,
    /// Training metrics.
    pub metrics: Value,
    /// The weights, as the weight file holds them.
    pub weights: Vec<u8>,
}
