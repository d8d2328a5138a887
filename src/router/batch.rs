//! One batch of messages: read, admitted in one transaction, published, and acknowledged once
//! everything that follows from it is confirmed.

use std::time::Duration;

use chrono::{DateTime, Utc};
use metrics::{counter, histogram};
use tokio::time::Instant;

use crate::{
    broker::{
        Acker, Delivery, Publication,
        publisher::{Handled, publish_and_settle, reject, requeue},
    },
    job::{AnswerSource, JobId, JobRecord, JobState, Reason},
    metrics::{ADMITTED, ROUTED, ROUTER_BATCH, ROUTER_SECONDS, SCORE, observe_end},
    shutdown::Shutdown,
    store::{Admission, AdmissionDecision, Admitted, Batch, Batches, Written},
};

use super::{
    intake::{self, Intake, IntakeContext},
    model_registry::ServedModels,
    policy::Policy,
    role::Router,
    semantic_reuse::{self, Reuse},
};

/// Jobs to be admitted, with the ackers of their messages.
pub(super) type Admissions = Batch<Admission, Acker>;

impl Router {
    /// Routes one batch, except for jobs that ask for semantic reuse: these are returned.
    pub(super) async fn route(
        &self,
        batch: Vec<Delivery>,
        policy: &Policy,
        models: &ServedModels,
        shutdown: &Shutdown,
    ) -> Admissions {
        let begun = Instant::now();
        histogram!(ROUTER_BATCH).record(batch.len() as f64);
        let context = IntakeContext {
            limits: &self.limits,
            policy,
            models,
            semantic: self.reuse.as_deref().map(Reuse::encoder_and_cosine_min),
            now: Utc::now(),
        };
        let mut handled = Vec::new();
        let (mut asking, mut plain) = (Admissions::default(), Admissions::default());
        let live = batch
            .into_iter()
            .filter(|delivery| delivery.acker.is_live());
        for Delivery {
            envelope,
            body,
            acker,
            ..
        } in live
        {
            match intake::read(&envelope, &body, context) {
                Intake::Admit(mut admission) => {
                    self.control(&mut admission, context.now);
                    let asks = semantic_reuse::requests_reuse(&admission);
                    let batch = if asks { &mut asking } else { &mut plain };
                    batch.push(*admission, acker);
                }
                Intake::Forward(routed) => {
                    handled.push(Handled::new(acker, [Publication::to_tier(&routed)]));
                }
            }
        }
        self.admit(plain, models, &mut handled, shutdown).await;
        publish_and_settle(&self.broker, handled, shutdown).await;
        histogram!(ROUTER_SECONDS).record(begun.elapsed().as_secs_f64());
        asking
    }

    /// Ends a job whose submission is cancelled already, and defers one that may not go to its tier
    /// yet.
    fn control(&self, admission: &mut Admission, now: DateTime<Utc>) {
        let is_open = !matches!(admission.decision, AdmissionDecision::End { .. });
        if is_open && self.admission.is_cancelled(&admission.head) {
            admission.decision = AdmissionDecision::End {
                state: JobState::Cancelled,
                reason: Reason::new("cancelled", "its submission was cancelled"),
            };
        }
        if let (AdmissionDecision::Route(route), Some(request)) =
            (&mut admission.decision, &admission.request)
        {
            let head = &admission.head;
            route.deferral = self.admission.deferral(route.tier, head, request, now);
        }
    }

    /// Looks up questions and admits their jobs; off the batches' path, since embedding takes a while.
    pub(super) async fn look_up(
        &self,
        asking: Admissions,
        models: &ServedModels,
        shutdown: &Shutdown,
    ) {
        let Some(reuse) = &self.reuse else { return };
        let batch = Batch {
            items: reuse.consult(asking.items).await,
            carried: asking.carried,
        };
        let mut handled = Vec::new();
        self.admit(batch, models, &mut handled, shutdown).await;
        publish_and_settle(&self.broker, handled, shutdown).await;
    }

