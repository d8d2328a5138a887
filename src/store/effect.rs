//! What the end of an attempt writes, decided without I/O so that both backends agree.

use super::{AttemptOutcome, Reused};
use crate::job::{Answer, AnswerSource, CacheKey, JobId, JobState, Reason, Usage};

/// An answer as the jobs that wait for it are given it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given<'a> {
    pub answer: &'a Answer,
    pub source: AnswerSource,
    /// The job that computed it.
    pub by: JobId,
    pub cosine: Option<f32>,
    /// Only those of the waiting jobs that looked this entry up themselves: the others did not allow
    /// that another question's answer serves them.
    pub only_of: Option<CacheKey>,
}

/// What an outcome writes.
#[derive(Debug)]
pub(super) struct Effect<'a> {
    /// The job's next state.
    pub state: JobState,
    /// The attempt's outcome.
    pub outcome: &'static str,
    /// The job's next tier, where it changes.
    pub tier: Option<&'static str>,
    /// The job's answer.
    pub answer: Option<&'a Answer>,
    /// What the attempt generated: the job's answer, or one that was escalated.
    pub generated: Option<&'a Answer>,
    pub reason: Option<&'a Reason>,
    /// Whose answer it is, where the attempt found that another's serves.
    pub reused: Option<&'a Reused>,
    /// True when the attempt does not count.
    pub is_returned: bool,
    /// True when a dead letter is to be left.
    pub keep_dead_letters: bool,
}

impl<'a> Effect<'a> {
    pub(super) fn of(outcome: &'a AttemptOutcome) -> Self {
        let bare = |state, outcome| Self {
            state,
            outcome,
            tier: None,
            answer: None,
            generated: None,
            reason: None,
            reused: None,
            is_returned: false,
            keep_dead_letters: false,
        };
        match outcome {
            AttemptOutcome::Succeeded(answer) => Self {
                answer: Some(answer),
                generated: Some(answer),
                ..bare(JobState::Succeeded, "succeeded")
            },
            AttemptOutcome::Reused(reused) => Self {
                answer: Some(&reused.answer),
                generated: Some(&reused.check),
                reason: Some(&reused.reason),
                reused: Some(reused),
                ..bare(JobState::Succeeded, "succeeded")
            },
            AttemptOutcome::Failed(reason) => Self {
                reason: Some(reason),
                ..bare(JobState::Failed, "failed")
            },
            AttemptOutcome::AttemptsExhausted(reason) => Self {
                reason: Some(reason),
                keep_dead_letters: true,
                ..bare(JobState::Failed, "failed")
            },
            AttemptOutcome::Expired(reason, partial) => Self {
                reason: Some(reason),
                generated: partial.as_deref(),
                ..bare(JobState::Expired, "expired")
            },
            AttemptOutcome::Cancelled(reason, partial) => Self {
                reason: Some(reason),
                generated: partial.as_deref(),
                ..bare(JobState::Cancelled, "cancelled")
            },
            AttemptOutcome::Retry(reason) => Self {
                reason: Some(reason),
                ..bare(JobState::Routed, "retried")
            },
            AttemptOutcome::RetryIsolated(reason) => Self {
                reason: Some(reason),
                is_returned: true,
                ..bare(JobState::Routed, "retried")
            },
            AttemptOutcome::Escalate { to, reason, answer } => Self {
                tier: Some(to.as_str()),
                generated: answer.as_deref(),
                reason: Some(reason),
                ..bare(JobState::Routed, "escalated")
            },
            AttemptOutcome::Returned => Self {
                is_returned: true,
                ..bare(JobState::Routed, "returned")
            },
        }
    }

    /// The answer that stays with the attempt alone.
    pub(super) fn kept(&self) -> Option<&'a Answer> {
        self.generated.filter(|_| self.answer.is_none())
    }

    /// What an escalated attempt took.
    pub(super) fn escalated(&self) -> Option<Usage> {
        let usage = self.generated.map(|answer| answer.usage);
        self.tier.map(|_| usage.unwrap_or_default())
    }

    /// True when the job does not lead its cache entry any more: it ended without an answer, or
    /// escalated, and another tier's answer is not what the others wait for. Put back on its own
    /// tier's queue, it still leads.
    pub(super) fn gives_up(&self) -> bool {
        self.answer.is_none() && (self.state.is_terminal() || self.tier.is_some())
    }

    /// What the jobs that wait for `job`'s answer are given.
    pub(super) fn given(&self, job: JobId) -> Option<Given<'a>> {
        let answer = self.answer?;
        Some(match self.reused {
            Some(reused) => Given {
                answer,
                source: AnswerSource::Semantic,
                by: reused.leader,
                cosine: Some(reused.cosine),
                only_of: Some(reused.entry),
            },
            None => Given {
                answer,
                source: AnswerSource::Shared,
                by: job,
                cosine: None,
                only_of: None,
            },
        })
    }

    /// How the job comes by its answer, if it does.
    pub(super) fn source(&self) -> Option<AnswerSource> {
        self.answer.map(|_| match self.reused {
            Some(_) => AnswerSource::Semantic,
            None => AnswerSource::Computed,
        })
    }

    /// The reason as the job keeps it: only for jobs that end without an answer.
    pub(super) fn job_reason(&self) -> Option<&'a Reason> {
        self.reason
            .filter(|_| self.state.is_terminal() && self.answer.is_none())
    }
}
