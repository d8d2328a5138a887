//! Commits attempts in groups: one ledger transaction, then replies and republished jobs, then
//! the acknowledgements.

use std::time::Duration;

use metrics::{counter, histogram};

use crate::{
    broker::{Broker, Publication, Ticket, publisher::publish_all},
    job::{JobId, JobRecord, RoutedJob, Tier},
    metrics::{
        ATTEMPTS, COMPLETION_TOKENS, CONFIDENCE, ESCALATIONS, PROMPT_TOKENS,
        PROMPT_TOKENS_COMPUTED, TOKENS_SAVED, observe_end,
    },
    shutdown::Shutdown,
    store::{Settled, Settlement, Store, StoreFault, Verdict},
};

use super::disposition::Next;

/// How long to wait before a ledger that failed is asked again.
const STORE_RETRY_WAIT: Duration = Duration::from_millis(500);

/// An attempt that ended, with what is to follow its commit.
#[derive(Debug)]
pub(super) struct Finished {
    pub settlement: Settlement,
    pub next: Next,
    /// As it is to be published, should it be.
    pub routed: RoutedJob,
    pub ticket: Ticket,
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
                Err(fault) if fault.is_transient() => {
                    in_doubt = true;
                    tracing::warn!(%fault, jobs = part.len(), "answers wait for the ledger");
                    tokio::select! {
                        () = give_up.requested() => self.put_back(part).await,
                        () = tokio::time::sleep(STORE_RETRY_WAIT) => parts.push(part),
                    }
                }
                Err(fault) if part.len() == 1 => self.abandon(part, &fault).await,
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
                Settled::Fenced if matches!(one.settlement.verdict, Verdict::Cancelled(..)) => {
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
                    put_back[at] = one.next == Next::PutBack;
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
                returns.push(one.ticket)
            } else {
                acks.push(one.ticket)
            }
        }
        self.acknowledge(acks).await;
        self.requeue(returns).await;
    }

    /// Replies of the jobs that were given these jobs' answers: whoever settled them may have died before
    /// it published. A second reply does no harm.
    pub async fn replies_along(&self, jobs: &[JobId]) -> Result<Vec<Publication>, StoreFault> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let records = self.store.answered_along(jobs).await?;
        Ok(records.iter().filter_map(Publication::reply).collect())
    }

    pub async fn acknowledge(&self, tickets: Vec<Ticket>) {
        if tickets.is_empty() {
            return;
        }
        if let Err(fault) = self.broker.ack(tickets).await {
            tracing::warn!(%fault, "not acknowledged; the messages will be delivered again");
        }
    }

    pub async fn requeue(&self, tickets: Vec<Ticket>) {
        if tickets.is_empty() {
            return;
        }
        if let Err(fault) = self.broker.requeue(tickets).await {
            tracing::warn!(%fault, "not put back; the broker does so when the connection ends");
        }
    }

    async fn put_back(&self, part: Vec<Finished>) {
        self.requeue(part.into_iter().map(|one| one.ticket).collect())
            .await;
    }

    /// The ledger refuses a single settlement for good: the message dies, and the router's
    /// undertaker ends its job.
    async fn abandon(&self, part: Vec<Finished>, fault: &StoreFault) {
        tracing::error!(%fault, "the ledger cannot take an answer; the job becomes a dead letter");
        let tickets = part.into_iter().map(|one| one.ticket).collect();
        if let Err(fault) = self.broker.reject(tickets).await {
            tracing::warn!(%fault, "not rejected; the message will be delivered again");
        }
    }

    fn observe(&self, settlement: &Settlement, record: &JobRecord, shared: &[JobRecord]) {
        let verdict = &settlement.verdict;
        self.count_attempt(match verdict {
            Verdict::Succeeded(_) => "succeeded",
            Verdict::Reused(_) => "reused",
            Verdict::Failed(_) | Verdict::Spent(_) => "failed",
            Verdict::Expired(..) => "expired",
            Verdict::Cancelled(..) => "cancelled",
            Verdict::Retry(_) | Verdict::Apart(_) => "retried",
            Verdict::Escalate { .. } => "escalated",
            Verdict::Returned => "returned",
        });
        if let Some(confidence) = settlement.confidence {
            histogram!(CONFIDENCE).record(f64::from(confidence));
        }
        let answer = match verdict {
            Verdict::Succeeded(answer) => Some(answer),
            Verdict::Escalate { answer, reason, .. } => {
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
    match one.next {
        Next::Done => std::iter::once(record)
            .chain(shared)
            .filter_map(Publication::reply)
            .collect(),
        Next::Tier(_) => vec![Publication::to_tier(&one.routed)],
        Next::Rest(delay) => vec![Publication::to_retry(&one.routed, delay)],
        Next::PutBack => Vec::new(),
    }
}
