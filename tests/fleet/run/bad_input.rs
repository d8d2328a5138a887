//! Bad lines: each ends as a row with a reason that a person can act on, and spoils no other.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};

use crate::support::workdir::{FAST, Workdir, text};

/// Reason codes by custom_id; `ok` for an answer.
fn codes(answers: &BTreeMap<String, Value>) -> BTreeMap<&str, &str> {
    answers
        .iter()
        .map(|(name, line)| {
            (
                name.as_str(),
                line["error"]["code"].as_str().unwrap_or("ok"),
            )
        })
        .collect()
}

#[test]
fn example_bad_lines_end_with_their_reasons() {
    let dir = Workdir::new();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/bad.jsonl");
    // Two of its lines have the same name, so the answers are not read by name here.
    let file = std::fs::read(file).unwrap();
    dir.write("bad", &file);
    let summary = dir.answer("bad", &["--json"]).exits(1).json();
    assert_eq!(summary["answered"], 3, "{summary}");
    assert_eq!(summary["failed"], 17, "{summary}");
    assert_eq!(dir.read("answers.jsonl").lines().count(), 20);
    for line in dir.read("answers.jsonl").lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let status = line["response"]["status_code"].as_u64().unwrap();
        if line["error"].is_null() {
            assert_eq!(status, 200, "{line}");
            continue;
        }
        assert!((400..=504).contains(&status), "{line}");
        let message = line["error"]["message"].as_str().unwrap();
        assert!(message.len() > 10, "{line}");
        assert_eq!(line["response"]["body"]["error"]["message"], message);
    }
    assert_eq!(dir.number("select count(*) from jobs"), 20);
    let open = "select count(*) from jobs where finished_at is null or (state <> 'succeeded' and reason_message is null)";
    assert_eq!(dir.number(open), 0);

    let again = dir.answer("bad", &["--json"]).exits(1).json();
    assert_eq!(again["failures"], summary["failures"]);
    assert_eq!(dir.number("select count(*) from jobs"), 20, "no row twice");
    assert_eq!(dir.number("select count(*) from attempts"), 3);
}

#[test]
fn hostile_lines_fail_alone_with_a_reason() {
    let dir = Workdir::new();
    let named = |name: &str, body: Value| json!({"custom_id": name, "body": body}).to_string();
    let words = |count: usize| vec!["word"; count].join(" ");
    let mut lines: Vec<Vec<u8>> = [
        named("long-for-both", json!({"prompt": words(300)})),
        named("long-for-small", json!({"prompt": words(100)})),
        named("not-a-model", json!({"prompt": "a", "model": "gpt-17"})),
        named("past", json!({"prompt": "a", "promptyard": {"deadline_ms": 0}})),
        named("half", json!({"prompt": "a", "max_tokens": 1.5})),
        named("huge-number", json!({"prompt": "a", "max_tokens": 1e30})),
        named("hot", json!({"prompt": "a", "temperature": 2.1})),
        named("image", json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]})),
        named("no-messages", json!({"messages": []})),
        named("tenant", json!({"prompt": "a", "promptyard": {"tenant": "a b\n"}})),
        named("extension", json!({"prompt": "a", "promptyard": []})),
        named("nul", json!({"prompt": "a\u{0}b"})),
        named("stream", json!({"prompt": "a", "stream": true})),
        named("", json!({"prompt": "an empty name"})),
        r#"{"custom_id":"two-prompts","body":{"prompt":"a","prompt":"b"}}"#.to_owned(),
        "null".to_owned(),
        format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000)),
        format!(r#"{{"custom_id":"deep","body":{}1{}}}"#, r#"{"a":"#.repeat(50_000), "}".repeat(50_000)),
        "{}".to_owned(),
        named("good", json!({"prompt": "still answered"})),
    ]
    .into_iter()
    .map(String::into_bytes)
    .collect();
    lines.push(
        [
            &b"{\"custom_id\":\"big\",\"body\":{\"prompt\":\""[..],
            &vec![b'x'; 20 << 20],
            b"\"}}",
        ]
        .concat(),
    );
    lines.push(b"\xff\xfe\xfd".to_vec());
    lines.push(b"{\"custom_id\":\"latin-1\",\"body\":{\"prompt\":\"caf\xe9\"}}".to_vec());
    lines.push(named("last", json!({"prompt": "answered, too"})).into_bytes());
    dir.write("hostile", lines.join(&b'\n'));
    let done = dir
        .run(&[
            "run",
            "hostile",
            "--out",
            "answers.jsonl",
            "--small",
            "scripted:latency_ms=1,context=50",
            "--large",
            "scripted:latency_ms=1,context=200,model=big",
        ])
        .exits(1);
    let answers = dir.answers();
    assert_eq!(answers.len(), lines.len(), "{done}");
    let found = codes(&answers);
    let expected = BTreeMap::from([
        ("long-for-both", "context_length_exceeded"),
        ("long-for-small", "ok"),
        ("not-a-model", "model_not_found"),
        ("past", "deadline_passed"),
        ("half", "invalid_value"),
        ("huge-number", "invalid_value"),
        ("hot", "invalid_value"),
        ("no-messages", "empty_prompt"),
        ("tenant", "invalid_value"),
        ("extension", "invalid_type"),
        ("good", "ok"),
        ("last", "ok"),
    ]);
    for (name, code) in expected {
        assert_eq!(
            found.get(name),
            Some(&code),
            "{name}: {:?}",
            answers.get(name)
        );
    }
    // Lines whose name cannot be read go by their number.
    for (number, code) in [
        (17, "ok"),
        (18, "invalid_json"),
        (19, "missing_field"),
        (21, "body_too_large"),
        (22, "invalid_utf8"),
        (23, "invalid_utf8"),
    ] {
        let name = number.to_string();
        assert_eq!(
            found.get(name.as_str()),
            Some(&code),
            "line {number}: {found:?}"
        );
    }
    assert_eq!(
        dir.number("select count(*) from jobs where finished_at is null"),
        0
    );
    assert_eq!(dir.number("select count(*) from jobs"), lines.len() as i64);
    assert_eq!(
        dir.number("select count(*) from queue_messages"),
        0,
        "nothing is tried again"
    );
}

#[test]
fn a_repeated_custom_id_is_refused() {
    let dir = Workdir::new();
    let line = |name: &str, prompt: &str| {
        json!({"custom_id": name, "body": {"prompt": prompt}}).to_string()
    };
    dir.write(
        "prompts",
        [
            line("a", "one"),
            line("a", "two"),
            line("a", "one"),
            line("b", "one"),
            "2".to_owned(),
        ]
        .join("\n"),
    );
    let arguments = [&["run", "prompts"], &FAST[..]].concat();
    let first = dir.run(&arguments).exits(1);
    let second = dir.run(&arguments).exits(1);
    for done in [first, second] {
        let lines: Vec<Value> = done
            .stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let refused: Vec<_> = lines
            .iter()
            .filter(|line| !line["error"].is_null())
            .collect();
        assert_eq!((lines.len(), refused.len()), (5, 2), "{done}");
        for line in refused {
            assert_eq!(line["error"]["code"], "duplicate_custom_id");
            assert_eq!(line["response"]["status_code"], 409);
        }
        assert!(!text(lines.iter().find(|line| line["custom_id"] == "b").unwrap()).is_empty());
    }
    assert_eq!(dir.number("select count(*) from jobs"), 5);
}
