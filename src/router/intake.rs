//! From a message to an admission: parse, check the deadline, choose the tier, make the cache key.

use chrono::{DateTime, Utc};

use crate::{
    broker::{
        Delivery, Envelope,
        wire::{
            HEADER_ADMITTED, HEADER_BATCH, HEADER_CUSTOM_ID, HEADER_JOB_ID, HEADER_ROUTED,
            KEY_BYTES_MAX,
        },
    },
    cache::{cache_key, question_of, scope_key},
    job::{
        ChatRequest, Job, JobHead, JobId, JobState, ModelPair, Reason, Rejection, ReplyTo,
        RequestLimits, RoutedJob, ServedModel, Submission, Tenant, Tier,
    },
    store::{Admission, AdmissionDecision, Lookup, Route},
};

use super::{model_registry::ServedModels, policy::Policy, scheduling::AdmissionControl};

/// What a message from `jobs.in` is.
#[derive(Debug)]
pub enum Intake {
    /// A job to be admitted.
    Admit(Box<Admission>),
    /// A routed job that has rested in a delay queue: to its tier with it.
    Forward(Box<RoutedJob>),
}

/// What reading a message depends on besides the message.
#[derive(Clone, Copy, Debug)]
pub struct IntakeContext<'a> {
    /// Limits and defaults of bodies.
    pub limits: &'a RequestLimits,
    /// How tiers are chosen.
    pub policy: &'a Policy,
    /// The models served now.
    pub models: &'a ServedModels,
    /// Revision of the encoder that finds questions which ask the same, and the likeness that they must
    /// have; `None` without one.
    pub semantic: Option<(&'a str, f32)>,
    /// The present.
    pub now: DateTime<Utc>,
}

/// Reads a message. Whatever is wrong with it becomes an admission that ends at once.
pub fn read(delivery: &Delivery, context: IntakeContext<'_>) -> Intake {
    let envelope = &delivery.envelope;
    if envelope.headers.contains_key(HEADER_ROUTED)
        && let Ok(routed) = serde_json::from_slice(&delivery.body)
    {
        return Intake::Forward(Box::new(routed));
    }
    if envelope.headers.contains_key(HEADER_ADMITTED)
        && let Ok(Job { head, request }) = serde_json::from_slice(&delivery.body)
    {
        let course = course_of(&head, &request, context);
        return Intake::Admit(Box::new(admission(head, request, course)));
    }
    Intake::Admit(Box::new(read_body(envelope, &delivery.body, context)))
}

/// Reads a body with its envelope.
pub fn read_body(envelope: &Envelope, body: &[u8], context: IntakeContext<'_>) -> Admission {
    let mut head = head_of(envelope, context.now);
    let rejected = |reason| AdmissionDecision::End {
        state: JobState::Rejected,
        reason,
    };
    let submission = match Submission::parse(body, context.limits) {
        Ok(submission) => submission,
        Err(rejection) => {
            let Rejection {
                reason,
                custom_id,
                tenant,
            } = rejection;
            adopt(&mut head, custom_id, tenant);
            return Admission {
                head,
                request: None,
                digest: *blake3::hash(body).as_bytes(),
                decision: rejected(reason),
            };
        }
    };
    adopt(&mut head, submission.custom_id, submission.tenant);
    let allowed = submission.schedule.deadline(head.submitted_at);
    head.deadline = [head.deadline, allowed].into_iter().flatten().min();
    head.not_before = submission.schedule.not_before;
    head.attempts_max = submission.schedule.attempts_max;
    let course = match key_fault(head.key.as_deref()) {
        Some(reason) => {
            head.key = None;
            rejected(reason)
        }
        None => course_of(&head, &submission.request, context),
    };
    admission(head, submission.request, course)
}

fn admission(head: JobHead, request: ChatRequest, decision: AdmissionDecision) -> Admission {
    let canonical = serde_json::to_vec(&request).expect("a request has no map with non-text keys");
    Admission {
        head,
        digest: *blake3::hash(&canonical).as_bytes(),
        request: Some(request),
        decision,
    }
}

