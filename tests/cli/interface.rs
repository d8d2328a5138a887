//! What people read before they type: help, settings, metrics and the line that a job ends in.

use assert_cmd::Command;
use promptyard::{cli, metrics};
use serde_json::Value;

use crate::support::binary;

fn promptyard(arguments: &[&str]) -> Command {
    let mut command = Command::from_std(binary::promptyard());
    command.args(arguments).env_remove("COLUMNS");
    command
}

fn stdout(arguments: &[&str]) -> String {
    let output = promptyard(arguments)
        .assert()
        .success()
        .get_output()
        .clone();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The words of every command, its own subcommands after it.
fn commands(command: &clap::Command, path: &[String]) -> Vec<Vec<String>> {
    let mut found = vec![path.to_vec()];
    for sub in command.get_subcommands() {
        let path = [path, &[sub.get_name().to_owned()]].concat();
        found.extend(commands(sub, &path));
    }
    found
}

#[test]
fn help_says_what_each_command_does() {
    let commands = commands(&cli::command(), &[]);
    assert!(commands.len() > 15, "{commands:?}");
    for words in commands {
        let mut arguments: Vec<_> = words.iter().map(String::as_str).collect();
        arguments.push("--help");
        let help = stdout(&arguments);
        let widest = help.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(100), "{words:?}");
        let name = [&["help".to_owned()], words.as_slice()].concat().join("_");
        insta::assert_snapshot!(name, help);
    }
}

#[test]
fn config_show_lists_every_setting_and_can_be_loaded_again() {
    let shown = stdout(&["config", "show"]);
    insta::assert_snapshot!("config_show", shown);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("promptyard.toml");
    std::fs::write(&path, &shown).unwrap();
    let path = path.to_str().unwrap();
    assert_eq!(stdout(&["config", "show", "--config", path]), shown);
    let flags = ["--broker", "amqp://me:hunter2@host/%2f"];
    let masked = stdout(&[&["config", "show"], &flags[..]].concat());
    assert!(masked.contains("amqp://me:***@host/"), "{masked}");
    assert!(!masked.contains("hunter2"));
}

#[test]
fn metric_names_and_labels_are_stable() {
    let list: String = metrics::ALL
        .iter()
        .map(|metric| {
            let kind = format!("{:?}", metric.kind).to_lowercase();
            format!("{kind:9} {} {}\n", metric.name, metric.labels.join(","))
        })
        .collect();
    insta::assert_snapshot!("metrics", list);
}

/// Replaces what differs from run to run, wherever it stands.
fn redact(value: &mut Value) {
    let Some(object) = value.as_object_mut() else {
        if let Some(list) = value.as_array_mut() {
            list.iter_mut().for_each(redact);
        }
        return;
    };
    for (name, value) in object {
        match name.as_str() {
            "id" | "job_id" | "request_id" | "created" | "latency_ms" | "score" => {
                assert!(!value.is_null() || name == "score", "{name} is missing");
                *value = format!("[{name}]").into();
            }
            _ => redact(value),
        }
    }
}

#[test]
fn answers_and_refusals_are_openai_batch_output_lines() {
    let folder = tempfile::tempdir().unwrap();
    let lines = r#"{"custom_id": "good", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "Hello there"}]}}
{"custom_id": "bad", "body": {"prompt": "Hello", "max_tokens": -1}}
"#;
    let arguments = [
        "run",
        "-",
        "--small",
        "scripted:echo",
        "--large",
        "scripted:echo",
    ];
    let output = promptyard(&arguments)
        .current_dir(folder.path())
        .write_stdin(lines)
        .assert()
        .code(1)
        .get_output()
        .clone();
    let mut lines: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    lines.sort_by_key(|line| line["custom_id"].to_string());
    lines.iter_mut().for_each(redact);
    insta::assert_snapshot!("batch_lines", serde_json::to_string_pretty(&lines).unwrap());
}

#[test]
fn typos_get_a_suggestion() {
    let error = promptyard(&["rum", "x"])
        .assert()
        .code(2)
        .get_output()
        .clone();
    let said = String::from_utf8_lossy(&error.stderr).into_owned();
    assert!(said.contains("similar") && said.contains("run"), "{said}");
    let version = stdout(&["--version"]);
    assert_eq!(
        version,
        concat!("promptyard ", env!("CARGO_PKG_VERSION"), "\n")
    );
}
