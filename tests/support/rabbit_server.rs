//! A RabbitMQ node of the tests' own: its data, name, ports and port mapper are shared with nobody.

use std::{
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::support::{poll::poll_blocking, servers::lasting_port};

/// A node takes ten seconds to start, and more beside other tests.
pub const START_PATIENCE: Duration = Duration::from_secs(150);

/// A node that runs; it dies with the value.
pub struct Server {
    pub folder: tempfile::TempDir,
    pub port: u16,
    distribution_port: u16,
    pub epmd_port: u16,
    pub process: Child,
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
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (port, distribution_port, epmd_port) = (lasting_port(), lasting_port(), lasting_port());
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
            .env("RABBITMQ_NODENAME", Self::node(port))
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
            .unwrap_or_else(|error| panic!("this test starts its own rabbitmq-server: {error}"))
    }

    /// SIGKILL, as a power cut would.
    pub fn kill(&mut self) {
        let group = format!("-{}", self.process.id());
        let killed = Command::new("kill").args(["-9", "--", &group]).status();
        assert!(killed.is_ok_and(|status| status.success()));
        let _ = self.process.wait();
    }

    pub fn restart(&mut self) {
        let (path, port) = (self.folder.path(), self.port);
        self.process = Self::spawn(path, port, self.distribution_port, self.epmd_port);
    }

    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// The name by which the node is administered.
    pub fn node(port: u16) -> String {
        format!("promptyard-test-{port}@localhost")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let group = format!("-{}", self.process.id());
        let _ = Command::new("kill").args(["-9", "--", &group]).status();
        let _ = self.process.wait();
        // The port mapper outlives its node, and refuses to stop until it has noticed that the node
        // is gone.
        poll_blocking(Duration::from_secs(5), || {
            let stopped = Command::new("epmd")
                .args(["-port", &self.epmd_port.to_string(), "-kill"])
                .output();
            let stopped = stopped.is_ok_and(|output| output.stdout.starts_with(b"Killed"));
            stopped.then_some(())
        });
    }
}