/// What is to become of a job now.
fn course_of(
    head: &JobHead,
    request: &ChatRequest,
    context: IntakeContext<'_>,
) -> AdmissionDecision {
    if head
        .deadline
        .is_some_and(|deadline| deadline <= context.now)
    {
        return AdmissionDecision::End {
            state: JobState::Expired,
            reason: Reason::new(
                "deadline_passed",
                "the deadline passed before the job was routed",
            ),
        };
    }
    if let Some(hold) = AdmissionControl::until_start(head, request, context.now) {
        return AdmissionDecision::Schedule(hold);
    }
    match context.policy.decide(head, request, context.models) {
        Ok((tier, decision)) => {
            // What is reused for a job that may be escalated is the final answer.
            let pair = (tier == Tier::Small && request.may_escalate()).then(|| ModelPair {
                small: served(context.models, Tier::Small),
                large: served(context.models, Tier::Large),
            });
            let own = served(context.models, tier);
            let own = [(own.model.as_str(), own.revision.as_str())];
            let names = pair.as_ref().map(ModelPair::names);
            let models: &[(&str, &str)] = names.as_ref().map_or(&own, |names| names);
            AdmissionDecision::Route(Route {
                tier,
                decision,
                cache_key: cache_key(&head.tenant, models, request),
                lookup: lookup(&head.tenant, models, request, context),
                pair,
                deferral: None,
            })
        }
        Err(reason) => AdmissionDecision::End {
            state: JobState::Rejected,
            reason,
        },
    }
}

/// What a request asks of semantic reuse. Without the revisions of the models nothing is looked up: an
/// answer of theirs could not be reported from another model's.
fn lookup(
    tenant: &Tenant,
    models: &[(&str, &str)],
    request: &ChatRequest,
    context: IntakeContext<'_>,
) -> Option<Box<Lookup>> {
    let (embedder, cosine_min) = context.semantic?;
    let question = question_of(request)?;
    if models.iter().any(|(_, revision)| revision.is_empty()) {
        return None;
    }
    Some(Box::new(Lookup {
        scope: scope_key(tenant, models, request, embedder)?,
        question: question.to_owned(),
        embedder: embedder.to_owned(),
        embedding: Vec::new(),
        cosine_min,
        nearest: None,
    }))
}

/// Builds the tier message of an admitted job.
pub fn routed(admission: &Admission) -> Option<RoutedJob> {
    let (AdmissionDecision::Route(route), Some(request)) =
        (&admission.decision, &admission.request)
    else {
        return None;
    };
    Some(RoutedJob {
        job: Job {
            head: admission.head.clone(),
            request: request.clone(),
        },
        tier: route.tier,
        cache_key: route.cache_key,
        pair: route.pair.clone(),
        candidate: route.candidate(),
        poison_candidate: false,
    })
}

/// What a tier serves. Until its first worker has reported its revision, equal jobs in flight still share
/// a run; the worker sees that the key is not its own and keeps no entry.
fn served(models: &ServedModels, tier: Tier) -> ServedModel {
    let (model, revision) = models.of_tier(tier).unwrap_or((tier.as_str(), ""));
    ServedModel {
        model: model.to_owned(),
        revision: revision.to_owned(),
    }
}

fn head_of(envelope: &Envelope, now: DateTime<Utc>) -> JobHead {
    let header = |name: &str| envelope.headers.get(name).cloned();
    let chosen: Option<JobId> = header(HEADER_JOB_ID)
        .and_then(|id| id.parse().ok())
        .filter(|id: &JobId| id.0.get_version_num() == 7);
    let reported = chosen.and_then(|id| id.created_at()).or(envelope.timestamp);
    JobHead {
        id: chosen.unwrap_or_else(JobId::now),
        tenant: Tenant::default(),
        key: envelope.message_id.clone().filter(|key| !key.is_empty()),
        custom_id: header(HEADER_CUSTOM_ID),
        batch: header(HEADER_BATCH),
        deadline: envelope.expires_at,
        not_before: None,
        attempts_max: None,
        reply_to: envelope
            .reply_to
            .clone()
            .filter(|queue| !queue.is_empty())
            .map(|queue| ReplyTo {
                queue,
                correlation_id: envelope.correlation_id.clone(),
            }),
        priority: envelope.priority,
        redrive_of: None,
        // A producer's clock may run ahead; nothing is submitted in the future.
        submitted_at: reported.filter(|at| *at <= now).unwrap_or(now),
    }
}

