//! Lanes: the worker's own, and what it takes from others' while it has nothing to do.
//!
//! Once a second, beside the loop, the living workers are read from the ledger, which says what affinity queues
//! are this worker's ([`Assignment`]), and the affinity queues' depths from the broker. A affinity queue that nobody
//! consumes from is anybody's; another worker's is left alone as long as this one has work.

use std::time::Duration;

use metrics::counter;

use crate::{
    affinity::Assignment,
    broker::{AffinityQueue, Broker, Consumer, Delivery, Queue},
    job::Tier,
    metrics::STOLEN,
    store::Store,
};

/// How often the workers and the affinity queues are looked at.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Workers unseen for longer are none.
const WORKER_AGE: Duration = Duration::from_secs(3600);
/// How long a delivery from another's affinity queue may take.
const STEAL_WAIT: Duration = Duration::from_millis(500);

/// What a look needs to know.
#[derive(Clone, Debug)]
pub(super) struct WorkStealer {
    pub broker: Broker,
    pub store: Store,
    pub tier: Tier,
    pub worker: String,
    /// Messages of each own affinity queue that may wait here.
    pub prefetch: u16,
}

/// A worker's own affinity queues.
#[derive(Debug, Default)]
pub(super) struct OwnQueues {
    pub affinity_queues: Vec<AffinityQueue>,
    pub consumer: Option<Consumer>,
}

/// What a look led to.
#[derive(Debug)]
pub(super) struct StealRound {
    /// The worker's affinity queues, where they are others than before.
    pub own: Option<OwnQueues>,
    /// Jobs from affinity queues that are not its own.
    pub stolen: Vec<Delivery>,
}

impl WorkStealer {
    /// Looks once. `own` are the affinity queues it has; `free` the places that nothing waits for, and
    /// `is_idle` says that most are.
    pub(super) async fn look(
        self,
        own: Vec<AffinityQueue>,
        free: usize,
        is_idle: bool,
    ) -> StealRound {
        let mut look = StealRound {
            own: None,
            stolen: Vec::new(),
        };
        let wanted = match self.store.workers(WORKER_AGE).await {
            Ok(workers) => Assignment::of(&workers, self.tier, chrono::Utc::now())
                .map(|assignment| assignment.queues_of(&self.worker))
                .unwrap_or_default(),
            Err(error) => {
                tracing::debug!(%error, "the other workers are not known; the affinity_queues stay");
                own.clone()
            }
        };
        if wanted != own {
            look.own = self.open(&wanted).await;
        }
        if free > 0 {
            look.stolen = self.steal(&wanted, free, is_idle).await;
        }
        look
    }

    async fn open(&self, affinity_queues: &[AffinityQueue]) -> Option<OwnQueues> {
        if affinity_queues.is_empty() {
            return Some(OwnQueues::default());
        }
        let queues: Vec<Queue> = affinity_queues
            .iter()
            .map(|l| Queue::Affinity(self.tier, *l))
            .collect();
        match self.broker.consume(&queues, self.prefetch).await {
            Ok(consumer) => Some(OwnQueues {
                affinity_queues: affinity_queues.to_vec(),
                consumer: Some(consumer),
            }),
            Err(error) => {
                tracing::warn!(%error, "affinity_queues cannot be consumed from yet");
                None
            }
        }
    }

    /// Takes jobs from the deepest affinity queue that may be taken from: up to half of what is there from a living
    /// worker's, all that there is room for from one that nobody consumes from.
    async fn steal(&self, own: &[AffinityQueue], free: usize, is_idle: bool) -> Vec<Delivery> {
        let Ok(depths) = self.broker.depths().await else {
            return Vec::new();
        };
        let may_be_taken = |queue: Queue, consumers: u32| match queue {
            Queue::Affinity(tier, affinity_queue) => {
                tier == self.tier && !own.contains(&affinity_queue) && (is_idle || consumers == 0)
            }
            _ => false,
        };
        let affinity_queues = depths
            .into_iter()
            .filter(|depth| depth.ready > 0 && may_be_taken(depth.queue, depth.consumers));
        let Some(deepest) = affinity_queues.max_by_key(|depth| depth.ready) else {
            return Vec::new();
        };
        let part = match deepest.consumers {
            0 => deepest.ready,
            _ => deepest.ready.div_ceil(2),
        };
        let count = usize::try_from(part).unwrap_or(usize::MAX).min(free);
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
