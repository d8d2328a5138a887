//! Faults and their mending, on time, while the traffic goes on.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    proxy::Mode,
    rabbit_server::{START_PATIENCE, Server},
    schedule::{Fault, Kind},
    yard::{Yard, is_listening},
};

/// How often everything is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long a server may take to stop in order.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// How long a supervisor waits before it starts a role again that could not begin.
const START_AGAIN: Duration = Duration::from_millis(500);
/// Messages of each producer that are published again at once.
const DUPLICATES: usize = 20;
/// Below what any node needs, and the standard.
const WATERMARKS: [&str; 2] = ["0.0001", "0.4"];

/// How a server is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Health {
    Up,
    /// Told to stop, and when it is killed if it does not; how long it then stays away.
    Stopping(Instant, Duration),
    Down,
    Starting,
    Alarmed,
}

/// What mends a fault.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Remedy {
    StartRole(usize),
    ThawRole(usize),
    OpenBrokerLink(usize),
    OpenLedgerLink(usize),
    StartBroker,
    StartLedger,
    EndAlarm,
}

/// Hurts a yard and mends it.
pub struct Storm {
    pub yard: Yard,
    /// Draws the faults and nothing else, so that a seed always gives the same ones.
    schedule: StdRng,
    random: StdRng,
    broker: Health,
    ledger: Health,
    remedies: Vec<(Instant, Remedy)>,
    orders: Vec<Child>,
    begun: Instant,
    /// How often each kind struck.
    pub counts: BTreeMap<Kind, usize>,
    /// Starts that failed since a server was away.
    pub vain_starts: BTreeMap<String, usize>,
    /// What should not have happened.
    pub findings: Vec<String>,
}

impl Storm {
    pub fn new(yard: Yard, seed: u64) -> Self {
        Self {
            yard,
            schedule: StdRng::seed_from_u64(seed),
            random: StdRng::seed_from_u64(seed.wrapping_add(2)),
            broker: Health::Up,
            ledger: Health::Up,
            remedies: Vec::new(),
            orders: Vec::new(),
            begun: Instant::now(),
            counts: BTreeMap::new(),
            vain_starts: BTreeMap::new(),
            findings: Vec::new(),
        }
    }

    /// Lets the traffic flow for a while.
    pub async fn calm(&mut self, span: Duration) {
        let end = Instant::now() + span;
        while Instant::now() < end {
            sleep(LOOK).await;
            self.yard.traffic();
            self.look();
        }
    }

    /// Applies so many faults.
    pub async fn strike(&mut self, faults: usize) {
        let mut struck = 0;
        while struck < faults {
            let fault = Fault::draw(&mut self.schedule);
            // One that finds nobody to strike does not count.
            let Some(whom) = self.apply(fault) else {
                continue;
            };
            struck += 1;
            *self.counts.entry(fault.kind).or_default() += 1;
            eprintln!(
                "{:8.1} s  {struck:4}  {}: {whom}",
                self.begun.elapsed().as_secs_f64(),
                fault.kind.words(),
            );
            self.calm(fault.pause).await;
        }
    }

    /// Mends everything and waits until all is there again.
    pub async fn mend(&mut self) {
        let until = Instant::now() + START_PATIENCE;
        loop {
            let now = Instant::now();
            self.remedies.iter_mut().for_each(|(at, _)| *at = now);
            self.look();
            let is_whole = self.remedies.is_empty()
                && (self.broker, self.ledger) == (Health::Up, Health::Up)
                && self.yard.roles.iter().all(|r| r.is_up() && r.has_begun());
            if is_whole {
                return;
            }
            assert!(now < until, "the fleet does not come back");
            sleep_until(now + LOOK).await;
        }
    }

    /// The first role from `whom` on for which something holds.
    fn role(&self, whom: usize, is_fit: impl Fn(usize) -> bool) -> Option<usize> {
        let count = self.yard.roles.len();
        (0..count)
            .map(|step| (whom % count + step) % count)
            .find(|at| is_fit(*at))
    }

    /// A link that nothing is to be done to already.
    fn link(&self, whom: usize, count: usize, remedy: fn(usize) -> Remedy) -> Option<usize> {
        let at = whom % count;
        let is_free = self.remedies.iter().all(|(_, due)| *due != remedy(at));
        is_free.then_some(at)
    }

    fn later(&mut self, lasts: Duration, remedy: Remedy) {
        self.remedies.push((Instant::now() + lasts, remedy));
    }