fn adopt(head: &mut JobHead, custom_id: Option<String>, tenant: Option<Tenant>) {
    if custom_id.is_some() {
        head.custom_id = custom_id;
    }
    if let Some(tenant) = tenant {
        head.tenant = tenant;
    }
}

fn key_fault(key: Option<&str>) -> Option<Reason> {
    let bytes = key?.len();
    (bytes > KEY_BYTES_MAX).then(|| {
        Reason::new(
            "invalid_value",
            format!("the idempotency key has {bytes} bytes; at most {KEY_BYTES_MAX} are accepted"),
        )
    })
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use crate::router::intake::*;
    use crate::{config::RouterConfig, job::Tier, scoring::scorer::Scorer};

    fn admission(envelope: &Envelope, body: &str) -> Admission {
        let config = RouterConfig {
            threshold: 1.0,
            ..RouterConfig::default()
        };
        let context = IntakeContext {
            limits: &RequestLimits::default(),
            policy: &Policy::new(&config, Scorer::bundled()),
            models: &ServedModels::default(),
            semantic: None,
            now: Utc::now(),
        };
        read_body(envelope, body.as_bytes(), context)
    }

    #[test]
    fn a_plain_body_is_routed_with_a_key_for_reuse() {
        let admitted = admission(&Envelope::default(), r#"{"prompt":"hi"}"#);
        let AdmissionDecision::Route(route) = &admitted.decision else {
            panic!("must be routed: {admitted:?}")
        };
        assert_eq!(route.tier, Tier::Small);
        assert!(route.cache_key.is_some());
        assert!(
            route.pair.is_some(),
            "small, so its answer may be escalated"
        );
        for sure in [
            r#"{"prompt":"hi","model":"small"}"#,
            r#"{"prompt":"hi","model":"large"}"#,
            r#"{"prompt":"hi","promptyard":{"escalate":false}}"#,
        ] {
            let AdmissionDecision::Route(other) = admission(&Envelope::default(), sure).decision
            else {
                panic!("must be routed")
            };
            assert_eq!(other.pair, None, "{sure}");
            assert_ne!(other.cache_key, route.cache_key, "{sure}");
        }
        assert_eq!(routed(&admitted).expect("routed").job.head, admitted.head);
    }

    #[test]
    fn the_envelope_gives_key_reply_and_the_nearer_deadline() {
        let envelope = Envelope {
            message_id: Some("order-7".into()),
            reply_to: Some("answers".into()),
            correlation_id: Some("c1".into()),
            expires_at: Some(Utc::now() + TimeDelta::hours(1)),
            ..Envelope::default()
        };
        let near = admission(
            &envelope,
            r#"{"prompt":"hi","promptyard":{"deadline_ms":60000}}"#,
        );
        assert_eq!(near.head.key.as_deref(), Some("order-7"));
        assert_eq!(
            near.head.reply_to.expect("reply").correlation_id.as_deref(),
            Some("c1")
        );
        let deadline = near.head.deadline.expect("deadline");
        assert!(deadline < Utc::now() + TimeDelta::minutes(2));
    }

    #[test]
    fn faults_end_the_job_with_a_reason_and_keep_its_name() {
        let reason = |envelope: &Envelope, body: &str| match admission(envelope, body).decision {
            AdmissionDecision::End { state, reason } => (state, reason.code),
            other => panic!("{body} must end: {other:?}"),
        };
        let plain = Envelope::default();
        let expired = r#"{"prompt":"a","promptyard":{"deadline_ms":0}}"#;
        assert_eq!(reason(&plain, "no json").1, "invalid_json");
        assert_eq!(
            reason(&plain, expired),
            (JobState::Expired, "deadline_passed".into())
        );
        assert_eq!(
            reason(&plain, r#"{"prompt":"a","model":"x"}"#).1,
            "model_not_found"
        );
        let named = admission(&plain, r#"{"custom_id":"n","body":{"prompt":1}}"#);
        assert_eq!(named.head.custom_id.as_deref(), Some("n"));
        let long = Envelope {
            message_id: Some("k".repeat(300)),
            ..Envelope::default()
        };
        assert_eq!(reason(&long, r#"{"prompt":"a"}"#).1, "invalid_value");
    }
}
