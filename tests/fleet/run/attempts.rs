//! Attempts that fail: escalated, tried again, given up, and what a person does about it.

use serde_json::{Value, json};

use crate::{
    run::roles::{stop, up},
    support::workdir::{Workdir, extension, text},
};

#[test]
fn a_prompt_too_long_for_small_is_answered_by_large() {
    let dir = Workdir::new();
    // Few letters, so that the router's estimate takes it for short enough.
    let long = vec!["w"; 30].join(" ");
    let line =
        |name: &str, body: Value| json!({"custom_id": name, "body": body}).to_string() + "\n";
    let lines = line("auto", json!({"prompt": long}))
        + &line("small", json!({"prompt": long, "model": "small"}))
        + &line(
            "stay",
            json!({"prompt": long, "promptyard": {"escalate": false, "cache": "off"}}),
        )
        + &line("plain", json!({"prompt": vec!["long words"; 15].join(" ")}))
        + &line("short", json!({"prompt": "short"}));
    dir.write("prompts", lines);
    dir.run(&[
        "run",
        "prompts",
        "--out",
        "answers.jsonl",
        "--small",
        "scripted:context=20",
        "--large",
        "scripted:model=big,echo",
        "--set",
        "router.threshold=1",
    ])
    .exits(1);
    let answers = dir.answers();
    assert_eq!(text(&answers["auto"]), long);
    let auto = extension(&answers["auto"]);
    assert_eq!(
        (&auto["tier"], &auto["attempts"]),
        (&json!("large"), &json!(2))
    );
    for name in ["small", "stay"] {
        assert_eq!(
            answers[name]["error"]["code"], "context_length_exceeded",
            "{name}"
        );
        let message = answers[name]["error"]["message"].as_str().unwrap();
        assert!(
            message.contains("30") && message.contains("20"),
            "{message}"
        );
    }
    assert!(!text(&answers["short"]).is_empty());
    let plain = extension(&answers["plain"]);
    assert_eq!(
        (&plain["tier"], &plain["attempts"]),
        (&json!("large"), &json!(1)),
        "what is plainly too long does not try small first"
    );
    let history = dir.column(
        "select a.tier || ' ' || a.outcome from attempts a join jobs j on j.id = a.job_id where j.custom_id = 'auto' order by attempt",
    );
    assert_eq!(history, ["small escalated", "large succeeded"]);
}

/// A prompt that crashes its engine, among some that do not.
fn poisoned(dir: &Workdir) {
    let mut lines = String::new();
    for at in 0..8 {
        let prompt = if at == 3 {
            "a POISON pill".to_owned()
        } else {
            format!("harmless {at}")
        };
        lines += &(json!({"custom_id": format!("q{at}"), "body": {"prompt": prompt}}).to_string()
            + "\n");
    }
    dir.write("prompts", lines);
}

