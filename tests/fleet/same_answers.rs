//! `run` gives the same greedy answers embedded and on RabbitMQ + Postgres.

use std::{collections::BTreeMap, path::Path, process::Command};

use serde_json::{Value, json};

use crate::support::{
    binary::promptyard,
    fleet::{TestFleet, json_lines, output, text},
};

/// The example prompts with few tokens to generate, so that the test is about the way and not about
/// the model; and the names of those whose answers are greedy.
fn prompts() -> (String, Vec<String>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/shapes.jsonl");
    let (mut lines, mut greedy) = (String::new(), Vec::new());
    for (number, line) in std::fs::read_to_string(path).unwrap().lines().enumerate() {
        let value = serde_json::from_str(line).unwrap_or_else(|_| json!({"prompt": line}));
        let mut value: Value = value;
        let name = value["custom_id"]
            .as_str()
            .map_or((number + 1).to_string(), str::to_owned);
        let body = if value["body"].is_object() {
            &mut value["body"]
        } else {
            &mut value
        };
        let body = body.as_object_mut().unwrap();
        body.remove("max_tokens");
        body.insert("max_completion_tokens".to_owned(), json!(6));
        if body
            .get("temperature")
            .and_then(Value::as_f64)
            .unwrap_or(0.0)
            == 0.0
        {
            greedy.push(name);
        }
        lines.push_str(&format!("{value}\n"));
    }
    (lines, greedy)
}

/// Runs the file; returns the answers by name, after checking that all are there.
async fn run(mut command: Command, folder: &Path) -> BTreeMap<String, Value> {
    let out = folder.join("answers.jsonl");
    // Checkpoints whose context takes every example.
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
    command
        .arg("run")
        .arg("--small")
        .arg(models.join("tiny-llama"))
        .arg("--large")
        .arg(models.join("tiny-qwen3"))
        .arg(folder.join("prompts.jsonl"))
        .arg("--out")
        .arg(&out)
        .arg("--json");
    let ran = output(command, b"").await;
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    let summary: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(summary["answered"], 200, "{summary}");
    let lines = json_lines(&std::fs::read(out).unwrap());
    assert_eq!(lines.len(), 200);
    let answers = lines.into_iter().map(|mut line| {
        let name = line["custom_id"].as_str().unwrap().to_owned();
        (name, line["response"]["body"]["choices"].take())
    });
    answers.collect()
}

#[tokio::test]
async fn embedded_mode_and_fleet_give_the_same_answers() {
    let fleet = TestFleet::bare();
    let (lines, greedy) = prompts();
    assert!(greedy.len() > 100);
    std::fs::write(fleet.folder.path().join("prompts.jsonl"), lines).unwrap();
    let embedded = tempfile::tempdir().unwrap();
    std::fs::copy(
        fleet.folder.path().join("prompts.jsonl"),
        embedded.path().join("prompts.jsonl"),
    )
    .unwrap();
    let mut command = promptyard();
    command.current_dir(embedded.path());
    let here = run(command, embedded.path()).await;
    let mut command = promptyard();
    for (name, value) in [
        ("PROMPTYARD_BROKER_URL", fleet.broker.url.expose()),
        ("PROMPTYARD_BROKER_PREFIX", &fleet.broker.prefix),
        ("PROMPTYARD_STORE_URL", fleet.store.url.expose()),
        ("PROMPTYARD_STORE_SCHEMA", &fleet.store.schema),
    ] {
        command.env(name, value);
    }
    let there = run(command, fleet.folder.path()).await;
    assert_eq!(here.len(), 200);
    for name in greedy {
        assert_eq!(here[&name], there[&name], "{name}");
    }
    assert_eq!(
        fleet
            .count("select count(*) from jobs where finished_at is not null")
            .await,
        200
    );
    assert_eq!(fleet.count("select count(*) from jobs").await, 200);
    fleet.queues_are_empty().await;
}
