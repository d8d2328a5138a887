//! Commits attempts in groups: one transaction, then replies and republished jobs, then the
//! acknowledgements.

use std::time::Duration;

use metrics::{counter, histogram};

use crate::{
    broker::{
        Broker, Publication,
        publisher::{Handled, publish_and_settle, reject, requeue},
    },
    job::{JobId, JobRecord, Tier},
    metrics::{
        ATTEMPTS, COMPLETION_TOKENS, CONFIDENCE, ESCALATIONS, PROMPT_TOKENS,
        PROMPT_TOKENS_COMPUTED, TOKENS_SAVED, observe_end,
    },
    shutdown::Shutdown,
    store::{AttemptOutcome, Batch, Batches, Settled, Settlement, Store, StoreError, Written},
};

use super::{
    attempt::{Finished, FollowUp},
    disposition::Disposition,
};

/// Commits groups of finished attempts.
#[derive(Clone, Debug)]
pub(super) struct Settler {
    pub broker: Broker,
    pub store: Store,
    pub tier: Tier,
    pub cache_ttl: Duration,
}

impl Settler {
    /// Commits a group, publishes what follows and settles the deliveries. `give_up` ends the waiting
    /// for a job database or broker that is away; what is then uncommitted is requeued and runs again.
    pub async fn settle(&self, group: Vec<Finished>, give_up: &Shutdown) {
        let group = group.into_iter().map(|one| (one.settlement, one.follow_up));
        let (items, carried) = group.unzip();
        let mut batches = Batches::new(Batch { items, carried }, "answers");
        while let Some(batch) = batches.next_batch() {
            let result = self.store.settle(&batch.items, self.cache_ttl).await;
            match batches.record(batch, result, give_up).await {
                Written::Committed(batch, outcomes) => {
                    let handled = self.handled(batch, outcomes, batches.in_doubt);
                    publish_and_settle(&self.broker, handled, give_up).await;
                }
                Written::Refused(one, error) => {
                    tracing::error!(%error, "the job database refuses an answer; its job becomes a dead letter");
                    reject(&self.broker, vec![one.acker]).await;
                }
                Written::Abandoned(rest) => {
                    let ackers = rest.into_iter().map(|one| one.acker).collect();
                    requeue(&self.broker, ackers).await;
                }
                Written::Again => {}
            }
        }
    }

    fn handled(
        &self,
        batch: Batch<Settlement, FollowUp>,
        outcomes: Vec<Settled>,
        in_doubt: bool,
    ) -> Vec<Handled> {
        let attempts = batch.items.iter().zip(batch.carried).zip(outcomes);
        let handled = attempts.map(|((settlement, follow_up), outcome)| match outcome {
            Settled::Fenced => {
                let is_cancelled = matches!(settlement.outcome, AttemptOutcome::Cancelled(..));
                self.count_attempt(if is_cancelled { "cancelled" } else { "fenced" });
                Handled {
                    // An earlier try may have committed it. Redelivered, the message finds the
                    // committed state, and with it the reply or next attempt that is still owed.
                    requeue: in_doubt && !is_cancelled,
                    ..Handled::new(follow_up.acker, [])
                }
            }
            Settled::Committed { record, shared } => {
                self.observe(settlement, &record, &shared);
                Handled {
                    requeue: follow_up.disposition == Disposition::Requeue,
                    messages: messages(&follow_up, &record, &shared),
                    acker: follow_up.acker,
                }
            }
        });
        handled.collect()
    }

    /// Replies of the jobs that were answered together with these: the worker that settled them may
    /// have died before it published. A second reply does no harm.
    pub async fn replies_along(&self, jobs: &[JobId]) -> Result<Vec<Publication>, StoreError> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let records = self.store.answered_along(jobs).await?;
        Ok(records.iter().filter_map(Publication::reply).collect())
    }

    fn observe(&self, settlement: &Settlement, record: &JobRecord, shared: &[JobRecord]) {
        let outcome = &settlement.outcome;
        self.count_attempt(match outcome {
            AttemptOutcome::Succeeded(_) => "succeeded",
            AttemptOutcome::Reused(_) => "reused",
            AttemptOutcome::Failed(_) | AttemptOutcome::AttemptsExhausted(_) => "failed",
            AttemptOutcome::Expired(..) => "expired",
            AttemptOutcome::Cancelled(..) => "cancelled",
            AttemptOutcome::Retry(_) | AttemptOutcome::RetryIsolated(_) => "retried",
            AttemptOutcome::Escalate { .. } => "escalated",
            AttemptOutcome::Returned => "returned",
        });
        if let Some(confidence) = settlement.confidence {
            histogram!(CONFIDENCE).record(f64::from(confidence));
        }
        let answer = match outcome {
            AttemptOutcome::Succeeded(answer) => Some(answer),
            AttemptOutcome::Escalate { answer, reason, .. } => {
                counter!(ESCALATIONS, "reason" => reason.code.clone()).increment(1);
                answer.as_deref()
            }
            _ => None,
        };
        if let Some(answer) = answer {
            let tier = self.tier.as_str();
            let usage = answer.usage;
            counter!(PROMPT_TOKENS, "tier" => tier).increment(usage.prompt_tokens.into());
            counter!(PROMPT_TOKENS_COMPUTED, "tier" => tier)
                .increment(usage.prompt_tokens_computed.into());
            for (component, tokens) in [
                ("cleaned", record.saved.cleaned_tokens.into()),
                ("pruned", record.saved.pruned_tokens.into()),
                ("prefix", usage.prompt_tokens_found()),
            ] {
                counter!(TOKENS_SAVED, "component" => component).increment(tokens);
            }
            counter!(COMPLETION_TOKENS, "tier" => tier).increment(usage.completion_tokens.into());
        }
        for record in std::iter::once(record)
            .chain(shared)
            .filter(|r| r.state.is_terminal())
        {
            observe_end(record);
        }
    }

    fn count_attempt(&self, outcome: &'static str) {
        counter!(ATTEMPTS, "tier" => self.tier.as_str(), "outcome" => outcome).increment(1);
    }
}

/// The messages that follow from a committed attempt.
fn messages(one: &FollowUp, record: &JobRecord, shared: &[JobRecord]) -> Vec<Publication> {
    match one.disposition {
        Disposition::Done => std::iter::once(record)
            .chain(shared)
            .filter_map(Publication::reply)
            .collect(),
        Disposition::ToTier(_) => vec![Publication::to_tier(&one.routed)],
        Disposition::RetryAfter(delay) => vec![Publication::to_retry(&one.routed, delay)],
        Disposition::Requeue => Vec::new(),
    }
}
