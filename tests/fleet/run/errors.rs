//! What cannot work is refused at once: one clear line, the right exit code, no trace of a crash.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader},
    process::Stdio,
};

use crate::support::workdir::{FAST, PROMPT, Workdir};

/// Every case of a wrong environment or usage: arguments, exit code, what is said.
#[test]
fn usage_errors_print_one_line() {
    let dir = Workdir::new();
    dir.write("prompts", "hello\n");
    dir.write(
        "no-database",
        "this is no database, however long one looks at it".repeat(100),
    );
    fs::create_dir(dir.path("folder")).unwrap();
    fs::create_dir(dir.path("empty-model")).unwrap();
    fs::create_dir(dir.path("broken-model")).unwrap();
    dir.write("broken-model/config.json", "{");
    dir.write(
        "promptyard.toml",
        "[router]\nprefetch = \"many\"\nprefech = 1\n[rooter]\n",
    );
    dir.write("bad.toml", "[router\n");
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["no-such-file"], 1, &["no-such-file", "No such file"]),
        (&["folder"], 1, &["folder", "directory"]),
        (
            &["prompts", "--ledger", "folder"],
            1,
            &["folder", "unable to open"],
        ),
        (
            &["prompts", "--ledger", "prompts/ledger.db"],
            1,
            &["prompts/ledger.db"],
        ),
        (
            &["prompts", "--ledger", "no-database"],
            1,
            &["no-database", "not a database"],
        ),
        (
            &["prompts", "--out", "no-folder/answers"],
            1,
            &["no-folder/answers"],
        ),
        (&["prompts", "--out", "folder"], 1, &["folder", "directory"]),
        (&["prompts", "--out", "prompts"], 2, &["--out", "prompts"]),
        (
            &["prompts", "--out", "promptyard.db"],
            2,
            &["--out", "job database"],
        ),
        (
            &["prompts", "--small", "no/such/model"],
            1,
            &["small", "no/such/model"],
        ),
        (
            &["prompts", "--large", "empty-model"],
            1,
            &["large", "config.json is missing"],
        ),
        (
            &["prompts", "--small", "broken-model"],
            1,
            &["small", "config.json"],
        ),
        (
            &["prompts", "--small", "scripted:latency=3"],
            1,
            &["unknown setting \"latency\"", "latency_ms"],
        ),
        (
            &["prompts", "--broker", "amqp://127.0.0.1:1"],
            1,
            &["amqp://127.0.0.1:1", "refused"],
        ),
        (
            &["prompts", "--broker", "http://127.0.0.1"],
            2,
            &["--broker", "amqp://"],
        ),
        (
            &["prompts", "--store", "postgres://me:hunter2@127.0.0.1:1/x"],
            1,
            &["postgres://me:***@127.0.0.1:1/x", "refused"],
        ),
        (
            &["prompts", "--store", "mysql://x"],
            2,
            &["--store", "postgres://"],
        ),
        (
            &["prompts", "--store", "sqlite:a.db", "--ledger", "b.db"],
            2,
            &["cannot be used with"],
        ),
        (
            &["prompts", "--set", "router.threshold"],
            2,
            &["section.field=value"],
        ),
        (
            &["prompts", "--set", "threshold=1"],
            2,
            &["section.field=value"],
        ),
        (
            &["prompts", "--set", "router.treshold=1"],
            2,
            &["router.treshold", "known are"],
        ),
        (
            &[
                "prompts",
                "--set",
                "router.threshold=7",
                "--set",
                "worker.attempts_max=-1",
            ],
            2,
            &["2 error", "0 to 1", "1 to 100"],
        ),
        (
            &["prompts", "--config", "no.toml"],
            2,
            &["no.toml", "No such file"],
        ),
        (
            &["prompts", "--config", "promptyard.toml"],
            2,
            &[
                "promptyard.toml:2",
                "promptyard.toml:3",
                "promptyard.toml:4",
                "3 error",
            ],
        ),
        (&["prompts", "--config", "bad.toml"], 2, &["bad.toml:1"]),
        (&["prompts", "--log", "a=b=c"], 2, &["not a filter"]),
        (
            &["prompts", "--metrics-listen", "nowhere"],
            2,
            &["HOST:PORT"],
        ),
        (
            &["prompts", "--metrics-listen", "192.0.2.1:1"],
            1,
            &["cannot listen on 192.0.2.1:1"],
        ),
        (&["prompts", "--no-such-flag"], 2, &["--no-such-flag"]),
        (&[], 2, &["<FILE>"]),
    ];
    for (arguments, code, needles) in cases {
        let models: &[&str] = if arguments.iter().any(|a| *a == "--small" || *a == "--large") {
            &[]
        } else {
            &FAST
        };
        let mut done = dir
            .run(&[&["run"], *arguments, models].concat())
            .exits(*code);
        for needle in *needles {
            done = done.complains(needle);
        }
        assert!(done.took < PROMPT, "{done}");
        assert_eq!(done.stdout, "", "{done}");
        assert!(!done.stderr.contains("hunter2"), "{done}");
        let errors = done
            .stderr
            .lines()
            .filter(|line| line.contains("error:") || line.contains("ERROR"))
            .count();
        assert_eq!(errors, 1, "said once: {done}");
    }
    assert_eq!(dir.read("prompts"), "hello\n", "the input is still there");
}

