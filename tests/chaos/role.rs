//! The fleet's processes, and a supervisor's work on them.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// A role says that it runs before it has subscribed; until then it may end when a server is away.
const BEGINNING: Duration = Duration::from_secs(20);

use crate::support::binary::promptyard;

/// One place of the fleet, with the process that fills it at the moment.
pub struct Role {
    pub name: &'static str,
    arguments: Vec<String>,
    folder: PathBuf,
    starts: usize,
    started_at: Instant,
    process: Option<Child>,
    pub is_frozen: bool,
}

impl Role {
    pub fn new(name: &'static str, arguments: Vec<String>, folder: PathBuf) -> Self {
        Self {
            name,
            arguments,
            folder,
            starts: 0,
            started_at: Instant::now(),
            process: None,
            is_frozen: false,
        }
    }

    pub fn start(&mut self) {
        self.starts += 1;
        self.started_at = Instant::now();
        let log = File::create(self.log()).unwrap();
        let started = promptyard()
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.process = Some(started.unwrap());
        self.is_frozen = false;
    }

    /// What the present process logs to, or the last one did.
    pub fn log(&self) -> PathBuf {
        self.folder
            .join(format!("{}-{:03}.log", self.name, self.starts))
    }

    pub fn said(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    pub fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// True once the process has connected and begun its work.
    pub fn has_begun(&self) -> bool {
        self.said().contains(" running ")
    }

    /// True when the last process ended since it could not reach a server while it began.
    pub fn began_in_vain(&self) -> bool {
        let said = self.said();
        let last = said.lines().last().unwrap_or_default();
        let is_young = self.started_at.elapsed() < BEGINNING;
        !self.has_begun() || (is_young && last.starts_with("error: cannot reach the"))
    }

    pub fn signal(&self, name: &str) {
        let Some(process) = &self.process else { return };
        let id = process.id().to_string();
        let _ = Command::new("kill").args(["-s", name, &id]).status();
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
        self.is_frozen = false;
    }

    /// The status of a process that has ended by itself, which then is none any more.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.process.as_mut()?.try_wait().unwrap()?;
        self.process = None;
        Some(status)
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> Option<u64> {
        let id = self.process.as_ref()?.id();
        let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib << 10)
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        self.kill();
    }
}
