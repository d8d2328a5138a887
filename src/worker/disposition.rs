//! From an engine's outcome to what happens to the job.

use crate::{
    broker::Delay,
    engine::{EngineError, Generation},
    job::{Answer, Reason, RoutedJob, Tier},
    store::AttemptOutcome,
};

/// What follows the commit of a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The job is terminal: reply and acknowledge.
    Done,
    /// Publish the job to a tier, another one or its own again, then acknowledge.
    Tier(Tier),
    /// Publish the job to a delay queue, then acknowledge.
    Rest(Delay),
    /// Put the message back: another worker takes it.
    PutBack,
}

/// How an attempt was run.
#[derive(Clone, Copy, Debug)]
pub struct AttemptContext {
    /// Its number, counted from 1.
    pub attempt: u32,
    /// No attempt is left after it.
    pub last: bool,
    /// It shared its steps with others, so a crash may be theirs.
    pub company: bool,
}

/// Judges an attempt; `doubt` is why an answer is not sure enough to be the job's, which counts where the
/// large model may take over.
///
/// Faults are of three kinds. Never again: the request is at error. Later: the engine or its server is, and
/// the job rests. At once: a neighbour may be, and the job, uncounted, goes on to run by itself.
pub fn judge(
    routed: &RoutedJob,
    AttemptContext {
        attempt,
        last,
        company,
    }: AttemptContext,
    outcome: Result<Generation, EngineError>,
    doubt: Option<Reason>,
) -> (AttemptOutcome, Disposition) {
    let error = match outcome {
        Ok(generation) => {
            // With no attempt left the large model could not answer.
            return match doubt.filter(|_| !last && may_escalate(routed)) {
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
            return (AttemptOutcome::Returned, Disposition::PutBack);
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
    if company && code == "engine_crashed" {
        return (
            AttemptOutcome::RetryIsolated(reason),
            Disposition::Tier(routed.tier),
        );
    }
    if last {
        (AttemptOutcome::AttemptsExhausted(reason), Disposition::Done)
    } else {
        (
            AttemptOutcome::Retry(reason),
            Disposition::Rest(delay(attempt, retry_after_ms)),
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
        Disposition::Tier(to),
    )
}

/// Longer after each attempt, and at least what the server asked for as far as the queues go.
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
        job::{FinishReason, Job, JobHead, JobId, RequestLimits, Submission, Tenant, Usage},
        scoring::confidence::Confidence,
        worker::confidence::ConfidenceCheck,
    };

    fn routed(body: &str, tier: Tier) -> RoutedJob {
        let request = Submission::parse(body.as_bytes(), &RequestLimits::default())
            .expect("valid")
            .request;
        let head = JobHead {
            id: JobId::now(),
            tenant: Tenant::default(),
            key: None,
            custom_id: None,
            batch: None,
            deadline: None,
            not_before: None,
            attempts_max: None,
            reply_to: None,
            priority: Default::default(),
            redrive_of: None,
            submitted_at: Utc::now(),
        };
        RoutedJob {
            job: Job { head, request },
            tier,
            cache_key: None,
            pair: None,
            candidate: None,
            poison_candidate: false,
        }
    }

    fn terms(attempt: u32, last: bool) -> AttemptContext {
        AttemptContext {
            attempt,
            last,
            company: false,
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
    fn a_long_prompt_escalates_once_and_only_if_the_router_chose_small() {
        let auto = routed(r#"{"prompt":"a"}"#, Tier::Small);
        assert_eq!(
            judge(&auto, terms(1, false), Err(too_long()), None).1,
            Disposition::Tier(Tier::Large)
        );
        for refused in [
            routed(r#"{"prompt":"a"}"#, Tier::Large),
            routed(r#"{"prompt":"a","model":"small"}"#, Tier::Small),
            routed(
                r#"{"prompt":"a","promptyard":{"escalate":false}}"#,
                Tier::Small,
            ),
        ] {
            let (verdict, next) = judge(&refused, terms(1, false), Err(too_long()), None);
            assert!(matches!(verdict, AttemptOutcome::Failed(_)), "{verdict:?}");
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
    fn a_doubtful_answer_escalates_where_the_large_model_may_take_over() {
        let doubt = || Some(Reason::new("low_confidence", "the answer is not sure"));
        let auto = routed(r#"{"prompt":"a"}"#, Tier::Small);
        let (verdict, next) = judge(&auto, terms(1, false), Ok(generation()), doubt());
        assert_eq!(next, Disposition::Tier(Tier::Large));
        assert!(
            matches!(&verdict, AttemptOutcome::Escalate { answer: Some(kept), reason, .. }
                if kept.text == "perhaps" && reason.code == "low_confidence"),
            "{verdict:?}"
        );
        let keeps = [
            (&auto, true, doubt()),
            (&auto, false, None),
            (&routed(r#"{"prompt":"a"}"#, Tier::Large), false, doubt()),
            (
                &routed(r#"{"prompt":"a","model":"small"}"#, Tier::Small),
                false,
                doubt(),
            ),
            (
                &routed(
                    r#"{"prompt":"a","promptyard":{"escalate":false}}"#,
                    Tier::Small,
                ),
                false,
                doubt(),
            ),
        ];
        for (job, last, doubt) in keeps {
            let (verdict, next) = judge(job, terms(1, last), Ok(generation()), doubt);
            assert_eq!(
                (verdict, next),
                (
                    AttemptOutcome::Succeeded(generation().answer),
                    Disposition::Done
                )
            );
        }
    }

    #[test]
    fn an_answer_that_breaks_the_format_asked_for_is_doubted() {
        let asked = routed(
            r#"{"prompt":"a","response_format":{"type":"json_object"}}"#,
            Tier::Small,
        );
        let next = |text: &str, escalate_below| {
            let doubter = ConfidenceCheck::new(Confidence::generic(), escalate_below);
            let mut answered = generation();
            answered.answer.text = text.to_owned();
            let confidence = doubter.confidence(&answered, &asked.job.request);
            let doubt = doubter.doubt(confidence, &asked, Utc::now());
            (
                confidence,
                judge(&asked, terms(1, false), Ok(answered), doubt).1,
            )
        };
        assert_eq!(
            next("perhaps", None),
            (Some(0.0), Disposition::Tier(Tier::Large))
        );
        assert_eq!(next(r#"{"a":1}"#, None), (None, Disposition::Done));
        assert_eq!(
            next("perhaps", Some(0.0)),
            (Some(0.0), Disposition::Done),
            "a worker that escalates nothing"
        );
    }

    #[test]
    fn faults_that_pass_are_retried_later_each_time_until_attempts_are_spent() {
        let job = routed(r#"{"prompt":"a"}"#, Tier::Small);
        let crash = || Err(EngineError::Crashed("out of memory".into()));
        let delays: Vec<_> = (1..=3)
            .map(|attempt| judge(&job, terms(attempt, false), crash(), None).1)
            .collect();
        assert_eq!(
            delays,
            [
                Disposition::Rest(Delay::S1),
                Disposition::Rest(Delay::S10),
                Disposition::Rest(Delay::S60)
            ]
        );
        let (verdict, next) = judge(&job, terms(4, true), crash(), None);
        assert!(matches!(verdict, AttemptOutcome::AttemptsExhausted(_)));
        assert_eq!(next, Disposition::Done);
        let throttled = EngineError::Unavailable {
            message: "429".into(),
            retry_after_ms: Some(7_000),
        };
        assert_eq!(
            judge(&job, terms(1, false), Err(throttled), None).1,
            Disposition::Rest(Delay::S10)
        );
    }

    #[test]
    fn a_crash_in_company_counts_against_nobody() {
        let job = routed(r#"{"prompt":"a"}"#, Tier::Large);
        for last in [false, true] {
            let beside = AttemptContext {
                company: true,
                ..terms(1, last)
            };
            let crash = Err(EngineError::Crashed("panic".into()));
            let (verdict, next) = judge(&job, beside, crash, None);
            assert!(
                matches!(verdict, AttemptOutcome::RetryIsolated(_)),
                "{verdict:?}"
            );
            assert_eq!(next, Disposition::Tier(Tier::Large), "at once");
            let away = EngineError::Unavailable {
                message: "503".into(),
                retry_after_ms: None,
            };
            let (verdict, _) = judge(&job, beside, Err(away), None);
            assert_eq!(
                matches!(verdict, AttemptOutcome::AttemptsExhausted(_)),
                last,
                "counted"
            );
        }
    }

    #[test]
    fn a_closed_engine_puts_the_job_back_without_charge() {
        let job = routed(r#"{"prompt":"a"}"#, Tier::Small);
        let closed = judge(&job, terms(1, true), Err(EngineError::Closed), None);
        assert_eq!(closed, (AttemptOutcome::Returned, Disposition::PutBack));
    }
}
