//! Answers that are reused: once in flight, then from the cache, and never where it is forbidden.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::workdir::{Workdir, extension, text};

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

fn run(dir: &Workdir, lines: &str) -> Value {
    dir.write("prompts", lines);
    let arguments = [
        &["run", "prompts", "--json", "--out", "answers.jsonl"][..],
        // Only a prompt that asks for it goes to the large model.
        &["--set", "router.threshold=1"][..],
        &SLOW[..],
    ]
    .concat();
    dir.run(&arguments).exits(0).json()
}

fn sources(dir: &Workdir) -> Vec<String> {
    let answers = dir.answers();
    let source = |line: &Value| extension(line)["source"].as_str().unwrap().to_owned();
    let mut sources: Vec<_> = answers.values().map(source).collect();
    sources.sort();
    sources
}

#[test]
fn identical_prompts_run_once() {
    let dir = Workdir::new();
    let body = json!({"prompt": "What is the capital of Portugal?"});
    let first = run(&dir, &file_of("a", 50, &body));
    assert_eq!(first["answered"], 50, "{first}");
    assert_eq!(first["cache_hits"]["shared_in_flight"], 49, "{first}");
    assert_eq!(dir.number("select count(*) from attempts"), 1);
    let answers = dir.answers();
    let texts: BTreeSet<_> = answers.values().map(text).collect();
    assert_eq!((answers.len(), texts.len()), (50, 1));
    let answer = texts.first().unwrap().to_string();

    let later = run(&dir, &file_of("b", 3, &body));
    assert_eq!(later["cache_hits"]["earlier_answers"], 3, "{later}");
    assert_eq!(sources(&dir), ["cache"; 3]);
    assert_eq!(dir.number("select count(*) from attempts"), 1);
    assert!(dir.answers().values().all(|line| text(line) == answer));
}

/// Killed while the one run is under way, a hundred identical prompts are one committed run all the same.
#[test]
fn identical_prompts_survive_a_kill() {
    let dir = Workdir::new();
    let body = json!({"prompt": "What is the capital of Portugal?"});
    dir.write("prompts", file_of("a", 100, &body));
    let arguments = [
        &["run", "prompts", "--json", "--out", "answers.jsonl"][..],
        &SLOW[..],
    ]
    .concat();
    let run = dir.start(&arguments);
    dir.wait_for(1, "select count(*) from attempts where outcome = 'running'");
    run.kill();
    let done = dir.run(&arguments).exits(0).json();
    assert_eq!(done["answered"], 100, "{done}");
    let answers = dir.answers();
    let texts: BTreeSet<_> = answers.values().map(text).collect();
    assert_eq!((answers.len(), texts.len()), (100, 1));
    assert_eq!(
        dir.column("select outcome from attempts order by attempt"),
        ["lost", "succeeded"]
    );
    assert_eq!(
        dir.number("select count(*) from jobs where source = 'computed'"),
        1
    );
}

#[test]
fn uncacheable_requests_are_computed() {
    let dir = Workdir::new();
    let plain = json!({"prompt": "How high is the Zugspitze?"});
    run(&dir, &file_of("first", 1, &plain));
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
        run(&dir, &file_of(name, 1, &body));
        assert_eq!(sources(&dir), ["computed"], "{name}");
    }
    assert_eq!(dir.number("select count(*) from attempts"), 6);
    // Two at once: chance and `cache: off` are not shared in flight either.
    for body in [
        json!({"prompt": prompt, "temperature": 0.9}),
        json!({"prompt": prompt, "promptyard": {"cache": "off"}}),
    ] {
        let name = body.to_string().len().to_string();
        run(&dir, &file_of(&name, 2, &body));
        assert_eq!(sources(&dir), ["computed"; 2], "{body}");
    }
    // A seed makes chance repeatable.
    let seeded = json!({"prompt": prompt, "temperature": 0.9, "seed": 7});
    run(&dir, &file_of("seed", 2, &seeded));
    assert_eq!(sources(&dir), ["computed", "shared"]);
}
