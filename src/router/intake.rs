//! From a message to an admission: reads it, checks the deadline, chooses the tier and makes the cache
//! key.

use chrono::{DateTime, Utc};

use crate::{
    broker::{Envelope, wire::Incoming},
    cache::{cache_key, question_of, scope_key},
    job::{
        ChatRequest, Job, JobHead, JobState, ModelPair, Reason, RequestLimits, RoutedJob,
        ServedModel, Tenant, Tier,
    },
    store::{Admission, AdmissionDecision, Lookup, Route},
};

use super::{model_registry::ServedModels, policy::Policy, scheduling::AdmissionControl};

/// What a message from `jobs.in` is.
#[derive(Debug)]
pub enum Intake {
    /// A job to be admitted.
    Admit(Box<Admission>),
    /// A routed job back from a delay queue, to be published to its tier.
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
    /// Revision of the encoder that finds paraphrases, and the similarity that they must have; `None`
    /// without one.
    pub semantic: Option<(&'a str, f32)>,
    /// The present.
    pub now: DateTime<Utc>,
}

/// Reads a message. An invalid one becomes an admission that ends at once.
pub fn read(envelope: &Envelope, body: &[u8], context: IntakeContext<'_>) -> Intake {
    let (head, request) = match Incoming::read(envelope, body, context.limits, context.now) {
        Incoming::Routed(routed) => return Intake::Forward(Box::new(routed)),
        Incoming::Admitted(Job { head, request }) => (head, Ok(request)),
        Incoming::Submitted(head, request) => (head, request),
    };
    Intake::Admit(Box::new(match request {
        Ok(request) => {
            let decision = decide(&head, &request, context);
            Admission::new(head, request, decision)
        }
        Err(reason) => Admission {
            head,
            request: None,
            digest: *blake3::hash(body).as_bytes(),
            decision: AdmissionDecision::End {
                state: JobState::Rejected,
                reason,
            },
        },
    }))
}

fn decide(head: &JobHead, request: &ChatRequest, context: IntakeContext<'_>) -> AdmissionDecision {
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
    if let Some(deferral) = AdmissionControl::until_start(head, request, context.now) {
        return AdmissionDecision::Schedule(deferral);
    }
    match context.policy.decide(head, request, context.models) {
        Ok((tier, decision)) => {
            // A job that may be escalated reuses only a final answer, so its key covers both models.
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

/// The lookup of a request that asks for semantic reuse; `None` while the models' revisions are
/// unknown, since their answers could not be told from another model's.
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

/// The routed job of an admission.
pub(super) fn routed(admission: Admission) -> Option<RoutedJob> {
    let (AdmissionDecision::Route(route), Some(request)) = (admission.decision, admission.request)
    else {
        return None;
    };
    Some(RoutedJob {
        job: Job {
            head: admission.head,
            request,
        },
        tier: route.tier,
        cache_key: route.cache_key,
        candidate: route.candidate(),
        pair: route.pair,
        poison_candidate: false,
    })
}

/// The model that a tier serves. Until its first worker has reported a revision, identical jobs in
/// flight still share a run; the worker sees that the key is not its own and keeps no cache entry.
fn served(models: &ServedModels, tier: Tier) -> ServedModel {
    let (model, revision) = models.of_tier(tier).unwrap_or((tier.as_str(), ""));
    ServedModel {
        model: model.to_owned(),
        revision: revision.to_owned(),
    }
}

#[cfg(test)]
mod tests {
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
        match read(envelope, body.as_bytes(), context) {
            Intake::Admit(admission) => *admission,
            Intake::Forward(_) => panic!("a producer's message"),
        }
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
        let head = admitted.head.clone();
        assert_eq!(routed(admitted).expect("routed").job.head, head);
    }

    #[test]
    fn invalid_messages_end_with_a_reason_and_keep_their_custom_id() {
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
