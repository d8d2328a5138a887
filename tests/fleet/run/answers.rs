//! `run` in fair weather: every line answered once, and never twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::Path,
};

use serde_json::json;

use crate::support::workdir::{FAST, Workdir, by_name, extension, text};

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(name);
    path.to_str().unwrap().to_owned()
}

fn sorted(lines: &str) -> BTreeSet<&str> {
    lines.lines().collect()
}

#[test]
fn the_examples_are_answered_and_the_next_run_computes_nothing() {
    let dir = Workdir::new();
    let file = example("shapes.jsonl");
    let first = dir.answer(&file, &["--json"]).exits(0).json();
    let (small, large) = (&first["route"]["small"], &first["route"]["large"]);
    assert_eq!(first["answered"], 200, "{first}");
    assert_eq!(first["failed"], 0, "{first}");
    assert_eq!(first["already_answered"], 0, "{first}");
    assert_eq!(small.as_u64().unwrap() + large.as_u64().unwrap(), 200);
    assert!(large.as_u64().unwrap() > 0, "{first}");
    let hits = &first["cache_hits"];
    let reused =
        hits["earlier_answers"].as_u64().unwrap() + hits["shared_in_flight"].as_u64().unwrap();
    assert_eq!(reused, 10, "ten lines repeat another one: {first}");
    assert_eq!(dir.number("select count(*) from attempts"), 190);
    assert_eq!(
        dir.number("select sum(prompt_tokens) from attempts"),
        first["tokens"]["prompt_sent"].as_i64().unwrap()
    );
    assert_eq!(
        dir.number("select sum(completion_tokens) from attempts"),
        first["tokens"]["generated"].as_i64().unwrap()
    );
    let answers = dir.answers();
    assert_eq!(answers.len(), 200);
    let sources = answers
        .values()
        .map(|line| extension(line)["source"].as_str().unwrap());
    let mut counts = BTreeMap::<_, u64>::new();
    for source in sources {
        *counts.entry(source).or_default() += 1;
    }
    assert_eq!(counts["computed"], 190, "{counts:?}");

    let lines = dir.read("answers.jsonl");
    let second = dir.answer(&file, &["--json"]).exits(0).json();
    assert_eq!(second["answered"], 200, "{second}");
    assert_eq!(second["already_answered"], 200, "{second}");
    assert_eq!(
        second["tokens"],
        json!({"prompt_sent": 0, "prompt_computed": 0, "generated": 0})
    );
    assert_eq!(sorted(&dir.read("answers.jsonl")), sorted(&lines));
    assert_eq!(dir.number("select count(*) from attempts"), 190);
    assert_eq!(dir.number("select count(*) from jobs"), 200);

    let third = dir.run(&[&["run", &file], &FAST[..]].concat()).exits(0);
    assert_eq!(sorted(&third.stdout), sorted(&lines), "without --out");
    assert!(third.stderr.contains("200 (200 of them by an earlier run)"));
    assert!(third.stderr.contains("promptyard.db"), "{third}");
    assert!(!third.stderr.contains('\u{1b}'), "no colours into a file");
}

#[test]
fn every_line_shape_is_read_from_standard_input() {
    let dir = Workdir::new();
    let lines = [
        "\u{feff}plain text, and with a byte order mark\r",
        "",
        r#"{"prompt": "a prompt"}"#,
        r#"  {"messages": [{"role": "user", "content": "a chat body"}]}"#,
        "   \t ",
        r#"{"custom_id": "named", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "a batch line"}]}}"#,
        r#"{"custom_id": "näme \" 2", "body": {"prompt": "a short batch line"}}"#,
        "[not an object, so plain text]",
        "the last line has no newline",
    ];
    dir.write("prompts", lines.join("\n"));
    let echo = ["--small", "scripted:echo", "--large", "scripted:echo"];
    let arguments = [&["run", "-"], &echo[..]].concat();
    let stdin = File::open(dir.path("prompts")).unwrap();
    let done = dir.start_with(&arguments, stdin.into()).wait().exits(0);
    let answers = by_name(&done.stdout);
    let texts: BTreeMap<_, _> = answers
        .iter()
        .map(|(name, line)| (name.as_str(), text(line)))
        .collect();
    let expected = BTreeMap::from([
        ("1", "plain text, and with a byte order mark"),
        ("3", "a prompt"),
        ("4", "a chat body"),
        ("named", "a batch line"),
        ("näme \" 2", "a short batch line"),
        ("8", "[not an object, so plain text]"),
        ("9", "the last line has no newline"),
    ]);
    assert_eq!(texts, expected);
}

#[test]
fn answers_do_not_depend_on_the_order_of_the_lines() {
    let lines: Vec<_> = (0..60)
        .map(|at| format!(r#"{{"custom_id":"q{at}","body":{{"prompt":"question {at}"}}}}"#))
        .collect();
    let mut reversed = lines.clone();
    reversed.reverse();
    let answers = [lines, reversed].map(|lines| {
        let dir = Workdir::new();
        dir.write("prompts", lines.join("\n"));
        dir.answer("prompts", &[]).exits(0);
        let answers = dir.answers();
        answers
            .into_iter()
            .map(|(name, line)| (name, text(&line).to_owned()))
            .collect::<BTreeMap<_, _>>()
    });
    assert_eq!(answers[0].len(), 60);
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn run_without_models_uses_and_names_the_bundled_checkpoints() {
    let prompts: Vec<_> = ["Hello!", "What is a yard?", "Prove that 2 is prime."]
        .iter()
        .map(|prompt| json!({"prompt": prompt, "max_tokens": 4}).to_string())
        .collect();
    let answers = [1, 2].map(|_| {
        let dir = Workdir::new();
        dir.write("prompts", prompts.join("\n"));
        let done = dir
            .run(&["run", "prompts", "--out", "answers.jsonl"])
            .exits(0);
        let notes: Vec<_> = done
            .stderr
            .lines()
            .filter(|line| line.contains("bundled"))
            .collect();
        assert_eq!(notes.len(), 1, "{done}");
        let answers = dir.answers();
        let of = |(name, line): (_, serde_json::Value)| (name, text(&line).to_owned());
        answers.into_iter().map(of).collect::<BTreeMap<_, _>>()
    });
    assert_eq!(answers[0].len(), 3);
    assert_eq!(answers[0], answers[1], "greedy answers repeat");
}

#[test]
fn a_file_without_prompts_succeeds() {
    let dir = Workdir::new();
    for content in ["", "\n\n  \n"] {
        dir.write("empty", content);
        let summary = dir.answer("empty", &["--json"]).exits(0).json();
        assert_eq!(summary["answered"], 0);
        assert_eq!(dir.read("answers.jsonl"), "");
    }
}
