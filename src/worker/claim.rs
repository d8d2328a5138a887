//! Claims: waiting jobs become attempts that are on record, or what else the ledger says of them.

use chrono::Utc;

use crate::{
    broker::{Publication, publisher},
    engine::Stop,
    job::{JobState, Tier},
    metrics::observe_end,
    shutdown::Shutdown,
    store::{Claim, Claimed},
};

use super::run_loop::{Running, STORE_RETRY_WAIT, Waiting, Yard};

impl Yard {
    /// Claims jobs; false when the ledger is away and the stop was requested.
    pub(super) async fn claim(&mut self, chosen: Vec<Waiting>, shutdown: &Shutdown) -> bool {
        let mut claims: Vec<_> = chosen
            .iter()
            .map(|w| Claim {
                job: w.routed.job.head.id,
                redelivered: w.redelivered,
            })
            .collect();
        let outcomes = loop {
            match self
                .worker
                .store
                .claim(&self.worker.claimant, &claims)
                .await
            {
                Ok(outcomes) => break outcomes,
                Err(fault) if fault.is_transient() => {
                    tracing::warn!(%fault, jobs = claims.len(), "jobs wait for the ledger");
                    // The claim may have been committed before its word was lost. Then the jobs
                    // run in nobody's hands, and a claim that takes them for another worker's
                    // would leave them there.
                    claims.iter_mut().for_each(|claim| claim.redelivered = true);
                    tokio::select! {
                        () = shutdown.requested() => {
                            self.waiting.extend(chosen);
                            return false;
                        }
                        () = tokio::time::sleep(STORE_RETRY_WAIT) => {}
                    }
                }
                Err(fault) => {
                    tracing::error!(%fault, jobs = claims.len(), "the ledger refuses a claim; the jobs become dead letters");
                    let tickets = chosen.into_iter().map(|w| w.ticket).collect();
                    if let Err(fault) = self.worker.broker.reject(tickets).await {
                        tracing::warn!(%fault, "not rejected; they will be delivered again");
                    }
                    return true;
                }
            }
        };
        let (mut done, mut replies, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
        let mut again = Vec::new();
        let mut moved = Vec::new();
        for (waiting, outcome) in chosen.into_iter().zip(outcomes) {
            match outcome {
                Claimed::Run {
                    attempt,
                    suspect,
                    last,
                } => {
                    let Waiting { routed, ticket, .. } = waiting;
                    let suspect = suspect || routed.suspect;
                    let claimed_at = Utc::now();
                    let running = Running {
                        attempt,
                        last,
                        claimed_at,
                        routed,
                        ticket,
                        stop: Stop::default(),
                        stopped: None,
                        had_company: false,
                    };
                    if suspect {
                        self.suspects.push_back(running)
                    } else {
                        self.start(running)
                    }
                }
                Claimed::Busy => done.push(waiting.ticket),
                Claimed::Elsewhere(tier) => moved.push((waiting, tier)),
                Claimed::Ended(record) => {
                    observe_end(&record);
                    replies.extend(Publication::reply(&record));
                    if waiting.redelivered && record.state == JobState::Succeeded {
                        again.push((record.id, waiting.ticket));
                    } else {
                        done.push(waiting.ticket);
                    }
                }
                Claimed::Unknown => unknown.push(waiting.ticket),
            }
        }
        let (ids, tickets): (Vec<_>, Vec<_>) = again.into_iter().unzip();
        match self.settler.replies_along(&ids).await {
            Ok(along) => {
                replies.extend(along);
                done.extend(tickets);
            }
            Err(fault) => {
                tracing::warn!(%fault, "replies of jobs that shared an answer wait for the ledger");
                self.settler.requeue(tickets).await;
            }
        }
        publisher::publish_all(&self.worker.broker, replies, &self.give_up).await;
        self.settler.acknowledge(done).await;
        self.pass_on(moved).await;
        if !unknown.is_empty() {
            tracing::warn!(
                jobs = unknown.len(),
                "jobs that the ledger does not know were rejected"
            );
            if let Err(fault) = self.worker.broker.reject(unknown).await {
                tracing::warn!(%fault, "not rejected; they will be delivered again");
            }
        }
        true
    }

    /// Publishes jobs whose escalation is committed but whose message is still here: the worker that
    /// escalated them may have died before it published. A second message does no harm.
    async fn pass_on(&mut self, moved: Vec<(Waiting, Tier)>) {
        let publication = |(waiting, tier): &(Waiting, Tier)| {
            let routed = &waiting.routed;
            let keeps_lead = routed.pair.is_some() && routed.cache_key == self.own_key(routed);
            Publication::to_tier(&routed.moved(*tier, keeps_lead))
        };
        let messages = moved.iter().map(publication).collect();
        let published = publisher::publish_all(&self.worker.broker, messages, &self.give_up).await;
        let (mut done, mut returns) = (Vec::new(), Vec::new());
        for ((waiting, _), is_out) in moved.into_iter().zip(published) {
            if is_out {
                done.push(waiting.ticket)
            } else {
                returns.push(waiting.ticket)
            }
        }
        self.settler.acknowledge(done).await;
        self.settler.requeue(returns).await;
    }
}
