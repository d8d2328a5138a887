//! Commits attempts in groups: one ledger transaction, then replies and republished jobs, then
//! the acknowledgements.

use std::time::Duration;

use metrics::{counter, histogram};

use crate::{
    broker::{Acker, Broker, Publication, publisher::publish_all},
    job::{JobId, JobRecord, RoutedJob, Tier},
    metrics::{
        ATTEMPTS, COMPLETION_TOKENS, CONFIDENCE, ESCALATIONS, PROMPT_TOKENS,
        PROMPT_TOKENS_COMPUTED, TOKENS_SAVED, observe_end,
    },
    shutdown::Shutdown,
    store::{AttemptOutcome, Settled, Settlement, Store, StoreError},
};

use super::disposition::Disposition;

/// How long to wait before a ledger that failed is asked again.
const STORE_RETRY_WAIT: Duration = Duration::from_millis(500);

/// An attempt that ended, with what is to follow its commit.
#[derive(Debug)]
pub(super) struct Finished {
    pub settlement: Settlement,
    pub disposition: Disposition,
    /// As it is to be published, should it be.
    pub routed: RoutedJob,
    pub acker: Acker,
}

/// Commits groups of finished attempts.
#[derive(Clone, Debug)]
pub(super) struct Settler {
    pub broker: Broker,
    pub store: Store,
    pub tier: Tier,
    pub cache_ttl: Duration,
}

impl Settler {
    /// Commits a group and sees its consequences through. `give_up` ends the waiting for a ledger
    /// or broker that is away; what is then uncommitted is put back, and runs again.
    pub async fn settle(&self, group: Vec<Finished>, give_up: &Shutdown) {
        let mut parts = vec![group];
        // A commit whose word was lost may have happened: its repetition is fenced by itself.
        let mut in_doubt = false;
        while let Some(mut part) = parts.pop() {
            let settlements: Vec<_> = part.iter().map(|one| one.settlement.clone()).collect();
            match self.store.settle(&settlements, self.cache_ttl).await {
                Ok(outcomes) => self.follow_up(part, outcomes, in_doubt, give_up).await,
                Err(error) if error.is_transient() => {
                    in_doubt = true;
                    tracing::warn!(%error, jobs = part.len(), "answers wait for the ledger");
                    tokio::select! {
                        () = give_up.requested() => self.put_back(part).await,
                        () = tokio::time::sleep(STORE_RETRY_WAIT) => parts.push(part),
                    }
                }
                Err(error) if part.len() == 1 => self.abandon(part, &error).await,
                Err(_) => {
                    // One settlement that the ledger cannot take must not hold up the others.
                    let rest = part.split_off(part.len() / 2);
                    parts.push(rest);
                    parts.push(part);
                }
            }
        }
    }

    async fn follow_up(
        &self,
        part: Vec<Finished>,
        outcomes: Vec<Settled>,
        in_doubt: bool,
        give_up: &Shutdown,
    ) {
        let mut messages = Vec::new();
        let mut owners = Vec::new();
        let mut put_back = vec![false; part.len()];
        for (at, (one, outcome)) in part.iter().zip(outcomes).enumerate() {
            let out = match outcome {
                Settled::Fenced
                    if matches!(one.settlement.outcome, AttemptOutcome::Cancelled(..)) =>
                {
                    self.count_attempt("cancelled");
                    Vec::new()
                }
                Settled::Fenced => {
                    self.count_attempt("fenced");
                    // Put back, the message finds the committed state: a reply or a next attempt
                    // that is still owed follows from it.
                    put_back[at] = in_doubt;
                    Vec::new()
                }
                Settled::Committed { record, shared } => {
                    self.observe(&one.settlement, &record, &shared);
                    put_back[at] = one.disposition == Disposition::PutBack;
                    consequences(one, &record, &shared)
                }
            };
            owners.extend(std::iter::repeat_n(at, out.len()));
            messages.extend(out);
        }
        let published = publish_all(&self.broker, messages, give_up).await;
        for (owner, is_out) in owners.into_iter().zip(published) {
            // Unpublished consequences: the message comes again and finds the committed state.
            put_back[owner] |= !is_out;
        }
        let (mut acks, mut returns) = (Vec::new(), Vec::new());
        for (one, put_back) in part.into_iter().zip(put_back) {
            if put_back {
                returns.push(one.acker)
            } else {
                acks.push(one.acker)
            }
        }
        self.acknowledge(acks).await;
        self.requeue(returns).await;
    }

    /// Replies of the jobs that were given these jobs' answers: whoever settled them may have died before
    /// it published. A second reply does no harm.
    pub async fn replies_along(&self, jobs: &[JobId]) -> Result<Vec<Publication>, StoreError> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let records = self.store.answered_along(jobs).await?;
        Ok(records.iter().filter_map(Publication::reply).collect())
    }

    pub async fn acknowledge(&self, ackers: Vec<Acker>) {
        if ackers.is_empty() {
            return;
        }
        if let Err(error) = self.broker.ack(ackers).await {
            tracing::warn!(%error, "not acknowledged; the messages will be delivered again");
        }
    }

    pub async fn requeue(&self, ackers: Vec<Acker>) {
        if ackers.is_empty() {
            return;
        }
        if let Err(error) = self.broker.requeue(ackers).await {
            tracing::warn!(%error, "not put back; the broker does so when the connection ends");
        }
    }

    async fn put_back(&self, part: Vec<Finished>) {
        self.requeue(part.into_iter().map(|one| one.acker).collect())
            .await;
    }

    /// The ledger refuses a single settlement for good: the message dies, and the router's
    /// undertaker ends its job.
    async fn abandon(&self, part: Vec<Finished>, error: &StoreError) {
        tracing::error!(%error, "the ledger cannot take an answer; the job becomes a dead letter");
        let ackers = part.into_iter().map(|one| one.acker).collect();
        if let Err(error) = self.broker.reject(ackers).await {
            tracing::warn!(%error, "not rejected; the message will be delivered again");
        }
    }

    fn observe(&self, settlement: &Settlement, record: &JobRecord, shared: &[JobRecord]) {
        let verdict = &settlement.outcome;
        self.count_attempt(match verdict {
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
        let answer = match verdict {
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

/// The messages that a committed settlement calls for.
fn consequences(one: &Finished, record: &JobRecord, shared: &[JobRecord]) -> Vec<Publication> {
    match one.disposition {
        Disposition::Done => std::iter::once(record)
            .chain(shared)
            .filter_map(Publication::reply)
            .collect(),
        Disposition::Tier(_) => vec![Publication::to_tier(&one.routed)],
        Disposition::Rest(delay) => vec![Publication::to_retry(&one.routed, delay)],
        Disposition::PutBack => Vec::new(),
    }
}
