//! Claims: waiting jobs become recorded attempts, or end as the job database says.

use chrono::Utc;

use crate::{
    broker::{
        Publication,
        publisher::{Handled, publish_and_settle, reject},
    },
    engine::Stop,
    job::{JobState, Tier},
    metrics::observe_end,
    shutdown::Shutdown,
    store::{Claim, Claimant, Claimed, Store, StoreError, wait_out},
};

use super::{
    attempt::Running,
    run_loop::{Waiting, WorkerLoop},
};

impl WorkerLoop {
    /// Claims jobs; false when the stop was requested while the job database was away.
    pub(super) async fn claim(&mut self, chosen: Vec<Waiting>, shutdown: &Shutdown) -> bool {
        let outcomes = match try_claim(&self.worker.store, &self.worker.claimant, &chosen, shutdown)
            .await
        {
            Ok(outcomes) => outcomes,
            Err(error) if error.is_transient() => {
                self.waiting.extend(chosen);
                return false;
            }
            Err(error) => {
                tracing::error!(%error, jobs = chosen.len(), "the job database refuses a claim; its jobs become dead letters");
                let ackers = chosen.into_iter().map(|waiting| waiting.acker).collect();
                reject(&self.worker.broker, ackers).await;
                return true;
            }
        };
        let (mut handled, mut answered, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
        for (waiting, outcome) in chosen.into_iter().zip(outcomes) {
            match outcome {
                Claimed::Run {
                    attempt,
                    poison_candidate,
                    last,
                } => {
                    let Waiting { routed, acker, .. } = waiting;
                    let is_candidate = poison_candidate || routed.poison_candidate;
                    let running = Running {
                        attempt,
                        is_last: last,
                        claimed_at: Utc::now(),
                        routed,
                        acker,
                        stop: Stop::default(),
                        stopped: None,
                        had_company: false,
                    };
                    if is_candidate {
                        self.poison_candidates.push_back(running)
                    } else {
                        self.start(running)
                    }
                }
                Claimed::Busy => handled.push(Handled::new(waiting.acker, [])),
                Claimed::Elsewhere(tier) => handled.push(self.moved(waiting, tier)),
                Claimed::Ended(record) => {
                    observe_end(&record);
                    let is_answered = waiting.redelivered && record.state == JobState::Succeeded;
                    let ended = Handled::new(waiting.acker, Publication::reply(&record));
                    if is_answered {
                        answered.push((record.id, ended));
                    } else {
                        handled.push(ended);
                    }
                }
                Claimed::Unknown => unknown.push(waiting.acker),
            }
        }
        let (ids, mut answered): (Vec<_>, Vec<_>) = answered.into_iter().unzip();
        match self.settler.replies_along(&ids).await {
            Ok(along) => {
                if let Some(first) = answered.first_mut() {
                    first.messages.extend(along);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "replies of jobs that shared an answer wait for the job database");
                answered.iter_mut().for_each(|one| one.requeue = true);
            }
        }
        handled.extend(answered);
        let broker = &self.worker.broker;
        publish_and_settle(broker, handled, &self.give_up).await;
        if !unknown.is_empty() {
            tracing::warn!(
                jobs = unknown.len(),
                "the job database does not know these jobs; their messages become dead letters"
            );
            reject(broker, unknown).await;
        }
        true
    }

    /// A job whose escalation is committed but whose message is still here: the worker that escalated
    /// it may have died before it published. A second message does no harm.
    fn moved(&self, waiting: Waiting, tier: Tier) -> Handled {
        let routed = &waiting.routed;
        let keeps_lead = routed.pair.is_some() && routed.cache_key == self.worker.own_key(routed);
        let message = Publication::to_tier(&routed.moved(tier, keeps_lead));
        Handled::new(waiting.acker, [message])
    }
}

/// Claims jobs, waiting for a job database that is away.
async fn try_claim(
    store: &Store,
    claimant: &Claimant,
    chosen: &[Waiting],
    shutdown: &Shutdown,
) -> Result<Vec<Claimed>, StoreError> {
    let mut claims: Vec<_> = chosen
        .iter()
        .map(|waiting| Claim {
            job: waiting.routed.job.head.id,
            redelivered: waiting.redelivered,
        })
        .collect();
    loop {
        match store.claim(claimant, &claims).await {
            // The claim may have been committed. As redelivered ones the jobs are claimed again
            // instead of being taken for another worker's.
            Err(error) if wait_out(&error, "claims", shutdown).await => {
                claims.iter_mut().for_each(|claim| claim.redelivered = true);
            }
            outcomes => return outcomes,
        }
    }
}
