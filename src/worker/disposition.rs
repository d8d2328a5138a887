//! The decision on an attempt: from the engine's result to the job's outcome and what follows.

use crate::{
    broker::Delay,
    engine::{EngineError, Generation},
    job::{Answer, Reason, RoutedJob, Tier},
    store::AttemptOutcome,
};

/// What follows the commit of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disposition {
    /// The job is terminal: send the reply and acknowledge.
    Done,
    /// Publish the job to a tier, another one or its own again, then acknowledge.
    ToTier(Tier),
    /// Publish the job to a delay queue, then acknowledge.
    RetryAfter(Delay),
    /// Requeue the message for another worker.
    Requeue,
}

/// How an attempt was run.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttemptContext {
    /// Its number, counted from 1.
    pub attempt: u32,
    /// No attempt is left after it.
    pub is_last: bool,
    /// Another attempt ran at the same time and may be the cause of a crash.
    pub had_company: bool,
}

/// Decides what an attempt came to. `low_confidence` is why its answer should be escalated, which
/// happens where the large model may take over.
///
/// There are three kinds of errors. The request's own end the job. Those of the engine or its server
/// count as an attempt, and the job is retried after a delay. A crash that another attempt may have
/// caused does not count, and the job is retried at once, isolated.
pub(super) fn decide(
    routed: &RoutedJob,
    context: AttemptContext,
    result: Result<Generation, EngineError>,
    low_confidence: Option<Reason>,
) -> (AttemptOutcome, Disposition) {
    let error = match result {
        Ok(generation) => {
            // With no attempt left the large model could not answer.
            let escalates = !context.is_last && may_escalate(routed);
            return match low_confidence.filter(|_| escalates) {
                Some(reason) => escalate(reason, Some(Box::new(generation.answer))),
                None => (
                    AttemptOutcome::Succeeded(generation.answer),
                    Disposition::Done,
                ),
            };
        }
        Err(error) => error,
    };
    let message = error.to_string();
    let (code, retry_after_ms) = match error {
        EngineError::Closed | EngineError::Stopped => {
            return (AttemptOutcome::Returned, Disposition::Requeue);
        }
        EngineError::ContextTooLong { .. } => {
            let reason = Reason::new("context_length_exceeded", message);
            if may_escalate(routed) {
                return escalate(reason, None);
            }
            return (AttemptOutcome::Failed(reason), Disposition::Done);
        }
        EngineError::Unservable(_) => {
            return (
                AttemptOutcome::Failed(Reason::new("unservable", message)),
                Disposition::Done,
            );
        }
        EngineError::Unavailable { retry_after_ms, .. } => ("engine_unavailable", retry_after_ms),
        EngineError::Crashed(_) => ("engine_crashed", None),
    };
    let reason = Reason::new(code, message);
    if context.had_company && code == "engine_crashed" {
        return (
            AttemptOutcome::RetryIsolated(reason),
            Disposition::ToTier(routed.tier),
        );
    }
    if context.is_last {
        (AttemptOutcome::AttemptsExhausted(reason), Disposition::Done)
    } else {
        (
            AttemptOutcome::Retry(reason),
            Disposition::RetryAfter(delay(context.attempt, retry_after_ms)),
        )
    }
}

/// True when the large model may take over: the router chose the small one, not the producer.
fn may_escalate(routed: &RoutedJob) -> bool {
    routed.tier == Tier::Small && routed.job.request.may_escalate()
}

fn escalate(reason: Reason, answer: Option<Box<Answer>>) -> (AttemptOutcome, Disposition) {
    let to = Tier::Large;
    (
        AttemptOutcome::Escalate { to, reason, answer },
        Disposition::ToTier(to),
    )
}

