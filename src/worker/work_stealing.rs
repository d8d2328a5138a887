//! Prefix affinity in a worker: it consumes from the affinity queues assigned to it, and steals from
//! others while it has free places.
//!
//! Once a second, off the main loop, a round reads the live workers from the job database, which
//! determine the worker's queues ([`Assignment`]), and the queues' depths from the broker. A queue
//! without consumers may always be stolen from; another worker's only while this one is idle.

use std::time::Duration;

use metrics::counter;

use crate::{
    affinity::Assignment,
    broker::{AffinityQueue, Broker, Consumer, Delivery, Depth, Queue},
    job::Tier,
    metrics::STOLEN,
    store::Store,
};

/// Time between rounds.
pub(super) const ROUND_INTERVAL: Duration = Duration::from_secs(1);
/// Workers unseen for longer are ignored.
const WORKER_AGE: Duration = Duration::from_secs(3600);
/// Most time to wait for deliveries from another worker's queue.
const STEAL_WAIT: Duration = Duration::from_millis(500);

/// What a round needs.
#[derive(Clone, Debug)]
pub(super) struct WorkStealer {
    pub broker: Broker,
    pub store: Store,
    pub tier: Tier,
    pub worker: String,
    /// Unsettled messages that may be held of each own queue.
    pub prefetch: u16,
}

/// A worker's own affinity queues.
#[derive(Debug, Default)]
pub(super) struct OwnQueues {
    pub queues: Vec<AffinityQueue>,
    pub consumer: Option<Consumer>,
}

/// The result of a round.
#[derive(Debug)]
pub(super) struct StealRound {
    /// The worker's queues, where they have changed.
    pub own: Option<OwnQueues>,
    /// Jobs from queues that are not its own.
    pub stolen: Vec<Delivery>,
}

impl WorkStealer {
    /// Runs one round. `own` are the queues that the worker has, `free` its places that no job waits
    /// for; `is_idle` is true when these are most of its places.
    pub(super) async fn round(
        self,
        own: Vec<AffinityQueue>,
        free: usize,
        is_idle: bool,
    ) -> StealRound {
        let mut round = StealRound {
            own: None,
            stolen: Vec::new(),
        };
        let assigned = match self.store.workers(WORKER_AGE).await {
            Ok(workers) => Assignment::of(&workers, self.tier, chrono::Utc::now())
                .map(|assignment| assignment.queues_of(&self.worker))
                .unwrap_or_default(),
            Err(error) => {
                tracing::debug!(%error, "cannot read the live workers; the affinity queues stay");
                own.clone()
            }
        };
        if assigned != own {
            round.own = self.open(&assigned).await;
        }
        if free > 0 {
            round.stolen = self.steal(&assigned, free, is_idle).await;
        }
        round
    }

    async fn open(&self, assigned: &[AffinityQueue]) -> Option<OwnQueues> {
        if assigned.is_empty() {
            return Some(OwnQueues::default());
        }
        let queues: Vec<Queue> = assigned
            .iter()
            .map(|queue| Queue::Affinity(self.tier, *queue))
            .collect();
        match self.broker.consume(&queues, self.prefetch).await {
            Ok(consumer) => Some(OwnQueues {
                queues: assigned.to_vec(),
                consumer: Some(consumer),
            }),
            Err(error) => {
                tracing::warn!(%error, "cannot consume from the affinity queues; trying again");
                None
            }
        }
    }

    /// Takes jobs from the deepest queue that may be stolen from: up to half of a live worker's, and as
    /// many as there are free places from a queue without consumers.
    async fn steal(&self, own: &[AffinityQueue], free: usize, is_idle: bool) -> Vec<Delivery> {
        let Ok(depths) = self.broker.depths().await else {
            return Vec::new();
        };
        let may_steal = |depth: &Depth| match depth.queue {
            Queue::Affinity(tier, queue) => {
                depth.ready > 0
                    && tier == self.tier
                    && !own.contains(&queue)
                    && (is_idle || depth.consumers == 0)
            }
            _ => false,
        };
        let Some(deepest) = depths
            .into_iter()
            .filter(may_steal)
            .max_by_key(|depth| depth.ready)
        else {
            return Vec::new();
        };
        let share = match deepest.consumers {
            0 => deepest.ready,
            _ => deepest.ready.div_ceil(2),
        };
        let count = usize::try_from(share).unwrap_or(usize::MAX).min(free);
        let prefetch = u16::try_from(count).unwrap_or(u16::MAX);
        let Ok(mut consumer) = self.broker.consume(&[deepest.queue], prefetch).await else {
            return Vec::new();
        };
        let taken = tokio::time::timeout(STEAL_WAIT, consumer.next_batch(count, STEAL_WAIT / 10));
        let stolen = taken.await.unwrap_or_default();
        consumer.close().await;
        counter!(STOLEN, "tier" => self.tier.as_str()).increment(stolen.len() as u64);
        stolen
    }
}
