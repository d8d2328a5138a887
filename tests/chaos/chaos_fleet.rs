//! A fleet of its own: servers, a proxy in front of each of them for everybody, roles and producers.

use std::{
    net::TcpStream,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use promptyard::config::{BrokerConfig, SecretUrl};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use tokio::time::Instant;

use crate::{
    book::{Book, POISON},
    producer::Producer,
    role::Role,
    support::{
        binary::promptyard,
        poll::poll,
        postgres_server::Postgres,
        proxy::Proxy,
        rabbit_server::{START_PATIENCE, Server},
    },
};

/// What kinds of jobs there are and how often a job is tried.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Attempts that a job gets.
    pub attempts_max: u32,
    /// Prompts of a hundred that always fail.
    pub fail_percent: u32,
    /// Jobs made up in a second.
    pub jobs_per_s: f64,
}

/// The roles: name, command, tiers.
const ROLES: [(&str, &str, &str); 5] = [
    ("router-a", "route", ""),
    ("router-b", "route", ""),
    ("worker-small", "work", "small"),
    ("worker-large", "work", "large"),
    ("worker-both", "work", "small,large"),
];
const PRODUCERS: usize = 2;
/// Jobs that may wait for their replies before no more are made up: on a busy machine they would only
/// pile up.
const OUTSTANDING_MAX: usize = 600;
/// Shorter than the defaults, so that what is presumed dead is replaced while a test looks on.
const SETTINGS: [&str; 9] = [
    "worker.lease_s=4",
    "cache.lease_s=20",
    "broker.publish_timeout_ms=5000",
    "broker.connect_timeout_ms=4000",
    "store.connect_timeout_ms=4000",
    "store.connections_max=4",
    "small.batch_max=8",
    "large.batch_max=8",
    "telemetry.log=info,sqlx=warn,lapin=error,lapin::returned_messages=off",
];

/// A fleet that can be hurt.
pub struct ChaosFleet {
    pub broker: Server,
    pub database: Postgres,
    /// In front of the broker: one for each role, then one for each producer.
    pub broker_links: Vec<Proxy>,
    /// In front of the database: one for each role.
    pub database_links: Vec<Proxy>,
    pub roles: Vec<Role>,
    pub producers: Vec<Producer>,
    pub book: Arc<Mutex<Book>>,
    pub folder: tempfile::TempDir,
    pub terms: Terms,
    traffic: StdRng,
    traffic_at: Instant,
}

impl ChaosFleet {
    /// Servers, tables, roles that have begun, and producers that wait for work.
    pub async fn start(terms: Terms, seed: u64) -> Self {
        let broker = Server::start();
        let database = Postgres::start();
        for port in [broker.port, database.port] {
            let up = poll(START_PATIENCE, async || is_listening(port).then_some(())).await;
            assert!(up.is_some(), "no server came up on port {port}");
        }
        let (mut broker_links, mut database_links) = (Vec::new(), Vec::new());
        for _ in 0..ROLES.len() + PRODUCERS {
            broker_links.push(Proxy::start(format!("127.0.0.1:{}", broker.port)).await);
        }
        for _ in ROLES {
            database_links.push(Proxy::start(format!("127.0.0.1:{}", database.port)).await);
        }
        let book: Arc<Mutex<Book>> = Arc::default();
        let folder = tempfile::tempdir().unwrap();
        let mut fleet = Self {
            broker,
            database,
            broker_links,
            database_links,
            roles: Vec::new(),
            producers: Vec::new(),
            book,
            folder,
            terms,
            traffic: StdRng::seed_from_u64(seed.wrapping_add(1)),
            traffic_at: Instant::now(),
        };
        fleet.migrate().await;
        fleet.roles = fleet.make_roles();
        fleet.roles.iter_mut().for_each(Role::start);
        for role in &fleet.roles {
            let begun = poll(START_PATIENCE, async || role.has_begun().then_some(())).await;
            assert!(begun.is_some(), "{}: {}", role.name, role.said());
        }
        for number in 0..PRODUCERS {
            let link = &fleet.broker_links[ROLES.len() + number];
            let producer = Producer::start(amqp_url(link.port), number, fleet.book.clone());
            fleet.producers.push(producer);
        }
        fleet
    }

    /// A server that listens may still refuse connections for a moment.
    async fn migrate(&self) {
        let url = Postgres::url(self.database.port);
        let mut said = Vec::new();
        let migrated = poll(START_PATIENCE, async || {
            let mut command = promptyard();
            command.args(["migrate", "--store", &url]);
            let done = command.stdin(Stdio::null()).output().unwrap();
            said = done.stderr;
            done.status.success().then_some(())
        });
        let migrated = migrated.await.is_some();
        assert!(migrated, "{}", String::from_utf8_lossy(&said));
    }

    /// The engines' script.
    pub fn script(&self) -> String {
        let fail_percent = self.terms.fail_percent;
        format!("scripted:latency_ms=20,jitter_ms=400,poison={POISON},fail_percent={fail_percent}")
    }

    fn make_roles(&self) -> Vec<Role> {
        let logs: PathBuf = self.folder.path().into();
        let script = self.script();
        let make = |(at, (name, command, tiers)): (usize, &(&'static str, &str, &str))| {
            let broker = amqp_url(self.broker_links[at].port);
            let store = Postgres::url(self.database_links[at].port);
            let mut arguments = vec![*command, "--broker", &broker, "--store", &store];
            arguments.extend(["--metrics-listen", ""]);
            if !tiers.is_empty() {
                arguments.extend(["--tier", tiers, "--small", &script, "--large", &script]);
            }
            let attempts = format!("worker.attempts_max={}", self.terms.attempts_max);
            for setting in SETTINGS.into_iter().chain([attempts.as_str()]) {
                arguments.extend(["--set", setting]);
            }
            let arguments = arguments.into_iter().map(str::to_owned).collect();
            Role::new(name, arguments, logs.clone())
        };
        ROLES.iter().enumerate().map(make).collect()
    }

    /// Makes up the jobs that are due and gives them to the producers.
    pub fn traffic(&mut self) {
        let gap = Duration::from_secs_f64(1.0 / self.terms.jobs_per_s);
        let now = Instant::now();
        // What was held up by a full window is not made up for.
        self.traffic_at = self.traffic_at.max(now - Duration::from_secs(1));
        while self.traffic_at < now {
            self.traffic_at += gap;
            let mut book = self.book.lock().unwrap();
            if book.outstanding < OUTSTANDING_MAX {
                let at = usize::from(self.traffic.random_bool(0.5));
                let name = book.ask(&mut self.traffic);
                self.producers[at].give(name);
            }
        }
    }

    /// How to reach the broker past the proxies.
    pub fn broker_config(&self) -> BrokerConfig {
        BrokerConfig {
            url: SecretUrl::new(self.broker.url()),
            ..BrokerConfig::default()
        }
    }

    /// Reads the database past the proxies.
    pub fn pool(&self) -> PgPool {
        let options: PgConnectOptions = Postgres::url(self.database.port).parse().unwrap();
        PgPoolOptions::new()
            .max_connections(2)
            .connect_lazy_with(options.options([("search_path", "promptyard")]))
    }

    /// Resident bytes of each role that runs.
    pub fn resident_bytes(&self) -> Vec<Option<u64>> {
        self.roles.iter().map(Role::resident_bytes).collect()
    }
}

/// The heartbeat is short, so that a role that does not move is given up soon.
fn amqp_url(port: u16) -> String {
    format!("amqp://guest:guest@127.0.0.1:{port}/%2f?heartbeat=5")
}

pub fn is_listening(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}
