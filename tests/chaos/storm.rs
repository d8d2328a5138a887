//! Faults and their mending, on time, while the traffic continues.

use std::{collections::BTreeMap, process::Child, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    chaos_fleet::ChaosFleet,
    schedule::{Fault, Kind},
    servers::{Health, WATERMARKS},
    support::{
        proxy::{Mode, Proxy},
        rabbit_server::START_PATIENCE,
    },
};

/// How often everything is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long a supervisor waits before it starts a role again that could not begin.
pub const START_AGAIN: Duration = Duration::from_millis(500);
/// Messages of each producer that are published again at once.
const DUPLICATES: usize = 20;

/// A server that roles reach through links.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Side {
    Broker,
    Database,
}

/// What mends a fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Remedy {
    StartRole(usize),
    ThawRole(usize),
    OpenLink(Side, usize),
    StartBroker,
    StartDatabase,
    EndAlarm,
}

/// Applies faults to a fleet and undoes them.
pub struct Storm {
    pub fleet: ChaosFleet,
    /// Draws the faults and nothing else, so that a seed always gives the same ones.
    schedule: StdRng,
    random: StdRng,
    pub broker: Health,
    pub database: Health,
    pub remedies: Vec<(Instant, Remedy)>,
    /// Orders to the broker that are being carried out, and the watermark that each gives.
    pub orders: Vec<(&'static str, Child)>,
    begun: Instant,
    /// How often each kind struck.
    pub counts: BTreeMap<Kind, usize>,
    /// Starts that failed since a server was away.
    pub vain_starts: BTreeMap<String, usize>,
    /// What should not have happened.
    pub findings: Vec<String>,
}

impl Storm {
    pub fn new(fleet: ChaosFleet, seed: u64) -> Self {
        Self {
            fleet,
            schedule: StdRng::seed_from_u64(seed),
            random: StdRng::seed_from_u64(seed.wrapping_add(2)),
            broker: Health::Up,
            database: Health::Up,
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
            self.fleet.traffic();
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
                && (self.broker, self.database) == (Health::Up, Health::Up)
                && self.fleet.roles.iter().all(|r| r.is_up() && r.has_begun());
            if is_whole {
                return;
            }
            assert!(now < until, "the fleet does not come back");
            sleep_until(now + LOOK).await;
        }
    }

    /// The first role from `whom` on for which something holds.
    fn role(&self, whom: usize, is_fit: impl Fn(usize) -> bool) -> Option<usize> {
        let count = self.fleet.roles.len();
        (0..count)
            .map(|step| (whom % count + step) % count)
            .find(|at| is_fit(*at))
    }

    fn links(&self, side: Side) -> &[Proxy] {
        match side {
            Side::Broker => &self.fleet.broker_links,
            Side::Database => &self.fleet.database_links,
        }
    }

    pub fn later(&mut self, lasts: Duration, remedy: Remedy) {
        self.remedies.push((Instant::now() + lasts, remedy));
    }