    /// Admits jobs in one transaction and adds the messages that follow to `handled`. A job that the
    /// database refuses becomes a dead letter alone.
    async fn admit(
        &self,
        batch: Admissions,
        models: &ServedModels,
        handled: &mut Vec<Handled>,
        shutdown: &Shutdown,
    ) {
        let lease = Duration::from_secs(self.cache.lease_s);
        let mut batches = Batches::new(batch, "jobs");
        while let Some(batch) = batches.next_batch() {
            let result = self.store.admit(&batch.items, lease).await;
            match batches.record(batch, result, shutdown).await {
                Written::Committed(batch, outcomes) => {
                    let mut refused = Admissions::default();
                    let admitted = batch.items.into_iter().zip(batch.carried).zip(outcomes);
                    for ((admission, acker), outcome) in admitted {
                        if let Admitted::KeyReused { owner } = outcome {
                            refused.push(refuse_reused_key(admission, owner), acker);
                        } else {
                            let messages = self.messages(admission, outcome, models);
                            handled.push(Handled::new(acker, messages));
                        }
                    }
                    batches.push(refused);
                }
                Written::Refused(acker, error) => {
                    tracing::error!(%error, "the job database refuses a job; it becomes a dead letter");
                    reject(&self.broker, vec![acker]).await;
                }
                Written::Abandoned(ackers) => requeue(&self.broker, ackers).await,
                Written::Again => {}
            }
        }
    }

    /// The message that follows from an admission, if any.
    fn messages(
        &self,
        admission: Admission,
        outcome: Admitted,
        models: &ServedModels,
    ) -> Option<Publication> {
        let is_new = matches!(outcome, Admitted::Routed | Admitted::Deferred);
        if is_new && let AdmissionDecision::Route(route) = &admission.decision {
            counter!(ROUTED, "tier" => route.tier.as_str()).increment(1);
            histogram!(SCORE).record(route.decision.score);
        }
        match outcome {
            Admitted::Routed => {
                count("routed");
                Some(self.to_tier(&intake::routed(admission)?, models))
            }
            Admitted::Waiting => {
                count("waiting");
                None
            }
            Admitted::Deferred => {
                count("deferred");
                None
            }
            Admitted::Ended(record) => {
                count(match record.state {
                    JobState::Succeeded => record.source.map_or("cache", AnswerSource::as_str),
                    JobState::Expired => "expired",
                    JobState::Cancelled => "cancelled",
                    _ => "rejected",
                });
                observe_end(&record);
                Publication::reply(&record)
            }
            Admitted::Known(record) => {
                count("known");
                repeated(admission, *record)
            }
            // The router admits no job as queued, and the caller handles reused keys.
            Admitted::Queued | Admitted::KeyReused { .. } => None,
        }
    }
}

/// The message that follows from another message of a known job.
fn repeated(admission: Admission, mut record: JobRecord) -> Option<Publication> {
    if record.state.is_terminal() {
        // The producer may name another reply queue than the first time.
        record.reply_to = admission.head.reply_to.or(record.reply_to);
        return Publication::reply(&record);
    }
    if record.state != JobState::Routed {
        return None;
    }
    // A router may have died between commit and publish, or the message was lost. If it was not, the
    // worker's claim absorbs the second one.
    let mut routed = intake::routed(admission)?;
    routed.job.head.id = record.id;
    routed.tier = record.tier.unwrap_or(routed.tier);
    Some(Publication::to_tier(&routed))
}

/// The same message as a job of its own that is refused. Its key contains the digest, so that a
/// redelivery finds the refusal instead of writing another.
fn refuse_reused_key(mut admission: Admission, owner: JobId) -> Admission {
    let head = &mut admission.head;
    let key = head.key.take().unwrap_or_default();
    let digest = blake3::Hash::from_bytes(admission.digest).to_hex();
    head.key = Some(format!("{key}#{}", &digest.as_str()[..16]));
    admission.decision = AdmissionDecision::End {
        state: JobState::Rejected,
        reason: Reason::new(
            "idempotency_key_reused",
            format!("the idempotency key belongs to job {owner}, which asked something else"),
        ),
    };
    admission
}

fn count(outcome: &'static str) {
    counter!(ADMITTED, "outcome" => outcome).increment(1);
}