/// Longer after each attempt, and at least as long as the server asked for, up to the longest delay.
fn delay(attempt: u32, retry_after_ms: Option<u64>) -> Delay {
    let by_attempt = match attempt {
        0 | 1 => Delay::S1,
        2 => Delay::S10,
        _ => Delay::S60,
    };
    let asked = match retry_after_ms.unwrap_or(0) {
        0..=1_000 => Delay::S1,
        1_001..=10_000 => Delay::S10,
        _ => Delay::S60,
    };
    by_attempt.max(asked)
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use crate::worker::disposition::*;
    use crate::{
        job::{FinishReason, Job, JobHead, RequestLimits, Submission, Tenant, Usage},
        scoring::confidence::Confidence,
        worker::confidence::ConfidenceCheck,
    };

    fn routed(body: &str, tier: Tier) -> RoutedJob {
        let request = Submission::parse(body.as_bytes(), &RequestLimits::default())
            .expect("valid")
            .request;
        let head = JobHead::new(Tenant::default());
        RoutedJob {
            job: Job { head, request },
            tier,
            cache_key: None,
            pair: None,
            candidate: None,
            poison_candidate: false,
        }
    }

    fn context(attempt: u32, is_last: bool) -> AttemptContext {
        AttemptContext {
            attempt,
            is_last,
            had_company: false,
        }
    }

    fn too_long() -> EngineError {
        EngineError::ContextTooLong {
            model: "m".into(),
            prompt_tokens: 9,
            context_tokens: 8,
        }
    }

    #[test]
    fn a_prompt_too_long_for_small_escalates_only_if_the_router_chose_small() {
        let auto = routed(r#"{"prompt":"a"}"#, Tier::Small);
        assert_eq!(
            decide(&auto, context(1, false), Err(too_long()), None).1,
            Disposition::ToTier(Tier::Large)
        );
        for refused in [
            routed(r#"{"prompt":"a"}"#, Tier::Large),
            routed(r#"{"prompt":"a","model":"small"}"#, Tier::Small),
            routed(
                r#"{"prompt":"a","promptyard":{"escalate":false}}"#,
                Tier::Small,
            ),
        ] {
            let (outcome, next) = decide(&refused, context(1, false), Err(too_long()), None);
            assert!(matches!(outcome, AttemptOutcome::Failed(_)), "{outcome:?}");
            assert_eq!(next, Disposition::Done);
        }
    }

    fn generation() -> Generation {
        let now = Utc::now();
        Generation {
            answer: Answer {
                text: "perhaps".into(),
                finish_reason: FinishReason::Stop,
                usage: Usage::default(),
                model: "m".into(),
                revision: "1".into(),
                mean_logprob: None,
                logprobs: None,
            },
            signals: None,
            started_at: now,
            first_token_at: None,
            finished_at: now,
        }
    }

    #[test]
    fn an_answer_of_low_confidence_escalates_where_the_large_model_may_take_over() {
        let low = || Some(Reason::new("low_confidence", "below the threshold"));
        let auto = routed(r#"{"prompt":"a"}"#, Tier::Small);
        let (outcome, next) = decide(&auto, context(1, false), Ok(generation()), low());
        assert_eq!(next, Disposition::ToTier(Tier::Large));
        assert!(
            matches!(&outcome, AttemptOutcome::Escalate { answer: Some(kept), reason, .. }
                if kept.text == "perhaps" && reason.code == "low_confidence"),
            "{outcome:?}"
        );
        let keeps = [
            (&auto, true, low()),
            (&auto, false, None),
            (&routed(r#"{"prompt":"a"}"#, Tier::Large), false, low()),
            (
                &routed(r#"{"prompt":"a","model":"small"}"#, Tier::Small),
                false,
                low(),
            ),
            (
                &routed(
                    r#"{"prompt":"a","promptyard":{"escalate":false}}"#,
                    Tier::Small,
                ),
                false,
                low(),
            ),
        ];
        for (job, last, low) in keeps {
            let (outcome, next) = decide(job, context(1, last), Ok(generation()), low);
            assert_eq!(
                (outcome, next),
                (
                    AttemptOutcome::Succeeded(generation().answer),
                    Disposition::Done
                )
            );
        }
    }

    #[test]
    fn an_answer_that_violates_the_requested_format_escalates() {
        let asked = routed(
            r#"{"prompt":"a","response_format":{"type":"json_object"}}"#,
            Tier::Small,
        );
        let next = |text: &str, escalate_below| {
            let check = ConfidenceCheck::new(Confidence::generic(), escalate_below);
            let mut answered = generation();
            answered.answer.text = text.to_owned();
            let confidence = check.confidence(&answered, &asked.job.request);
            let low = check.low_confidence(confidence, &asked, Utc::now());
            (
                confidence,
                decide(&asked, context(1, false), Ok(answered), low).1,
            )
        };
        assert_eq!(
            next("perhaps", None),
            (Some(0.0), Disposition::ToTier(Tier::Large))
        );
        assert_eq!(next(r#"{"a":1}"#, None), (None, Disposition::Done));
        assert_eq!(
            next("perhaps", Some(0.0)),
            (Some(0.0), Disposition::Done),
            "a worker that escalates nothing"
        );
    }

    #[test]
    fn transient_errors_are_retried_with_growing_delays_until_attempts_are_exhausted() {
        let job = routed(r#"{"prompt":"a"}"#, Tier::Small);
        let crash = || Err(EngineError::Crashed("out of memory".into()));
        let delays: Vec<_> = (1..=3)
            .map(|attempt| decide(&job, context(attempt, false), crash(), None).1)
            .collect();
        assert_eq!(
            delays,
            [
                Disposition::RetryAfter(Delay::S1),
                Disposition::RetryAfter(Delay::S10),
                Disposition::RetryAfter(Delay::S60)
            ]
        );
        let (outcome, next) = decide(&job, context(4, true), crash(), None);
        assert!(matches!(outcome, AttemptOutcome::AttemptsExhausted(_)));
        assert_eq!(next, Disposition::Done);
        let throttled = EngineError::Unavailable {
            message: "429".into(),
            retry_after_ms: Some(7_000),
        };
        assert_eq!(
            decide(&job, context(1, false), Err(throttled), None).1,
            Disposition::RetryAfter(Delay::S10)
        );
    }

    #[test]
    fn a_crash_beside_other_attempts_does_not_count() {
        let job = routed(r#"{"prompt":"a"}"#, Tier::Large);
        for last in [false, true] {
            let in_company = AttemptContext {
                had_company: true,
                ..context(1, last)
            };
            let crash = Err(EngineError::Crashed("panic".into()));
            let (outcome, next) = decide(&job, in_company, crash, None);
            assert!(
                matches!(outcome, AttemptOutcome::RetryIsolated(_)),
                "{outcome:?}"
            );
            assert_eq!(next, Disposition::ToTier(Tier::Large), "at once");
            let away = EngineError::Unavailable {
                message: "503".into(),
                retry_after_ms: None,
            };
            let (outcome, _) = decide(&job, in_company, Err(away), None);
            assert_eq!(
                matches!(outcome, AttemptOutcome::AttemptsExhausted(_)),
                last,
                "counted"
            );
        }
    }

    #[test]
    fn a_closed_engine_requeues_the_job_without_counting_the_attempt() {
        let job = routed(r#"{"prompt":"a"}"#, Tier::Small);
        let closed = decide(&job, context(1, true), Err(EngineError::Closed), None);
        assert_eq!(closed, (AttemptOutcome::Returned, Disposition::Requeue));
    }
}
