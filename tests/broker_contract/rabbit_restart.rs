//! A RabbitMQ server of our own that is killed and started again.

use std::{
    collections::BTreeSet,
    net::TcpListener,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use promptyard::broker::{Broker, Queue};
use tokio::time::{Instant, sleep, timeout};

use crate::harness::{
    Fleet, ack, message, numbered, publish, publish_until_taken, take, texts, until,
};

/// A node takes ten seconds to start, and more beside other tests.
const START_PATIENCE: Duration = Duration::from_secs(150);

struct Server {
    folder: tempfile::TempDir,
    port: u16,
    distribution_port: u16,
    epmd_port: u16,
    process: Child,
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Where Debian has the script that does not insist on its own user, else what the path has.
fn program() -> &'static str {
    let script = "/usr/lib/rabbitmq/bin/rabbitmq-server";
    if Path::new(script).exists() {
        script
    } else {
        "rabbitmq-server"
    }
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (port, distribution_port, epmd_port) = (free_port(), free_port(), free_port());
        let process = Self::spawn(folder.path(), port, distribution_port, epmd_port);
        Self {
            folder,
            port,
            distribution_port,
            epmd_port,
            process,
        }
    }

    fn spawn(folder: &Path, port: u16, distribution_port: u16, epmd_port: u16) -> Child {
        std::fs::write(folder.join("plugins"), "[].").unwrap();
        Command::new(program())
            .env("HOME", folder)
            .env("ERL_EPMD_PORT", epmd_port.to_string())
            .env(
                "RABBITMQ_NODENAME",
                format!("promptyard-test-{port}@localhost"),
            )
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", port.to_string())
            .env("RABBITMQ_DIST_PORT", distribution_port.to_string())
            .env("RABBITMQ_MNESIA_BASE", folder.join("data"))
            .env("RABBITMQ_LOG_BASE", folder.join("log"))
            .env("RABBITMQ_PID_FILE", folder.join("pid"))
            .env("RABBITMQ_CONFIG_FILE", folder.join("none"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("plugins"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A group of its own, so that the script and the node die together.
            .process_group(0)
            .spawn()
            .unwrap_or_else(|fault| panic!("this test starts its own rabbitmq-server: {fault}"))
    }

    /// SIGKILL, as a power cut would.
    fn kill(&mut self) {
        let group = format!("-{}", self.process.id());
        let killed = Command::new("kill").args(["-9", "--", &group]).status();
        assert!(killed.is_ok_and(|status| status.success()));
        let _ = self.process.wait();
    }

    fn restart(&mut self) {
        let (path, port) = (self.folder.path(), self.port);
        self.process = Self::spawn(path, port, self.distribution_port, self.epmd_port);
    }

    fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let group = format!("-{}", self.process.id());
        let _ = Command::new("kill").args(["-9", "--", &group]).status();
        let _ = self.process.wait();
        // The port mapper runs on by itself. It ends only when told, and not before it has noticed
        // that its node is gone.
        for _ in 0..50 {
            let told = Command::new("epmd")
                .args(["-port", &self.epmd_port.to_string(), "-kill"])
                .output();
            if told.is_ok_and(|told| told.stdout.starts_with(b"Killed")) {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

async fn connect(fleet: &Fleet) -> Broker {
    let deadline = Instant::now() + START_PATIENCE;
    loop {
        match Broker::connect(&fleet.config, &fleet.path()).await {
            Ok(broker) => return broker,
            Err(fault) => assert!(Instant::now() < deadline, "{fault}"),
        }
        sleep(Duration::from_millis(300)).await;
    }
}

/// What the broker confirmed outlives its sudden death; publishing and consuming go on by
/// themselves once it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_nothing_confirmed() {
    let test = async {
        let mut server = Server::start();
        let mut fleet = Fleet::embedded();
        fleet.config.url = promptyard::config::SecretUrl::new(server.url());
        let broker = connect(&fleet).await;
        publish(&broker, numbered(Queue::In, 0..50)).await;
        let mut consumer = broker.consume(&[Queue::In], 16).await.unwrap();
        let acked = take(&mut consumer, 10).await;
        let mut seen: BTreeSet<_> = texts(&acked).into_iter().collect();
        assert_eq!(ack(&broker, acked).await, 0);
        let held = take(&mut consumer, 10).await;

        server.kill();
        until("the broker is away", || async { !broker.is_connected() }).await;
        until("tickets are dead", || async {
            !held.iter().any(|d| d.ticket.is_live())
        })
        .await;
        assert_eq!(ack(&broker, held).await, 10);

        server.restart();
        let back = Instant::now() + START_PATIENCE;
        while !broker.is_connected() {
            assert!(Instant::now() < back, "the broker did not come back");
            sleep(Duration::from_millis(100)).await;
        }
        publish_until_taken(&broker, message(Queue::In, "50")).await;
        // Acknowledgements are not confirmed, so some of the first ten may come again.
        while seen.len() < 51 {
            let batch = take(&mut consumer, 1).await;
            seen.extend(texts(&batch));
            assert_eq!(ack(&broker, batch).await, 0);
        }
        broker.close().await;
    };
    timeout(START_PATIENCE * 3, test)
        .await
        .expect("the test hangs");
}
