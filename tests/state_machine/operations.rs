//! Random operations on the database. Jobs are named by position, so that a shrunk sequence still has a
//! meaning.

use promptyard::job::Tier;
use proptest::{prelude::*, prop_oneof};

use crate::model::Lease;

/// One store call, or the passing of time.
#[derive(Clone, Debug)]
pub enum Operation {
    Admit(Vec<Entrant>, Lease),
    Claim {
        worker: u8,
        /// `None` claims for the tier of the first job.
        tier: Option<Tier>,
        jobs: Vec<(Pick, bool)>,
        lease: Lease,
    },
    Settle(Word),
    End {
        who: Who,
        expired: bool,
    },
    Heartbeat {
        worker: u8,
        tier: Tier,
        lease: Lease,
    },
    TakeOver {
        limit: usize,
        lease: Lease,
    },
    /// Cancels some jobs or a batch.
    Cancel {
        of: Cancelled,
        tenant: Option<u8>,
        limit: usize,
    },
    Release {
        jobs: Vec<Pick>,
        again: bool,
    },
    /// Rescues stuck jobs, a few at a time.
    Rescue {
        is_empty: [bool; 3],
        /// Limits of rescued and of scanned jobs.
        most: (usize, usize),
    },
    Lead {
        role: bool,
        holder: bool,
        lease: Lease,
    },
    /// Reads deferred jobs, tenant loads and superseded attempts.
    StealRound {
        each: usize,
    },
    /// Moves the clock past every near deadline.
    Pass,
}

/// The jobs to cancel.
#[derive(Clone, Debug)]
pub enum Cancelled {
    Jobs(Vec<Pick>),
    Batch(u8),
}

/// A job to admit.
#[derive(Clone, Debug)]
pub struct Entrant {
    pub who: Who,
    pub tenant: u8,
    pub prompt: u8,
    pub decision: Way,
    pub deadline: Deadline,
    /// The number of its batch.
    pub batch: Option<u8>,
    pub attempts_max: Option<u32>,
}

/// Which job is admitted or ended.
#[derive(Clone, Copy, Debug)]
pub enum Who {
    /// A new one.
    Fresh,
    /// A new id with this key.
    Keyed(u8),
    /// A known job again; in half of the cases one that is not routed yet, if any.
    Again(u16),
    /// The same id, but another request.
    Other(u16),
    /// The same id and request under another key.
    Rekeyed(u16, u8),
    /// The previous job of the batch again.
    Before,
}

#[derive(Clone, Copy, Debug)]
pub enum Way {
    Queue,
    Route {
        tier: Tier,
        cached: bool,
        deferred: bool,
    },
    /// Deferred until a time far ahead or past.
    Schedule {
        later: bool,
    },
    Reject,
}

#[derive(Clone, Copy, Debug)]
pub enum Deadline {
    None,
    Over,
    Near,
    Far,
}

/// Which job is claimed or settled.
#[derive(Clone, Copy, Debug)]
pub enum Pick {
    /// One that fits the operation: open, running or deferred.
    Fitting(u16),
    Any(u16),
    Unknown,
}

/// How an attempt is settled.
#[derive(Clone, Debug)]
pub struct Word {
    pub pick: Pick,
    pub attempt: Which,
    pub end: End,
    pub reusable: bool,
    pub ttl: Lease,
    /// The settlement is in its batch twice.
    pub twice: bool,
}

/// Whose attempt a settlement names.
#[derive(Clone, Copy, Debug)]
pub enum Which {
    Latest,
    Older,
    /// An attempt that does not exist.
    Newer,
}

#[derive(Clone, Copy, Debug)]
pub enum End {
    Succeeded,
    Failed,
    Exhausted,
    Expired { written: bool },
    Cancelled { written: bool },
    Retry,
    RetryIsolated,
    Escalate { answered: bool, keeps_lead: bool },
    Returned,
}