    /// Applies a fault; tells whom it struck, if there was anybody.
    fn apply(&mut self, fault: Fault) -> Option<String> {
        let (whom, lasts) = (fault.whom, fault.lasts);
        let for_s = format!("for {:.1} s", lasts.as_secs_f64());
        match fault.kind {
            Kind::RoleKilled => {
                let at = self.role(whom, |at| self.fleet.roles[at].is_up())?;
                let role = &mut self.fleet.roles[at];
                role.kill();
                let name = role.name;
                self.remedies
                    .retain(|(_, due)| *due != Remedy::ThawRole(at));
                self.later(lasts, Remedy::StartRole(at));
                Some(format!("{name} {for_s}"))
            }
            Kind::RoleFrozen => {
                let roles = &self.fleet.roles;
                let at = self.role(whom, |at| roles[at].is_up() && !roles[at].is_frozen)?;
                let role = &mut self.fleet.roles[at];
                role.signal("STOP");
                role.is_frozen = true;
                let name = role.name;
                self.later(lasts, Remedy::ThawRole(at));
                Some(format!("{name} {for_s}"))
            }
            Kind::BrokerCut => self.cut_link(Side::Broker, whom),
            Kind::DatabaseCut => self.cut_link(Side::Database, whom),
            Kind::BrokerDelayed => self.shut_link(Side::Broker, Mode::Silent, fault),
            Kind::DatabaseDelayed => self.shut_link(Side::Database, Mode::Silent, fault),
            Kind::BrokerParted => self.shut_link(Side::Broker, Mode::Shut, fault),
            Kind::DatabaseParted => self.shut_link(Side::Database, Mode::Shut, fault),
            Kind::BrokerRestarted | Kind::BrokerKilled | Kind::BrokerAlarmed => {
                (self.broker == Health::Up).then(|| self.hurt_broker(fault))?;
                Some(format!("the broker {for_s}"))
            }
            Kind::DatabaseRestarted | Kind::DatabaseAborted | Kind::DatabaseKilled => {
                (self.database == Health::Up).then(|| self.hurt_database(fault))?;
                Some(format!("the database {for_s}"))
            }
            Kind::Duplicates => self.repeat(),
            Kind::Poison => {
                let name = self.fleet.book.lock().unwrap().poison(&mut self.random);
                self.fleet.producers[whom % 2].give(name.clone());
                Some(format!("{}/{}", name.0, name.1))
            }
        }
    }

    /// A link that is whole, and who speaks through it.
    fn link(&self, side: Side, whom: usize) -> Option<(usize, &'static str)> {
        let at = whom % self.links(side).len();
        let is_whole = |(_, due): &(Instant, Remedy)| *due != Remedy::OpenLink(side, at);
        let role = self.fleet.roles.get(at);
        let name = role.map_or("a producer", |role| role.name);
        self.remedies.iter().all(is_whole).then_some((at, name))
    }

    fn cut_link(&self, side: Side, whom: usize) -> Option<String> {
        let (at, name) = self.link(side, whom)?;
        self.links(side)[at].cut();
        Some(name.to_owned())
    }

    fn shut_link(&mut self, side: Side, mode: Mode, fault: Fault) -> Option<String> {
        let (at, name) = self.link(side, fault.whom)?;
        self.links(side)[at].set(mode);
        self.later(fault.lasts, Remedy::OpenLink(side, at));
        Some(format!("{name} for {:.1} s", fault.lasts.as_secs_f64()))
    }

    /// Publishes some messages again that were confirmed before.
    fn repeat(&mut self) -> Option<String> {
        let mut names = Vec::new();
        {
            let book = self.fleet.book.lock().unwrap();
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
            self.fleet.producers[at].give(name);
        }
        Some(format!("{count} of them"))
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
            Remedy::StartRole(at) => self.fleet.roles[at].start(),
            Remedy::ThawRole(at) => {
                self.fleet.roles[at].signal("CONT");
                self.fleet.roles[at].is_frozen = false;
            }
            Remedy::OpenLink(side, at) => self.links(side)[at].set(Mode::Open),
            Remedy::StartBroker => {
                self.fleet.broker.restart();
                self.broker = Health::Starting;
            }
            Remedy::StartDatabase => {
                self.fleet.database.restart();
                self.database = Health::Starting;
            }
            // The second order must not overtake the first.
            Remedy::EndAlarm if self.is_ordered() => self.later(START_AGAIN, Remedy::EndAlarm),
            Remedy::EndAlarm => self.set_watermark(WATERMARKS[1]),
        }
    }

    /// Starts roles again that have ended by themselves. Only one that had not begun may.
    fn look_at_roles(&mut self) {
        for at in 0..self.fleet.roles.len() {
            let role = &mut self.fleet.roles[at];
            let Some(status) = role.ended() else { continue };
            if !role.began_in_vain() {
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
