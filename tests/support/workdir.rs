//! A folder of its own for each test, and processes that do not outlive it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use serde_json::Value;
use sqlx::{ConnectOptions, Row, sqlite::SqliteConnectOptions};
use tempfile::TempDir;

use crate::support::{
    binary::{self, promptyard},
    poll::{PATIENCE, poll_blocking, until_blocking},
};

/// Longest that a command may take to refuse what it cannot do.
pub const PROMPT: Duration = Duration::from_secs(15);
/// Engines that answer almost at once.
pub const FAST: [&str; 4] = [
    "--small",
    "scripted:latency_ms=2",
    "--large",
    "scripted:model=big,latency_ms=2",
];

/// A temporary folder in which `promptyard` runs; its database is `promptyard.db` there.
pub struct Workdir {
    folder: TempDir,
    started: AtomicUsize,
}

impl Workdir {
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            started: AtomicUsize::new(0),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// The command, without settings of the environment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = promptyard();
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("TERM", "dumb")
            .env_remove("RUST_BACKTRACE")
            .env_remove("RUST_LOG");
        command
    }

    /// Starts a command whose output goes to files, and which dies with its handle.
    pub fn start(&self, arguments: &[&str]) -> Process {
        self.start_with(arguments, Stdio::null())
    }

    pub fn start_with(&self, arguments: &[&str], stdin: Stdio) -> Process {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let out = self.path(&format!(".{number}.stdout"));
        let err = self.path(&format!(".{number}.stderr"));
        let child = self
            .command(arguments)
            .stdin(stdin)
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&err).unwrap())
            .spawn()
            .unwrap();
        Process {
            child,
            name: arguments.join(" "),
            begun: Instant::now(),
            out,
            err,
        }
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Done {
        self.start(arguments).wait()
    }

    /// Runs `promptyard run FILE` with fast engines and `--out answers.jsonl`.
    pub fn answer(&self, file: &str, more: &[&str]) -> Done {
        let arguments = [&["run", file, "--out", "answers.jsonl"], &FAST[..], more].concat();
        self.run(&arguments)
    }

    /// The answers that were written with `--out answers.jsonl`, by custom_id.
    pub fn answers(&self) -> BTreeMap<String, Value> {
        by_name(&self.read("answers.jsonl"))
    }

    /// The first column of every row, as text.
    pub fn column(&self, statement: &'static str) -> Vec<String> {
        query(&self.path("promptyard.db"), statement)
    }

    /// Changes the database behind the fleet's back.
    pub fn execute(&self, statements: &'static str) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let database = self.path("promptyard.db");
        runtime.block_on(async {
            let options = SqliteConnectOptions::new()
                .filename(database)
                .busy_timeout(PATIENCE);
            let mut connection = options.connect().await.unwrap();
            sqlx::raw_sql(statements)
                .execute(&mut connection)
                .await
                .unwrap();
        });
    }

    /// A single number.
    pub fn number(&self, statement: &'static str) -> i64 {
        let column = self.column(statement);
        column
            .first()
            .unwrap_or_else(|| panic!("no row: {statement}"))
            .parse()
            .unwrap()
    }

    /// Waits until a statement gives at least a number; a database that is not there yet gives none.
    pub fn wait_for(&self, least: i64, statement: &'static str) {
        let database = self.path("promptyard.db");
        until_blocking(statement, || {
            database.exists()
                && try_query(&database, statement)
                    .ok()
                    .and_then(|column| column.first()?.parse().ok())
                    .is_some_and(|number: i64| number >= least)
        });
    }
}

/// Batch output lines by their custom_id; each stands there once.
pub fn by_name(lines: &str) -> BTreeMap<String, Value> {
    let mut answers = BTreeMap::new();
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        let name = line["custom_id"]
            .as_str()
            .unwrap_or_else(|| panic!("no name: {line}"));
        let earlier = answers.insert(name.to_owned(), line.clone());
        assert!(earlier.is_none(), "{name} stands there twice");
    }
    answers
}

/// The text of an answer.
pub fn text(line: &Value) -> &str {
    line["response"]["body"]["choices"][0]["message"]["content"]
        .as_str()
        .unwrap_or_else(|| panic!("no answer: {line}"))
}

/// What promptyard says of the answer beside OpenAI's fields.
pub fn extension(line: &Value) -> &Value {
    &line["response"]["body"]["promptyard"]
}

fn query(database: &Path, statement: &'static str) -> Vec<String> {
    try_query(database, statement).unwrap_or_else(|error| panic!("{statement}: {error}"))
}

fn try_query(database: &Path, statement: &'static str) -> Result<Vec<String>, sqlx::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let options = SqliteConnectOptions::new()
            .filename(database)
            .busy_timeout(PATIENCE);
        let mut connection = options.connect().await?;
        let rows = sqlx::query(statement).fetch_all(&mut connection).await?;
        rows.iter()
            .map(|row| {
                row.try_get::<String, _>(0)
                    .or_else(|_| row.try_get::<i64, _>(0).map(|number| number.to_string()))
            })
            .collect()
    })
}

/// A process that runs; it is killed when its handle goes.
pub struct Process {
    child: Child,
    name: String,
    begun: Instant,
    out: PathBuf,
    err: PathBuf,
}

impl Process {
    /// Sends a signal, such as `INT`.
    pub fn signal(&self, signal: &str) {
        binary::signal(signal, self.child.id());
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it with SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn stdout(&self) -> String {
        fs::read_to_string(&self.out).unwrap()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.err).unwrap()).into_owned()
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end; a panic in it fails the test.
    pub fn wait(mut self) -> Done {
        let status = poll_blocking(PATIENCE, || self.child.try_wait().unwrap());
        let status = status.unwrap_or_else(|| {
            panic!(
                "promptyard {} does not end; it said:\n{}",
                self.name,
                self.stderr()
            )
        });
        let done = Done {
            status,
            name: self.name.clone(),
            stdout: self.stdout(),
            stderr: self.stderr(),
            took: self.begun.elapsed(),
        };
        for word in ["panicked", "RUST_BACKTRACE", "stack backtrace"] {
            assert!(!done.stderr.contains(word), "{done}");
        }
        done
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended already in most tests.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that has ended.
pub struct Done {
    status: ExitStatus,
    name: String,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Done {
    /// Asserts the exit code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self}");
        self
    }

    /// Asserts that standard error holds a text.
    #[track_caller]
    pub fn complains(self, needle: &str) -> Self {
        assert!(
            self.stderr.contains(needle),
            "expected {needle:?} in the output of {self}"
        );
        self
    }

    /// Standard output as one JSON value.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in {self}"))
    }
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cut = |text: &str| text.chars().take(4000).collect::<String>();
        write!(
            f,
            "promptyard {} ({}, {:?})\n--- stdout\n{}\n--- stderr\n{}",
            self.name,
            self.status,
            self.took,
            cut(&self.stdout),
            cut(&self.stderr)
        )
    }
}