/// Operations on so few jobs that they interact.
pub fn sequence() -> impl Strategy<Value = Vec<Operation>> {
    (admit(), prop::collection::vec(operation(), 1..56)).prop_map(|(first, mut rest)| {
        rest.insert(0, first);
        rest
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        8 => admit(),
        16 => claim(),
        14 => word().prop_map(Operation::Settle),
        1 => (who(), any::<bool>()).prop_map(|(who, expired)| Operation::End { who, expired }),
        2 => (0..3_u8, tier(), lease())
            .prop_map(|(worker, tier, lease)| Operation::Heartbeat { worker, tier, lease }),
        5 => (prop_oneof![Just(1), Just(2), Just(100)], lease())
            .prop_map(|(limit, lease)| Operation::TakeOver { limit, lease }),
        2 => cancel(),
        4 => (prop::collection::vec(pick(), 1..4), prop::bool::weighted(0.4))
            .prop_map(|(jobs, again)| Operation::Release { jobs, again }),
        2 => (any::<[bool; 3]>(), prop_oneof![Just((1, 1000)), Just((1000, 2)), Just((1000, 1000))])
            .prop_map(|(is_empty, most)| Operation::Rescue { is_empty, most }),
        2 => (any::<bool>(), any::<bool>(), lease())
            .prop_map(|(role, holder, lease)| Operation::Lead { role, holder, lease }),
        3 => prop_oneof![Just(1), Just(100)].prop_map(|each| Operation::StealRound { each }),
        1 => Just(Operation::Pass),
    ]
}

fn admit() -> impl Strategy<Value = Operation> {
    (prop::collection::vec(entrant(), 1..4), lease())
        .prop_map(|(entrants, lease)| Operation::Admit(entrants, lease))
}

fn cancel() -> impl Strategy<Value = Operation> {
    let of = prop_oneof![
        5 => prop::collection::vec(pick(), 1..3).prop_map(Cancelled::Jobs),
        1 => (0..2_u8).prop_map(Cancelled::Batch),
    ];
    let tenant = prop_oneof![2 => Just(None), 1 => (0..2_u8).prop_map(Some)];
    let limit = prop_oneof![Just(1), Just(100)];
    (of, tenant, limit).prop_map(|(of, tenant, limit)| Operation::Cancel { of, tenant, limit })
}

fn lease() -> impl Strategy<Value = Lease> {
    prop_oneof![2 => Just(Lease::Long), 1 => Just(Lease::None)]
}

fn tier() -> impl Strategy<Value = Tier> {
    prop_oneof![6 => Just(Tier::Small), 1 => Just(Tier::Large)]
}

fn who() -> impl Strategy<Value = Who> {
    prop_oneof![
        6 => Just(Who::Fresh),
        2 => (0..3_u8).prop_map(Who::Keyed),
        3 => any::<u16>().prop_map(Who::Again),
        1 => any::<u16>().prop_map(Who::Other),
        1 => (any::<u16>(), 0..3_u8).prop_map(|(at, key)| Who::Rekeyed(at, key)),
        2 => Just(Who::Before),
    ]
}

fn entrant() -> impl Strategy<Value = Entrant> {
    let decision = prop_oneof![
        3 => Just(Way::Queue),
        12 => (tier(), prop::bool::weighted(0.9), prop::bool::weighted(0.1))
            .prop_map(|(tier, cached, deferred)| Way::Route { tier, cached, deferred }),
        2 => any::<bool>().prop_map(|later| Way::Schedule { later }),
        1 => Just(Way::Reject),
    ];
    let deadline = prop_oneof![
        30 => Just(Deadline::None),
        1 => Just(Deadline::Over),
        2 => Just(Deadline::Near),
        1 => Just(Deadline::Far),
    ];
    let tenant = prop_oneof![5 => Just(0_u8), 1 => Just(1)];
    let prompt = prop_oneof![4 => Just(0_u8), 1 => Just(1)];
    let batch = prop_oneof![3 => Just(None), 1 => (0..2_u8).prop_map(Some)];
    let attempts_max = prop_oneof![
        6 => Just(None),
        1 => Just(Some(1)),
        1 => Just(Some(2)),
        1 => Just(Some(100)),
    ];
    let envelope = (deadline, batch, attempts_max);
    (who(), tenant, prompt, decision, envelope).prop_map(
        |(who, tenant, prompt, decision, (deadline, batch, attempts_max))| Entrant {
            who,
            tenant,
            prompt,
            decision,
            deadline,
            batch,
            attempts_max,
        },
    )
}

fn pick() -> impl Strategy<Value = Pick> {
    prop_oneof![
        14 => any::<u16>().prop_map(Pick::Fitting),
        2 => any::<u16>().prop_map(Pick::Any),
        1 => Just(Pick::Unknown),
    ]
}

fn claim() -> impl Strategy<Value = Operation> {
    let tier = prop_oneof![5 => Just(None), 1 => tier().prop_map(Some)];
    let jobs = prop::collection::vec((pick(), prop::bool::weighted(0.4)), 1..4);
    (0..3_u8, tier, jobs, lease()).prop_map(|(worker, tier, jobs, lease)| Operation::Claim {
        worker,
        tier,
        jobs,
        lease,
    })
}

fn word() -> impl Strategy<Value = Word> {
    let attempt = prop_oneof![
        10 => Just(Which::Latest),
        1 => Just(Which::Older),
        1 => Just(Which::Newer),
    ];
    let end = prop_oneof![
        4 => Just(End::Succeeded),
        1 => Just(End::Failed),
        1 => Just(End::Exhausted),
        1 => any::<bool>().prop_map(|written| End::Expired { written }),
        1 => any::<bool>().prop_map(|written| End::Cancelled { written }),
        3 => Just(End::Retry),
        1 => Just(End::RetryIsolated),
        5 => any::<(bool, bool)>()
            .prop_map(|(answered, keeps_lead)| End::Escalate { answered, keeps_lead }),
        2 => Just(End::Returned),
    ];
    let reusable = prop::bool::weighted(0.8);
    (
        pick(),
        attempt,
        end,
        reusable,
        lease(),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(pick, attempt, end, reusable, ttl, twice)| Word {
            pick,
            attempt,
            end,
            reusable,
            ttl,
            twice,
        })
}