#[test]
fn usage_errors_of_other_commands_print_one_line() {
    let dir = Workdir::new();
    dir.write("prompts", "hello\n");
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["results"], 1, &["no job database", "promptyard.db"]),
        (&["status"], 1, &["no job database", "promptyard.db"]),
        (&["dead", "list"], 1, &["no job database", "promptyard.db"]),
        (&["submit", "nothing"], 1, &["nothing", "No such file"]),
        (&["work", "--tier", "huge"], 2, &["small", "large", "huge"]),
        (&["results", "--id", "seven"], 2, &["seven"]),
        (
            &["results", "--since", "yesterday"],
            2,
            &["yesterday", "15m"],
        ),
        (&["up", "--listen", "8080"], 2, &["--listen", "HOST:PORT"]),
        (
            &["submit", "prompts", "--broker", "amqp://127.0.0.1:1"],
            1,
            &["amqp://127.0.0.1:1"],
        ),
        (
            &["route", "--store", "postgres://127.0.0.1:1/x"],
            1,
            &["postgres://127.0.0.1:1/x"],
        ),
        (
            &["config", "check", "--set", "a.b=c"],
            2,
            &["unknown section"],
        ),
        (&["router", "score", "--input", "nothing"], 1, &["nothing"]),
        (&["frobnicate"], 2, &["frobnicate"]),
    ];
    for (arguments, code, needles) in cases {
        let mut done = dir.run(arguments).exits(*code);
        for needle in *needles {
            done = done.complains(needle);
        }
        assert!(done.took < PROMPT, "{done}");
    }
    assert!(
        !dir.path("promptyard.db").exists(),
        "reading creates no database"
    );
}

#[test]
fn a_failed_start_leaves_earlier_answers_alone() {
    let dir = Workdir::new();
    dir.write("prompts", "hello\n");
    dir.answer("prompts", &[]).exits(0);
    let answers = dir.read("answers.jsonl");
    dir.write("broken", "no database".repeat(1000));
    dir.answer("prompts", &["--ledger", "broken"]).exits(1);
    assert_eq!(dir.read("answers.jsonl"), answers);
}

#[test]
fn a_full_disk_is_reported_and_loses_no_answer() {
    let dir = Workdir::new();
    let lines: String = (0..100).map(|at| format!("question {at}\n")).collect();
    dir.write("prompts", lines);
    let arguments = [&["run", "prompts"], &FAST[..]].concat();
    let to_file = [&arguments[..], &["--out", "/dev/full"]].concat();
    dir.run(&to_file).exits(1).complains("No space left");
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let child = dir
        .command(&arguments)
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(child.status.code(), Some(1));
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(
        said.contains("cannot write the answers") && said.contains("No space left"),
        "{said}"
    );
    let done = dir.answer("prompts", &[]).exits(0);
    assert_eq!(dir.answers().len(), 100, "{done}");
    assert_eq!(
        dir.number("select count(*) from attempts where outcome = 'succeeded'"),
        100
    );
}

#[test]
fn a_closed_pipe_is_no_error() {
    let dir = Workdir::new();
    let lines: String = (0..500).map(|at| format!("question {at}\n")).collect();
    dir.write("prompts", lines);
    let mut child = dir
        .command(&[&["run", "prompts"], &FAST[..]].concat())
        .stdout(Stdio::piped())
        .stderr(File::create(dir.path("stderr")).unwrap())
        .spawn()
        .unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    assert!(first.starts_with('{'), "{first}");
    drop(reader);
    let status = child.wait().unwrap();
    assert_eq!(dir.read("stderr"), "", "silent, as `head` makes others");
    assert_eq!(status.code(), Some(0));
    let done = dir.answer("prompts", &[]).exits(0);
    assert_eq!(dir.answers().len(), 500, "{done}");
}

#[test]
fn a_second_run_on_the_same_database_is_refused() {
    let dir = Workdir::new();
    let lines: String = (0..40).map(|at| format!("question {at}\n")).collect();
    dir.write("prompts", lines);
    let slow = "scripted:latency_ms=150";
    let first = dir.start(&[
        "run",
        "prompts",
        "--out",
        "answers.jsonl",
        "--small",
        slow,
        "--large",
        slow,
    ]);
    dir.wait_for(1, "select count(*) from attempts");
    let second = dir
        .run(&[&["run", "prompts"], &FAST[..]].concat())
        .exits(1)
        .complains("in use by another promptyard");
    assert!(second.took < PROMPT, "{second}");
    let lines: Vec<_> = second.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "said once: {second}");
    first.wait().exits(0);
    assert_eq!(dir.answers().len(), 40);
    assert_eq!(dir.number("select count(*) from jobs"), 40);
}
