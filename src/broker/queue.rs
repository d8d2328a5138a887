//! The queues of a fleet.

use crate::job::Tier;

/// How long a job waits before it is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Delay {
    /// One second.
    S1,
    /// Ten seconds.
    S10,
    /// A minute.
    S60,
}

impl Delay {
    /// Its length in milliseconds.
    pub fn as_millis(self) -> u64 {
        match self {
            Self::S1 => 1_000,
            Self::S10 => 10_000,
            Self::S60 => 60_000,
        }
    }
}

/// One of a tier's affinity queues, for jobs that are best run by the worker which has their prompt
/// prefix in its cache. Their number is fixed and workers are assigned to them: no queue belongs to a
/// worker, so none is left behind with jobs in it when a worker goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AffinityQueue(u8);

impl AffinityQueue {
    /// Affinity queues of each tier.
    pub const COUNT: usize = 8;
    /// Every affinity queue of a tier, in order.
    pub const ALL: [Self; Self::COUNT] = {
        let mut all = [Self(0); Self::COUNT];
        let mut at = 0;
        while at < Self::COUNT {
            all[at] = Self(at as u8);
            at += 1;
        }
        all
    };
    const SMALL: [&'static str; Self::COUNT] = [
        "jobs.small.affinity.0",
        "jobs.small.affinity.1",
        "jobs.small.affinity.2",
        "jobs.small.affinity.3",
        "jobs.small.affinity.4",
        "jobs.small.affinity.5",
        "jobs.small.affinity.6",
        "jobs.small.affinity.7",
    ];
    const LARGE: [&'static str; Self::COUNT] = [
        "jobs.large.affinity.0",
        "jobs.large.affinity.1",
        "jobs.large.affinity.2",
        "jobs.large.affinity.3",
        "jobs.large.affinity.4",
        "jobs.large.affinity.5",
        "jobs.large.affinity.6",
        "jobs.large.affinity.7",
    ];

    /// Its position, from 0.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The queues of a fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Queue {
    /// Bodies from producers, for the router.
    In,
    /// Routed jobs of a tier, for its workers.
    Tier(Tier),
    /// Routed jobs of a tier, for the worker that has their prompt prefixes in its cache.
    Affinity(Tier, AffinityQueue),
    /// Dead letters: messages that expired, were rejected or were delivered too often.
    Dead,
    /// Routed jobs that wait before their next attempt; the broker then moves them to [`Queue::In`],
    /// and the router forwards them to their tier. They cannot go there at once: a RabbitMQ queue
    /// dead-letters everything to one routing key, so each tier would need delay queues of its own,
    /// and RabbitMQ strips the `expiration` of what it dead-letters, which the router's publication
    /// sets again.
    Retry(Delay),
}

impl Queue {
    /// Every queue.
    pub const ALL: [Self; 7 + 2 * AffinityQueue::COUNT] = {
        let mut all = [Self::In; 7 + 2 * AffinityQueue::COUNT];
        all[1] = Self::Tier(Tier::Small);
        all[2] = Self::Tier(Tier::Large);
        all[3] = Self::Dead;
        all[4] = Self::Retry(Delay::S1);
        all[5] = Self::Retry(Delay::S10);
        all[6] = Self::Retry(Delay::S60);
        let mut at = 0;
        while at < AffinityQueue::COUNT {
            all[7 + at] = Self::Affinity(Tier::Small, AffinityQueue::ALL[at]);
            all[7 + AffinityQueue::COUNT + at] =
                Self::Affinity(Tier::Large, AffinityQueue::ALL[at]);
            at += 1;
        }
        all
    };

    /// The queue's name, without the configured prefix.
    pub fn name(self) -> &'static str {
        match self {
            Self::In => "jobs.in",
            Self::Tier(Tier::Small) => "jobs.small",
            Self::Tier(Tier::Large) => "jobs.large",
            Self::Affinity(Tier::Small, at) => AffinityQueue::SMALL[at.index()],
            Self::Affinity(Tier::Large, at) => AffinityQueue::LARGE[at.index()],
            Self::Dead => "jobs.dead",
            Self::Retry(Delay::S1) => "jobs.retry.1s",
            Self::Retry(Delay::S10) => "jobs.retry.10s",
            Self::Retry(Delay::S60) => "jobs.retry.60s",
        }
    }

    /// The tier whose routed jobs it holds; `None` for the other queues.
    pub fn tier(self) -> Option<Tier> {
        match self {
            Self::Tier(tier) | Self::Affinity(tier, _) => Some(tier),
            Self::In | Self::Dead | Self::Retry(_) => None,
        }
    }

    /// True where messages expire.
    pub(crate) fn expires(self) -> bool {
        self == Self::In || self.tier().is_some()
    }
}
