//! What is done to the two servers, and when each is there again.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    chaos_fleet::is_listening,
    schedule::{Fault, Kind},
    storm::{Remedy, START_AGAIN, Storm},
    support::rabbit_server::Server,
};

/// How long a server may take to stop in order.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// Below what any node needs, and the standard.
pub const WATERMARKS: [&str; 2] = ["0.0001", "0.4"];

/// How a server is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Health {
    Up,
    /// Told to stop, and when it is killed if it does not; how long it then stays away.
    Stopping(Instant, Duration),
    Down,
    Starting,
    Alarmed,
}

impl Storm {
    pub fn hurt_broker(&mut self, fault: Fault) {
        match fault.kind {
            Kind::BrokerRestarted => {
                let group = format!("-{}", self.fleet.broker.process.id());
                let _ = Command::new("kill")
                    .args(["-s", "TERM", "--", &group])
                    .status();
                self.broker = Health::Stopping(Instant::now() + STOP_PATIENCE, fault.lasts);
            }
            Kind::BrokerKilled => {
                self.fleet.broker.kill();
                self.broker = Health::Down;
                self.later(fault.lasts, Remedy::StartBroker);
            }
            _ => {
                self.set_watermark(WATERMARKS[0]);
                self.broker = Health::Alarmed;
                // The order itself takes a second or two to arrive.
                self.later(Duration::from_secs(2) + fault.lasts, Remedy::EndAlarm);
            }
        }
    }

    pub fn hurt_database(&mut self, fault: Fault) {
        let signal = match fault.kind {
            Kind::DatabaseRestarted => "INT",
            Kind::DatabaseAborted => "QUIT",
            _ => {
                self.fleet.database.kill();
                self.database = Health::Down;
                self.later(fault.lasts, Remedy::StartDatabase);
                return;
            }
        };
        self.fleet.database.signal(signal);
        self.database = Health::Stopping(Instant::now() + STOP_PATIENCE, fault.lasts);
    }

    /// Tells the broker how much memory it may use; the order is carried out beside the storm.
    pub fn set_watermark(&mut self, watermark: &'static str) {
        let script = "/usr/lib/rabbitmq/bin/rabbitmqctl";
        let program = if Path::new(script).exists() {
            script
        } else {
            "rabbitmqctl"
        };
        let broker = &self.fleet.broker;
        let order = Command::new(program)
            .args(["set_vm_memory_high_watermark", watermark])
            .env("HOME", broker.folder.path())
            .env("ERL_EPMD_PORT", broker.epmd_port.to_string())
            .env("RABBITMQ_NODENAME", Server::node(broker.port))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.orders.push((watermark, order.unwrap()));
    }

    /// True while an order to the broker is being carried out.
    pub fn is_ordered(&self) -> bool {
        !self.orders.is_empty()
    }

    /// True once the script and the node that it started are gone.
    fn has_broker_ended(&mut self) -> bool {
        let broker = &mut self.fleet.broker;
        let has_script_ended = broker.process.try_wait().unwrap().is_some();
        let group = format!("-{}", broker.process.id());
        let is_anybody_left = || {
            let asked = Command::new("kill")
                .args(["-0", "--", &group])
                .stderr(Stdio::null())
                .status();
            asked.unwrap().success()
        };
        has_script_ended && !is_anybody_left()
    }

    pub fn look_at_servers(&mut self, now: Instant) {
        match self.broker {
            Health::Stopping(until, away) => {
                if self.has_broker_ended() {
                    self.broker = Health::Down;
                    self.later(away, Remedy::StartBroker);
                } else if now > until {
                    self.fleet.broker.kill();
                }
            }
            Health::Starting => {
                if self.has_broker_ended() {
                    self.broker = Health::Down;
                    self.later(START_AGAIN, Remedy::StartBroker);
                } else if is_listening(self.fleet.broker.port) {
                    self.broker = Health::Up;
                }
            }
            Health::Alarmed => self.look_at_orders(),
            _ => {}
        }
        match self.database {
            Health::Stopping(until, away) => {
                if self.fleet.database.has_ended() {
                    self.database = Health::Down;
                    self.later(away, Remedy::StartDatabase);
                } else if now > until {
                    self.fleet.database.kill();
                }
            }
            Health::Starting => {
                // It may have found a predecessor's process still there.
                if self.fleet.database.has_ended() {
                    self.database = Health::Down;
                    self.later(START_AGAIN, Remedy::StartDatabase);
                } else if is_listening(self.fleet.database.port) {
                    self.database = Health::Up;
                }
            }
            _ => {}
        }
    }

    /// The alarm is over once the second order has been carried out.
    fn look_at_orders(&mut self) {
        let is_over = !self
            .remedies
            .iter()
            .any(|(_, due)| *due == Remedy::EndAlarm);
        for (watermark, mut order) in std::mem::take(&mut self.orders) {
            match order.try_wait().unwrap() {
                None => self.orders.push((watermark, order)),
                Some(status) if status.success() => {}
                // A node listens a moment before it takes orders.
                Some(_) => self.set_watermark(watermark),
            }
        }
        if is_over && self.orders.is_empty() {
            self.broker = Health::Up;
        }
    }
}
