//! Killed, interrupted, run again: every line is answered once and every attempt accounted for.

use std::thread;

use serde_json::json;

use crate::support::{
    poll::until_blocking,
    workdir::{Workdir, text},
};

const LINES: usize = 80;
/// Two places for each tier, so that the run takes about a second and a half.
const SLOW: [&str; 8] = [
    "--small",
    "scripted:latency_ms=60,jitter_ms=20",
    "--large",
    "scripted:model=big,latency_ms=60,jitter_ms=20",
    "--set",
    "small.batch_max=4",
    "--set",
    "large.batch_max=4",
];

fn prompts(dir: &Workdir) {
    let lines: Vec<_> = (0..LINES)
        .map(|at| {
            let model = ["auto", "small", "large"][at % 3];
            let prompt = format!("question {at}");
            json!({"custom_id": format!("q{at}"), "body": {"prompt": prompt, "model": model}})
                .to_string()
        })
        .collect();
    dir.write("prompts", lines.join("\n"));
}

fn slow<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [
        &["run", "prompts", "--out", "answers.jsonl"],
        &SLOW[..],
        more,
    ]
    .concat()
}

/// What must hold once all is over, however often it was interrupted.
fn check_ledger(dir: &Workdir) {
    let answers = dir.answers();
    assert_eq!(answers.len(), LINES);
    for line in answers.values() {
        assert!(!text(line).is_empty());
    }
    let once = dir.number(
        "select count(*) from (select custom_id from jobs where state = 'succeeded' group by custom_id having count(*) = 1)",
    );
    assert_eq!(once, LINES as i64, "each line has one job, which succeeded");
    assert_eq!(dir.number("select count(*) from jobs"), LINES as i64);
    assert_eq!(dir.number("select count(*) from answers"), LINES as i64);
    let succeeded = dir.number(
        "select count(*) from (select job_id from attempts where outcome = 'succeeded' group by job_id having count(*) = 1)",
    );
    assert_eq!(
        succeeded, LINES as i64,
        "each job has one attempt that succeeded"
    );
    let rest = dir.column("select distinct outcome from attempts where outcome <> 'succeeded'");
    assert!(
        rest.iter()
            .all(|outcome| outcome == "lost" || outcome == "returned"),
        "{rest:?}"
    );
    assert_eq!(
        dir.number("select count(*) from queue_messages"),
        0,
        "no message is left over"
    );
}

#[test]
fn a_killed_run_resumes() {
    let moments: [(i64, &'static str); 6] = [
        // Before the router has seen any: the second run publishes all of them again.
        (1, "select count(*) from queue_messages"),
        (1, "select count(*) from jobs"),
        (1, "select count(*) from attempts"),
        (10, "select count(*) from jobs where state = 'succeeded'"),
        (40, "select count(*) from jobs where state = 'succeeded'"),
        (70, "select count(*) from jobs where state = 'succeeded'"),
    ];
    thread::scope(|scope| {
        for (least, statement) in moments {
            scope.spawn(move || {
                let dir = Workdir::new();
                prompts(&dir);
                let run = dir.start(&slow(&[]));
                dir.wait_for(least, statement);
                run.kill();
                let before = dir.number("select count(*) from jobs where state = 'succeeded'");
                let done = dir.run(&slow(&["--json"])).exits(0);
                let summary = done.json();
                assert_eq!(summary["answered"], LINES, "{done}");
                assert!(
                    summary["already_answered"].as_i64().unwrap() >= before,
                    "answers were lost: {before} were there, {done}"
                );
                check_ledger(&dir);
            });
        }
    });
}

#[test]
fn a_run_killed_repeatedly_still_completes() {
    let dir = Workdir::new();
    prompts(&dir);
    for least in [5, 15, 30] {
        let run = dir.start(&slow(&[]));
        until_blocking("some more answers", || answered(&dir) >= least);
        run.kill();
    }
    dir.run(&slow(&[])).exits(0);
    check_ledger(&dir);
    assert!(dir.number("select count(*) from attempts where outcome = 'lost'") > 0);
}

/// Answers in the database; none before it has its tables.
fn answered(dir: &Workdir) -> i64 {
    let has_tables = dir.path("promptyard.db").exists()
        && dir.number("select count(*) from sqlite_master where name = 'jobs'") == 1;
    match has_tables {
        true => dir.number("select count(*) from jobs where state = 'succeeded'"),
        false => 0,
    }
}

#[test]
fn an_interrupted_run_prints_how_to_resume() {
    let dir = Workdir::new();
    prompts(&dir);
    let run = dir.start(&slow(&[]));
    dir.wait_for(10, "select count(*) from jobs where state = 'succeeded'");
    run.signal("INT");
    let done = run
        .wait()
        .exits(130)
        .complains("run the same command again to resume");
    assert_eq!(
        dir.number("select count(*) from attempts where outcome = 'running'"),
        0,
        "running jobs were finished or put back: {done}"
    );
    let second = dir.run(&slow(&["--json"])).exits(0).json();
    assert!(
        second["already_answered"].as_u64().unwrap() >= 10,
        "{second}"
    );
    check_ledger(&dir);
    assert_eq!(
        dir.number("select count(*) from attempts where outcome = 'lost'"),
        0,
        "nothing was lost by a stop that was asked for"
    );
}
