//! Fleets of real processes, each with queues and tables of its own that go with it.

use std::{
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    str::FromStr,
};

use promptyard::{
    broker::Broker,
    config::{BrokerConfig, SecretUrl, StoreConfig},
    store::Store,
};
use serde_json::Value;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use uuid::Uuid;

use crate::support::{
    binary::{promptyard, signal},
    poll::{PATIENCE, poll, until},
    servers::{amqp_url, database_url, free_port},
};

/// A prefix on RabbitMQ and a schema in Postgres, deleted on drop.
pub struct TestFleet {
    pub broker: BrokerConfig,
    pub store: StoreConfig,
    pub folder: tempfile::TempDir,
    /// More `--set` assignments for every process.
    pub settings: Vec<String>,
    /// Reads the database.
    pub pool: PgPool,
}

impl TestFleet {
    /// A fleet with its tables in place.
    pub async fn new() -> Self {
        let fleet = Self::bare();
        let migrated = fleet.run(&["migrate"], &[]).await;
        assert!(migrated.status.success(), "{}", text(&migrated.stderr));
        fleet
    }

    /// A fleet without tables.
    pub fn bare() -> Self {
        let id = Uuid::now_v7().simple().to_string();
        let schema = format!("fleet_{}", &id[16..]);
        let options = PgConnectOptions::from_str(&database_url())
            .unwrap()
            .options([("search_path", schema.as_str())]);
        Self {
            broker: BrokerConfig {
                url: SecretUrl::new(amqp_url()),
                prefix: format!("fleet-{id}."),
                ..BrokerConfig::default()
            },
            store: StoreConfig {
                url: SecretUrl::new(database_url()),
                schema,
                ..StoreConfig::default()
            },
            folder: tempfile::tempdir().unwrap(),
            settings: Vec::new(),
            pool: PgPoolOptions::new()
                .max_connections(2)
                .acquire_timeout(PATIENCE)
                .connect_lazy_with(options),
        }
    }

    /// The binary, told where this fleet's queues and tables are.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = promptyard();
        command.args(arguments);
        command.args(["--broker", self.broker.url.expose()]);
        command.args(["--store", self.store.url.expose()]);
        command
            .arg("--set")
            .arg(format!("broker.prefix={}", self.broker.prefix));
        command
            .arg("--set")
            .arg(format!("store.schema={}", self.store.schema));
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        command
    }

    /// Runs a command to its end.
    pub async fn run(&self, arguments: &[&str], input: &[u8]) -> Output {
        output(self.command(arguments), input).await
    }

    /// Starts a role and waits until it is ready.
    pub async fn start(&self, arguments: &[&str]) -> Role {
        loop {
            let role = self.spawn(arguments);
            if role.is_ready(200).await {
                return role;
            }
        }
    }

    /// Starts a role.
    pub fn spawn(&self, arguments: &[&str]) -> Role {
        let log = self.folder.path().join(format!("{}.log", Uuid::now_v7()));
        let metrics = free_port();
        let mut command = self.command(arguments);
        let address = format!("127.0.0.1:{metrics}");
        let process = command
            .args(["--metrics-listen", &address])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Role {
            process,
            log,
            metrics,
        }
    }

    pub async fn connect(&self) -> Broker {
        match Broker::connect(&self.broker, Path::new("unused")).await {
            Ok(broker) => broker,
            Err(error) => panic!("{error}; set PROMPTYARD_TEST_AMQP_URL or start RabbitMQ"),
        }
    }

    /// Waits until every queue is empty. What is delivered but not settled does not count, so stop
    /// the consumers first.
    pub async fn queues_are_empty(&self) {
        let broker = self.connect().await;
        until("empty queues", async || {
            let depths = broker.depths().await.unwrap();
            depths.iter().all(|depth| depth.ready == 0)
        })
        .await;
        broker.close().await;
    }

    pub async fn count(&self, query: &'static str) -> i64 {
        let count = sqlx::query_scalar(query).fetch_one(&self.pool).await;
        count.unwrap_or_else(|error| panic!("{query}: {error}"))
    }

    /// Waits until a count reaches a number.
    pub async fn until_count(&self, query: &'static str, wanted: i64) {
        let reached = poll(PATIENCE, async || {
            (self.count(query).await >= wanted).then_some(())
        });
        if reached.await.is_none() {
            let found = self.count(query).await;
            panic!("{query}: {found} of {wanted}\n{}", self.logs());
        }
    }

    /// Waits until so many jobs have ended.
    pub async fn until_ended(&self, jobs: i64) {
        self.until_count(
            "select count(*) from jobs where finished_at is not null",
            jobs,
        )
        .await;
    }

    /// The tails of all role logs, for a failing test.
    pub fn logs(&self) -> String {
        let mut all = String::new();
        for entry in std::fs::read_dir(self.folder.path()).unwrap().flatten() {
            if entry.path().extension().is_some_and(|name| name == "log") {
                let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(12).collect();
                all.extend(tail.into_iter().rev().flat_map(|line| [line, "\n"]));
                all.push('\n');
            }
        }
        all
    }
}

