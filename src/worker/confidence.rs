//! The confidence of the small tier's answers, and whether it is enough.
//!
//! An answer that violates the requested `response_format` is wrong for certain. The local engine
//! writes none unless it is cut off; servers behind [`upstream`](crate::engine::upstream) may.

use chrono::{DateTime, Utc};

use crate::{
    engine::Generation,
    job::{ChatRequest, Reason, RoutedJob},
    scoring::confidence::Confidence,
};

/// Rates the small tier's answers by their format and their log-probabilities.
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

    /// The probability that an answer is right: 0 when it violates the requested format, `None` where
    /// the engine gave no log-probabilities.
    pub(super) fn confidence(&self, generation: &Generation, request: &ChatRequest) -> Option<f32> {
        let format = &request.sampling.response_format;
        if !format.is_met_by(&generation.answer.text) {
            return Some(0.0);
        }
        let signals = generation.signals.as_ref()?;
        Some(self.confidence.of(signals) as f32)
    }

    /// Why an answer of this confidence is escalated, if it is. After the deadline no other attempt
    /// would run, so the answer stands.
    pub(super) fn low_confidence(
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
