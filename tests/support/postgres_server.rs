//! A Postgres server of the tests' own.

use std::{
    fs::File,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::support::servers::lasting_port;

/// A server that runs; it dies with the value.
pub struct Postgres {
    folder: tempfile::TempDir,
    pub port: u16,
    process: Child,
}

/// Debian keeps the programs out of the path; of several versions the newest is taken.
fn program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql");
    let mut found: Vec<_> = versions
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin").join(name))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| name.into())
}

/// Postgres refuses to run as root, so root lends it another user: that user's and group's number.
fn lent_user() -> Option<(u32, u32)> {
    let number = |arguments: &[&str]| -> Option<u32> {
        let told = Command::new("id").args(arguments).output().ok()?;
        String::from_utf8(told.stdout).ok()?.trim().parse().ok()
    };
    if number(&["-u"]) != Some(0) {
        return None;
    }
    let of = |name| Some((number(&["-u", name])?, number(&["-g", name])?));
    of("postgres").or_else(|| of("nobody"))
}

fn command(name: &str, folder: &Path) -> Command {
    let mut command = Command::new(program(name));
    if let Some((user, group)) = lent_user() {
        command.uid(user).gid(group);
    }
    command
        .current_dir(folder)
        .args(["-D", "data"])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

impl Postgres {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        if let Some((user, group)) = lent_user() {
            std::os::unix::fs::chown(folder.path(), Some(user), Some(group)).unwrap();
        }
        let made = command("initdb", folder.path())
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8"])
            .args(["--locale=C", "--no-sync"])
            .output()
            .unwrap_or_else(|error| panic!("this test starts its own Postgres: {error}"));
        let said = String::from_utf8_lossy(&made.stderr).into_owned();
        assert!(made.status.success(), "{said}");
        let port = lasting_port();
        let process = Self::spawn(folder.path(), port);
        Self {
            folder,
            port,
            process,
        }
    }

    fn spawn(folder: &Path, port: u16) -> Child {
        let log = File::options()
            .create(true)
            .append(true)
            .open(folder.join("log"));
        command("postgres", folder)
            .args(["-p", &port.to_string(), "-k", "."])
            .args(["-c", "listen_addresses=127.0.0.1"])
            .args(["-c", "max_connections=200"])
            .stderr(log.unwrap())
            .spawn()
            .unwrap()
    }

    pub fn restart(&mut self) {
        self.process = Self::spawn(self.folder.path(), self.port);
    }

    /// Sends a signal to the server: INT stops it at once and in order, QUIT without a checkpoint.
    pub fn signal(&self, name: &str) {
        let id = self.process.id().to_string();
        let _ = Command::new("kill").args(["-s", name, &id]).status();
    }

    pub fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }

    /// SIGKILL of the server and all its processes, as a power cut would.
    pub fn kill(&mut self) {
        let children = children_of(self.process.id());
        let _ = self.process.kill();
        for child in children {
            let _ = Command::new("kill")
                .args(["-s", "KILL", &child.to_string()])
                .stderr(Stdio::null())
                .status();
        }
        let _ = self.process.wait();
    }

    /// By way of a port, which may be a proxy's.
    pub fn url(port: u16) -> String {
        format!("postgres://postgres@127.0.0.1:{port}/postgres")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The processes that a process has started.
fn children_of(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|id: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let of = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        of.and_then(|of| of.trim().parse().ok()) == Some(parent)
    })
    .collect()
}