impl Drop for TestFleet {
    /// Also on panic, and from a thread since the test's own runtime may be going down.
    fn drop(&mut self) {
        let (mut broker, mut store) = (self.broker.clone(), self.store.clone());
        // Proxies between the fleet and its servers are gone by now.
        broker.url = SecretUrl::new(amqp_url());
        store.url = SecretUrl::new(database_url());
        let removing = std::thread::spawn(move || {
            tokio::runtime::Runtime::new().unwrap().block_on(async {
                if let Ok(broker) = Broker::connect(&broker, Path::new("unused")).await {
                    let _ = broker.delete_queues().await;
                    broker.close().await;
                }
                if let Ok(store) = Store::connect(&store).await {
                    let _ = store.drop_all().await;
                    store.close().await;
                }
            });
        });
        let _ = removing.join();
    }
}

/// A running process of the fleet; it dies with the value.
pub struct Role {
    process: Child,
    pub log: PathBuf,
    pub metrics: u16,
}

impl Role {
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// SIGTERM, and the end that follows.
    pub async fn stop(mut self) -> ExitStatus {
        signal("TERM", self.id());
        let status = poll(PATIENCE, async || self.process.try_wait().unwrap()).await;
        status.unwrap_or_else(|| panic!("does not stop: {}", self.said()))
    }

    /// Waits until `/readyz` answers with a status.
    pub async fn ready(&self, status: u16) {
        assert!(self.is_ready(status).await, "{}", self.said());
    }

    /// As [`Self::ready`]; false when another process took its port meanwhile.
    async fn is_ready(&self, status: u16) -> bool {
        let mut last = None;
        let ready = poll(PATIENCE, async || {
            last = http(self.metrics, "GET", "/readyz", &[], "").await;
            if last.as_ref().is_some_and(|found| found.status == status) {
                Some(true)
            } else {
                let port_is_taken = self.said().contains("Address already in use");
                port_is_taken.then_some(false)
            }
        })
        .await;
        ready.unwrap_or_else(|| {
            let last = last.map(|found| found.body);
            panic!("never {status}, but {last:?}: {}", self.said())
        })
    }

    /// Waits until the role has begun and ended one more call of a kind to the job database.
    pub async fn calls_store(&self, call: &str) {
        let series = format!("promptyard_store_call_seconds_count{{call=\"{call}\"}} ");
        let calls = async || -> u64 {
            let metrics = http(self.metrics, "GET", "/metrics", &[], "").await;
            let metrics = metrics.map(|found| found.body).unwrap_or_default();
            let count = metrics.lines().find_map(|line| line.strip_prefix(&series));
            count.map_or(0, |count| count.parse().unwrap())
        };
        // The next call may have begun already, the one after it has not.
        let wanted = calls().await + 2;
        until(call, async || calls().await >= wanted).await;
    }

    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs a command to its end on a thread of its own.
pub async fn output(mut command: Command, input: &[u8]) -> Output {
    let input = input.to_vec();
    let run = tokio::task::spawn_blocking(move || {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut stdin = process.stdin.take().unwrap();
        let writing = std::thread::spawn(move || stdin.write_all(&input));
        let output = process.wait_with_output().unwrap();
        // A command that does not read its input closes it.
        let _ = writing.join();
        output
    });
    tokio::time::timeout(PATIENCE, run)
        .await
        .expect("the command hangs")
        .unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The JSON values of lines.
pub fn json_lines(bytes: &[u8]) -> Vec<Value> {
    let lines = text(bytes);
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What a server answered.
#[derive(Debug)]
pub struct Answered {
    pub status: u16,
    /// In lower case.
    pub headers: String,
    pub body: String,
}

impl Answered {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// One HTTP request to a port of this machine; `None` when nobody answers.
pub async fn http(
    port: u16,
    method: &str,
    path: &str,
    headers: &[&str],
    body: &str,
) -> Option<Answered> {
    let lines: String = headers
        .iter()
        .map(|header| format!("{header}\r\n"))
        .collect();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n{lines}\r\n{body}",
        body.len()
    );
    let exchange = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    });
    let answer = exchange.await.unwrap()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some(Answered {
        status: head.split(' ').nth(1)?.parse().ok()?,
        headers: head.to_lowercase(),
        body: body.to_owned(),
    })
}
