//! How sure an answer of the small tier is, and whether that is enough.
//!
//! One that has not the form asked for (`response_format`) is wrong for certain: engines of ours write
//! nothing else unless they are cut off, servers behind [`upstream`](crate::engine::upstream) may.

use chrono::{DateTime, Utc};

use crate::{
    engine::Generation,
    job::{ChatRequest, Reason, RoutedJob},
    scoring::confidence::Confidence,
};

/// Judges the small tier's answers by their form and their own log-probabilities.
#[derive(Clone, Debug)]
pub(super) struct ConfidenceCheck {
    confidence: Confidence,
    /// Answers below it are escalated.
    escalate_below: f64,
}

impl ConfidenceCheck {
    /// `escalate_below` overrides the calibration's own threshold.
    pub(super) fn new(confidence: Confidence, escalate_below: Option<f64>) -> Self {
        Self {
            escalate_below: escalate_below.unwrap_or(confidence.escalate_below()),
            confidence,
        }
    }

    /// The probability that an answer is right: none when it has not the form asked for; `None` where
    /// the engine gave no log-probabilities.
    pub(super) fn confidence(&self, generation: &Generation, asked: &ChatRequest) -> Option<f32> {
        let format = &asked.sampling.response_format;
        if !format.is_met_by(&generation.answer.text) {
            return Some(0.0);
        }
        let signals = generation.signals.as_ref()?;
        Some(self.confidence.of(signals) as f32)
    }

    /// Why an answer of this confidence is not to be the job's, if so. After the deadline nothing
    /// would be run any more, so the answer at hand is as good as any.
    pub(super) fn doubt(
        &self,
        confidence: Option<f32>,
        routed: &RoutedJob,
        now: DateTime<Utc>,
    ) -> Option<Reason> {
        let confidence = f64::from(confidence?);
        let is_late = routed.job.head.deadline.is_some_and(|at| at <= now);
        (confidence < self.escalate_below && !is_late).then(|| {
            Reason::new(
                "low_confidence",
                format!(
                    "the small model's answer has a confidence of {confidence:.3}; below {:.3} the large one answers",
                    self.escalate_below
                ),
            )
        })
    }
}