#[test]
fn a_prompt_that_crashes_its_engine_fails_alone_and_can_be_redriven() {
    let dir = Workdir::new();
    poisoned(&dir);
    let run = |small: &str| {
        dir.run(&[
            "run",
            "prompts",
            "--out",
            "answers.jsonl",
            "--json",
            "--small",
            small,
            "--large",
            "scripted:model=big",
            "--set",
            "worker.attempts_max=2",
            "--set",
            "router.threshold=1",
        ])
    };
    let done = run("scripted:latency_ms=20,poison=POISON").exits(1);
    let summary = done.json();
    assert_eq!(summary["answered"], 7, "{done}");
    assert_eq!(summary["failures"], json!({"engine_crashed": 1}), "{done}");
    let answers = dir.answers();
    assert_eq!(answers["q3"]["response"]["status_code"], 500);
    let message = answers["q3"]["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("scripted crash"),
        "the cause is told: {message}"
    );
    let history = dir.column(
        "select a.outcome from attempts a join jobs j on j.id = a.job_id where j.custom_id = 'q3' order by attempt",
    );
    assert_eq!(
        history,
        ["retried", "retried", "failed"],
        "the first, in company, does not count"
    );
    let others = "select max(attempts) from jobs where custom_id <> 'q3'";
    assert!(dir.number(others) <= 2, "neighbours run once more, apart");
    let counted = "select max(attempts - attempts_returned) from jobs where custom_id <> 'q3'";
    assert_eq!(dir.number(counted), 1);

    let listed = dir.run(&["dead", "list", "--json"]).exits(0);
    let letter = listed.json();
    assert_eq!(letter["reason"]["code"], "engine_crashed", "{listed}");
    let id = letter["id"].as_str().unwrap();
    let table = dir
        .run(&["dead", "list", "--reason", "engine_crashed"])
        .exits(0);
    assert!(table.stdout.contains(id), "{table}");
    let shown = dir.run(&["dead", "show", id]).exits(0).json();
    assert_eq!(shown["attempts"].as_array().unwrap().len(), 3, "{shown}");
    assert!(
        shown["body"].as_str().unwrap().contains("a POISON pill"),
        "{shown}"
    );
    dir.run(&["dead", "redrive"]).exits(2).complains("--all");
    dir.run(&["dead", "redrive", id])
        .exits(0)
        .complains("1 redriven");
    dir.run(&["dead", "list"])
        .exits(0)
        .complains("no dead letters");

    // The line has had its end; the letter's job is a new one, for the next run.
    let again = run("scripted:latency_ms=20").exits(1);
    assert_eq!(again.json()["already_answered"], 7, "{again}");
    let healed = up(&dir, &["--small", "scripted:", "--large", "scripted:"]);
    dir.wait_for(
        1,
        "select count(*) from jobs where redrive_of is not null and state = 'succeeded'",
    );
    stop(healed);
    assert_eq!(dir.number("select count(*) from jobs"), 9);
}

#[test]
fn a_dead_letter_can_be_discarded() {
    let dir = Workdir::new();
    dir.write("prompts", "always fails\n");
    let failing = "scripted:fail_percent=100";
    dir.run(&[
        "run",
        "prompts",
        "--small",
        failing,
        "--large",
        failing,
        "--set",
        "worker.attempts_max=1",
    ])
    .exits(1);
    assert_eq!(dir.column("select outcome from attempts"), ["failed"]);
    dir.run(&["dead", "discard", "--all"])
        .exits(0)
        .complains("1 discarded");
    dir.run(&["dead", "discard", "--all"])
        .exits(0)
        .complains("0 discarded");
    dir.run(&["dead", "list"])
        .exits(0)
        .complains("no dead letters");
    assert_eq!(
        dir.column("select resolution from dead_letters"),
        ["discarded"]
    );
}

#[test]
fn duplicates_of_a_too_long_prompt_end_too() {
    let dir = Workdir::new();
    // Few letters, so that the router's estimate takes it for short enough.
    let long = vec!["w"; 30].join(" ");
    // Each waits for the one before it, which cannot answer: the first two kinds by escalation, the
    // last by failing.
    let lines: String = (0..24)
        .map(|at| {
            let model = ["auto", "auto", "small"][at % 3];
            let body = json!({"prompt": long, "model": model});
            json!({"custom_id": format!("q{at}"), "body": body}).to_string() + "\n"
        })
        .collect();
    dir.write("prompts", lines);
    let done = dir
        .run(&[
            "run",
            "prompts",
            "--out",
            "answers.jsonl",
            "--small",
            "scripted:context=20",
            "--large",
            "scripted:model=big,echo",
            "--set",
            "router.threshold=1",
        ])
        .exits(1);
    let answers = dir.answers();
    for at in 0..24 {
        let answer = &answers[&format!("q{at}")];
        match at % 3 {
            2 => assert_eq!(answer["error"]["code"], "context_length_exceeded", "{done}"),
            _ => assert_eq!(text(answer), long),
        }
    }
}
