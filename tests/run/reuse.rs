//! Answers that are reused: once in flight, then from the cache, and never where it is forbidden.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::yard::{WorkerLoop, extension, text};

/// Slow engines, and every job left to the router on the small one.
const SLOW: [&str; 6] = [
    "--small",
    "scripted:latency_ms=400",
    "--large",
    "scripted:model=big,latency_ms=400",
    "--set",
    "router.threshold=1",
];

fn file_of(prefix: &str, count: usize, body: &Value) -> String {
    (0..count)
        .map(|at| json!({"custom_id": format!("{prefix}{at}"), "body": body}).to_string() + "\n")
        .collect()
}

fn run(yard: &WorkerLoop, lines: &str) -> Value {
    yard.write("prompts", lines);
    let arguments = [
        &["run", "prompts", "--json", "--out", "answers.jsonl"][..],
        // Only a prompt that asks for it goes to the large model.
        &["--set", "router.threshold=1"][..],
        &SLOW[..],
    ]
    .concat();
    yard.run(&arguments).exits(0).json()
}

fn sources(yard: &WorkerLoop) -> Vec<String> {
    let answers = yard.answers();
    let source = |line: &Value| extension(line)["source"].as_str().unwrap().to_owned();
    let mut sources: Vec<_> = answers.values().map(source).collect();
    sources.sort();
    sources
}

#[test]
fn fifty_identical_prompts_run_once_and_later_ones_not_at_all() {
    let yard = WorkerLoop::new();
    let body = json!({"prompt": "What is the capital of Portugal?"});
    let first = run(&yard, &file_of("a", 50, &body));
    assert_eq!(first["answered"], 50, "{first}");
    assert_eq!(first["cache_hits"]["shared_in_flight"], 49, "{first}");
    assert_eq!(yard.number("select count(*) from attempts"), 1);
    let answers = yard.answers();
    let texts: BTreeSet<_> = answers.values().map(text).collect();
    assert_eq!((answers.len(), texts.len()), (50, 1));
    let answer = texts.first().unwrap().to_string();

    let later = run(&yard, &file_of("b", 3, &body));
    assert_eq!(later["cache_hits"]["earlier_answers"], 3, "{later}");
    assert_eq!(sources(&yard), ["cache"; 3]);
    assert_eq!(yard.number("select count(*) from attempts"), 1);
    assert!(yard.answers().values().all(|line| text(line) == answer));
}

/// Killed while the one run is under way, a hundred identical prompts are one committed run all the same.
#[test]
fn a_hundred_identical_prompts_outlive_a_kill() {
    let yard = WorkerLoop::new();
    let body = json!({"prompt": "What is the capital of Portugal?"});
    yard.write("prompts", file_of("a", 100, &body));
    let arguments = [
        &["run", "prompts", "--json", "--out", "answers.jsonl"][..],
        &SLOW[..],
    ]
    .concat();
    let run = yard.start(&arguments);
    yard.wait_for(1, "select count(*) from attempts where outcome = 'running'");
    run.kill();
    let done = yard.run(&arguments).exits(0).json();
    assert_eq!(done["answered"], 100, "{done}");
    let answers = yard.answers();
    let texts: BTreeSet<_> = answers.values().map(text).collect();
    assert_eq!((answers.len(), texts.len()), (100, 1));
    assert_eq!(
        yard.column("select outcome from attempts order by attempt"),
        ["lost", "succeeded"]
    );
    assert_eq!(
        yard.number("select count(*) from jobs where source = 'computed'"),
        1
    );
}

#[test]
fn what_must_not_be_reused_is_computed() {
    let yard = WorkerLoop::new();
    let plain = json!({"prompt": "How high is the Zugspitze?"});
    run(&yard, &file_of("first", 1, &plain));
    let prompt = &plain["prompt"];
    for (name, body) in [
        (
            "off",
            json!({"prompt": prompt, "promptyard": {"cache": "off"}}),
        ),
        ("warm", json!({"prompt": prompt, "temperature": 0.9})),
        (
            "tenant",
            json!({"prompt": prompt, "promptyard": {"tenant": "acme"}}),
        ),
        ("shorter", json!({"prompt": prompt, "max_tokens": 3})),
        ("large", json!({"prompt": prompt, "model": "large"})),
    ] {
        run(&yard, &file_of(name, 1, &body));
        assert_eq!(sources(&yard), ["computed"], "{name}");
    }
    assert_eq!(yard.number("select count(*) from attempts"), 6);
    // Two at once: chance and `cache: off` are not shared in flight either.
    for body in [
        json!({"prompt": prompt, "temperature": 0.9}),
        json!({"prompt": prompt, "promptyard": {"cache": "off"}}),
    ] {
        let name = body.to_string().len().to_string();
        run(&yard, &file_of(&name, 2, &body));
        assert_eq!(sources(&yard), ["computed"; 2], "{body}");
    }
    // A seed makes chance repeatable.
    let seeded = json!({"prompt": prompt, "temperature": 0.9, "seed": 7});
    run(&yard, &file_of("seed", 2, &seeded));
    assert_eq!(sources(&yard), ["computed", "shared"]);
}
