//! What goes wrong next: drawn from a seed.

use std::time::Duration;

use rand::{RngExt, rngs::StdRng};

/// A way to hurt a fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// SIGKILL of a role, started again after a while.
    RoleKilled,
    /// SIGSTOP of a role, and SIGCONT after a while.
    RoleFrozen,
    /// One role's or producer's connections to the broker end.
    BrokerCut,
    /// One role's connections to the database end.
    DatabaseCut,
    /// What one role or producer says to the broker arrives later.
    BrokerDelayed,
    /// What one role says to the database arrives later.
    DatabaseDelayed,
    /// One role or producer cannot reach the broker for a while.
    BrokerParted,
    /// One role cannot reach the database for a while.
    DatabaseParted,
    /// The broker stops in order and starts again.
    BrokerRestarted,
    /// SIGKILL of the broker.
    BrokerKilled,
    /// The broker is short of memory for a while: it takes no messages.
    BrokerAlarmed,
    /// The database's server stops in order (`pg_ctl stop -m fast`) and starts again.
    DatabaseRestarted,
    /// The database's server stops without a checkpoint (`pg_ctl stop -m immediate`).
    DatabaseAborted,
    /// SIGKILL of the database's server and of all its backends.
    DatabaseKilled,
    /// Messages that were confirmed are published again.
    Duplicates,
    /// A prompt that brings down all that runs beside it.
    Poison,
}

impl Kind {
    /// How often each is drawn, of 100. A broker takes ten seconds to come back, hence its small share.
    const SHARES: [(Self, u32); 16] = [
        (Self::RoleKilled, 20),
        (Self::RoleFrozen, 13),
        (Self::BrokerCut, 12),
        (Self::DatabaseCut, 10),
        (Self::BrokerDelayed, 6),
        (Self::DatabaseDelayed, 6),
        (Self::BrokerParted, 5),
        (Self::DatabaseParted, 5),
        (Self::BrokerRestarted, 2),
        (Self::BrokerKilled, 2),
        (Self::BrokerAlarmed, 2),
        (Self::DatabaseRestarted, 3),
        (Self::DatabaseAborted, 3),
        (Self::DatabaseKilled, 3),
        (Self::Duplicates, 5),
        (Self::Poison, 3),
    ];

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::RoleKilled => "kill -9 of a role",
            Self::RoleFrozen => "SIGSTOP of a role",
            Self::BrokerCut => "connections to the broker cut",
            Self::DatabaseCut => "connections to the database cut",
            Self::BrokerDelayed => "traffic to the broker held up",
            Self::DatabaseDelayed => "traffic to the database delayed",
            Self::BrokerParted => "broker out of reach",
            Self::DatabaseParted => "database unreachable",
            Self::BrokerRestarted => "RabbitMQ restarted",
            Self::BrokerKilled => "kill -9 of RabbitMQ",
            Self::BrokerAlarmed => "memory alarm of RabbitMQ",
            Self::DatabaseRestarted => "Postgres restarted",
            Self::DatabaseAborted => "Postgres stopped with -m immediate",
            Self::DatabaseKilled => "kill -9 of Postgres",
            Self::Duplicates => "confirmed messages published again",
            Self::Poison => "poison prompt",
        }
    }
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub kind: Kind,
    /// Chooses whom it strikes, modulo how many there are.
    pub whom: usize,
    /// Until it is mended.
    pub lasts: Duration,
    /// Until the next one.
    pub pause: Duration,
}

impl Fault {
    pub fn draw(random: &mut StdRng) -> Self {
        let total = Kind::SHARES.iter().map(|(_, share)| share).sum();
        let mut at = random.random_range(0..total);
        let drawn = Kind::SHARES.iter().find(|(_, share)| {
            let is_it = at < *share;
            at = at.saturating_sub(*share);
            is_it
        });
        let kind = drawn.unwrap().0;
        // Some outlast leases and heartbeats.
        let is_long = random.random_bool(0.15);
        let most_ms = match kind {
            Kind::RoleFrozen if is_long => 20_000,
            Kind::BrokerDelayed | Kind::DatabaseDelayed if is_long => 12_000,
            Kind::BrokerParted | Kind::DatabaseParted if is_long => 10_000,
            Kind::RoleFrozen => 5_000,
            _ => 3_000,
        };
        Self {
            kind,
            whom: random.random_range(0..usize::MAX),
            lasts: Duration::from_millis(random.random_range(200..most_ms)),
            pause: Duration::from_millis(random.random_range(800..1_900)),
        }
    }
}