    /// Applies a fault; tells whom it struck, if there was anybody.
    fn apply(&mut self, fault: Fault) -> Option<String> {
        let (whom, lasts) = (fault.whom, fault.lasts);
        let for_s = format!("for {:.1} s", lasts.as_secs_f64());
        match fault.kind {
            Kind::RoleKilled => {
                let at = self.role(whom, |at| self.yard.roles[at].is_up())?;
                let role = &mut self.yard.roles[at];
                role.kill();
                let name = role.name;
                self.remedies
                    .retain(|(_, due)| *due != Remedy::ThawRole(at));
                self.later(lasts, Remedy::StartRole(at));
                Some(format!("{name} {for_s}"))
            }
            Kind::RoleFrozen => {
                let roles = &self.yard.roles;
                let at = self.role(whom, |at| roles[at].is_up() && !roles[at].is_frozen)?;
                let role = &mut self.yard.roles[at];
                role.signal("STOP");
                role.is_frozen = true;
                let name = role.name;
                self.later(lasts, Remedy::ThawRole(at));
                Some(format!("{name} {for_s}"))
            }
            Kind::BrokerCut | Kind::BrokerDelayed | Kind::BrokerParted => {
                let count = self.yard.broker_links.len();
                let at = self.link(whom, count, Remedy::OpenBrokerLink)?;
                let link = &self.yard.broker_links[at];
                match fault.kind {
                    Kind::BrokerCut => link.cut(),
                    Kind::BrokerDelayed => link.set(Mode::Silent),
                    _ => link.set(Mode::Shut),
                }
                let roles = &self.yard.roles;
                let name = roles.get(at).map_or("a producer", |role| role.name);
                if fault.kind == Kind::BrokerCut {
                    return Some(name.to_owned());
                }
                self.later(lasts, Remedy::OpenBrokerLink(at));
                Some(format!("{name} {for_s}"))
            }
            Kind::LedgerCut | Kind::LedgerDelayed | Kind::LedgerParted => {
                let count = self.yard.ledger_links.len();
                let at = self.link(whom, count, Remedy::OpenLedgerLink)?;
                let link = &self.yard.ledger_links[at];
                match fault.kind {
                    Kind::LedgerCut => link.cut(),
                    Kind::LedgerDelayed => link.set(Mode::Silent),
                    _ => link.set(Mode::Shut),
                }
                let name = self.yard.roles[at].name;
                if fault.kind == Kind::LedgerCut {
                    return Some(name.to_owned());
                }
                self.later(lasts, Remedy::OpenLedgerLink(at));
                Some(format!("{name} {for_s}"))
            }
            Kind::BrokerRestarted | Kind::BrokerKilled | Kind::BrokerAlarmed => {
                (self.broker == Health::Up).then(|| self.hurt_broker(fault))?;
                Some(format!("the broker {for_s}"))
            }
            Kind::LedgerRestarted | Kind::LedgerAborted | Kind::LedgerKilled => {
                (self.ledger == Health::Up).then(|| self.hurt_ledger(fault))?;
                Some(format!("the ledger {for_s}"))
            }
            Kind::Duplicates => self.repeat(),
            Kind::Poison => {
                let name = self.yard.book.lock().unwrap().poison(&mut self.random);
                self.yard.producers[whom % 2].give(name.clone());
                Some(format!("{}/{}", name.0, name.1))
            }
        }
    }

