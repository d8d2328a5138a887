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

use super::run_loop::{Running, STORE_RETRY_WAIT, Waiting, WorkerLoop};

impl WorkerLoop {
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
                Err(error) if error.is_transient() => {
                    tracing::warn!(%error, jobs = claims.len(), "jobs wait for the ledger");
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
                Err(error) => {
                    tracing::error!(%error, jobs = claims.len(), "the ledger refuses a claim; the jobs become dead letters");
                    let ackers = chosen.into_iter().map(|w| w.acker).collect();
                    if let Err(error) = self.worker.broker.reject(ackers).await {
                        tracing::warn!(%error, "not rejected; they will be delivered again");
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
                    poison_candidate,
                    last,
                } => {
                    let Waiting { routed, acker, .. } = waiting;
                    let poison_candidate = poison_candidate || routed.poison_candidate;
                    let claimed_at = Utc::now();
                    let running = Running {
                        attempt,
                        last,
                        claimed_at,
                        routed,
                        acker,
                        stop: Stop::default(),
                        stopped: None,
                        had_company: false,
                    };
                    if poison_candidate {
                        self.poison_candidates.push_back(running)
                    } else {
                        self.start(running)
                    }
                }
                Claimed::Busy => done.push(waiting.acker),
                Claimed::Elsewhere(tier) => moved.push((waiting, tier)),
                Claimed::Ended(record) => {
                    observe_end(&record);
                    replies.extend(Publication::reply(&record));
                    if waiting.redelivered && record.state == JobState::Succeeded {
                        again.push((record.id, waiting.acker));
                    } else {
                        done.push(waiting.acker);
                    }
                }
                Claimed::Unknown => unknown.push(waiting.acker),
            }
        }
        let (ids, ackers): (Vec<_>, Vec<_>) = again.into_iter().unzip();
        match self.settler.replies_along(&ids).await {
            Ok(along) => {
                replies.extend(along);
                done.extend(ackers);
            }
            Err(error) => {
                tracing::warn!(%error, "replies of jobs that shared an answer wait for the ledger");
                self.settler.requeue(ackers).await;
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
            if let Err(error) = self.worker.broker.reject(unknown).await {
                tracing::warn!(%error, "not rejected; they will be delivered again");
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
                done.push(waiting.acker)
            } else {
                returns.push(waiting.acker)
            }
        }
        self.settler.acknowledge(done).await;
        self.settler.requeue(returns).await;
    }
}