    fn hurt_broker(&mut self, fault: Fault) {
        match fault.kind {
            Kind::BrokerRestarted => {
                let group = format!("-{}", self.yard.broker.process.id());
                let _ = Command::new("kill")
                    .args(["-s", "TERM", "--", &group])
                    .status();
                self.broker = Health::Stopping(Instant::now() + STOP_PATIENCE, fault.lasts);
            }
            Kind::BrokerKilled => {
                self.yard.broker.kill();
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

    fn hurt_ledger(&mut self, fault: Fault) {
        let signal = match fault.kind {
            Kind::LedgerRestarted => "INT",
            Kind::LedgerAborted => "QUIT",
            _ => {
                self.yard.ledger.kill();
                self.ledger = Health::Down;
                self.later(fault.lasts, Remedy::StartLedger);
                return;
            }
        };
        self.yard.ledger.signal(signal);
        self.ledger = Health::Stopping(Instant::now() + STOP_PATIENCE, fault.lasts);
    }

    /// Publishes some messages again that were confirmed before.
    fn repeat(&mut self) -> Option<String> {
        let mut names = Vec::new();
        {
            let book = self.yard.book.lock().unwrap();
            // The latest are likely to be under way still.
            let recent: Vec<_> = book
                .asked
                .iter()
                .filter(|(_, asked)| asked.is_confirmed)
                .collect();
            if recent.is_empty() {
                return None;
            }
            for _ in 0..DUPLICATES {
                names.push(recent[self.random.random_range(0..recent.len())].0.clone());
            }
        }
        names.sort();
        names.dedup();
        let count = names.len();
        for name in names {
            // Any producer may repeat what another has published.
            let at = self.random.random_range(0..2);
            self.yard.producers[at].give(name);
        }
        Some(format!("{count} of them"))
    }

    /// Tells the broker how much memory it may use; the order is carried out beside the storm.
    fn set_watermark(&mut self, watermark: &str) {
        let script = "/usr/lib/rabbitmq/bin/rabbitmqctl";
        let program = if Path::new(script).exists() {
            script
        } else {
            "rabbitmqctl"
        };
        let broker = &self.yard.broker;
        let order = Command::new(program)
            .args(["set_vm_memory_high_watermark", watermark])
            .env("HOME", broker.folder.path())
            .env("ERL_EPMD_PORT", broker.epmd_port.to_string())
            .env("RABBITMQ_NODENAME", Server::node(broker.port))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        self.orders.push(order.unwrap());
    }

    /// Applies what is due and sees to what has ended.
    fn look(&mut self) {
        let now = Instant::now();
        let due: Vec<_> = self.remedies.extract_if(.., |(at, _)| *at <= now).collect();
        for (_, remedy) in due {
            self.remedy(remedy);
        }
        self.look_at_servers(now);
        self.look_at_roles();
    }

    fn remedy(&mut self, remedy: Remedy) {
        match remedy {
            Remedy::StartRole(at) => self.yard.roles[at].start(),
            Remedy::ThawRole(at) => {
                self.yard.roles[at].signal("CONT");
                self.yard.roles[at].is_frozen = false;
            }
            Remedy::OpenBrokerLink(at) => self.yard.broker_links[at].set(Mode::Open),
            Remedy::OpenLedgerLink(at) => self.yard.ledger_links[at].set(Mode::Open),
            Remedy::StartBroker => {
                self.yard.broker.restart();
                self.broker = Health::Starting;
            }
            Remedy::StartLedger => {
                self.yard.ledger.restart();
                self.ledger = Health::Starting;
            }
            Remedy::EndAlarm => self.set_watermark(WATERMARKS[1]),
        }
    }

    fn look_at_servers(&mut self, now: Instant) {
        match self.broker {
            Health::Stopping(until, away) => {
                if self.yard.broker.process.try_wait().unwrap().is_some() {
                    self.broker = Health::Down;
                    self.later(away, Remedy::StartBroker);
                } else if now > until {
                    self.yard.broker.kill();
                }
            }
            Health::Starting if is_listening(self.yard.broker.port) => self.broker = Health::Up,
            Health::Alarmed => self.look_at_orders(),
            _ => {}
        }
        match self.ledger {
            Health::Stopping(until, away) => {
                if self.yard.ledger.has_ended() {
                    self.ledger = Health::Down;
                    self.later(away, Remedy::StartLedger);
                } else if now > until {
                    self.yard.ledger.kill();
                }
            }
            Health::Starting => {
                // It may have found a predecessor's process still there.
                if self.yard.ledger.has_ended() {
                    self.ledger = Health::Down;
                    self.later(START_AGAIN, Remedy::StartLedger);
                } else if is_listening(self.yard.ledger.port) {
                    self.ledger = Health::Up;
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
        for order in std::mem::take(&mut self.orders) {
            let mut order = order;
            match order.try_wait().unwrap() {
                None => self.orders.push(order),
                Some(status) if status.success() => {}
                Some(_) => {
                    let said = order.wait_with_output().unwrap().stderr;
                    let said = String::from_utf8_lossy(&said).into_owned();
                    self.findings.push(format!("rabbitmqctl failed: {said}"));
                }
            }
        }
        if is_over && self.orders.is_empty() {
            self.broker = Health::Up;
        }
    }

    /// Starts roles again that have ended by themselves. Only one that had not begun may.
    fn look_at_roles(&mut self) {
        for at in 0..self.yard.roles.len() {
            let role = &mut self.yard.roles[at];
            let Some(status) = role.ended() else { continue };
            if role.has_begun() {
                let said = role.said();
                let end: Vec<_> = said.lines().rev().take(8).collect();
                self.findings.push(format!(
                    "{} ended by itself ({status}): {end:#?}",
                    role.name
                ));
            } else {
                let said = role.said();
                let why = said.lines().last().unwrap_or_default();
                let why: String = why.chars().filter(|c| !c.is_ascii_digit()).collect();
                *self.vain_starts.entry(why).or_default() += 1;
            }
            self.later(START_AGAIN, Remedy::StartRole(at));
        }
    }
}
