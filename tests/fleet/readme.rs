//! README.md keeps its word: its commands run as printed, and the files, services and links that it and
//! the other documents name exist. The workflows that publish releases fit their schema.

use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use promptyard::config::Config;
use serde_json::Value;

use crate::support::{
    fleet::{TestFleet, json_lines, output, text},
    poll::until_blocking,
    servers::{free_port, python},
    workdir::Workdir,
};

// A text that only one block of the README holds, for each block; a test below uses each of them.
const FLOW: &str = "any AMQP client";
const RUN: &str = "run examples/prompts.jsonl";
const SUMMARY: &str = "cache hits";
const TESTS: &str = "./scripts/test";
const UP: &str = "-- up";
const CURL: &str = "curl -s";
const SDK: &str = "from openai import";
const OWN_MODELS: &str = "--small ./";
const COMPOSE: &str = "docker compose";
const ROLES: &str = "promptyard migrate";
const PRODUCER: &str = "examples/producer.py";
const BLOCKS: [&str; 11] = [
    FLOW, RUN, SUMMARY, TESTS, UP, CURL, SDK, OWN_MODELS, COMPOSE, ROLES, PRODUCER,
];

/// Most lines of the README.
const LINES_MAX: usize = 150;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The fenced blocks of the README.
fn blocks() -> Vec<String> {
    let readme = read("README.md");
    let fenced = readme.split("```").skip(1).step_by(2);
    let without_language = fenced.map(|block| block.split_once('\n').unwrap().1.to_owned());
    without_language.collect()
}

/// The one block that holds a text.
fn block(needle: &str) -> String {
    let mut found: Vec<_> = blocks();
    found.retain(|block| block.contains(needle));
    assert_eq!(found.len(), 1, "blocks with {needle:?}");
    found.remove(0)
}

/// A folder that looks like a fresh checkout, as far as the blocks read it.
fn checkout() -> Workdir {
    let folder = Workdir::new();
    symlink(root().join("examples"), folder.path("examples")).unwrap();
    folder
}

/// Runs a block of shell with the built binary behind `cargo run` and `promptyard`.
fn shell(folder: &Workdir, block: &str) -> Output {
    let binary = Path::new(env!("CARGO_BIN_EXE_promptyard"));
    let path = format!(
        "{}:{}",
        binary.parent().unwrap().display(),
        env::var("PATH").unwrap()
    );
    let script = format!(
        "set -euo pipefail\n\
         cargo() {{ while [ \"$1\" != -- ]; do shift; done; shift; promptyard \"$@\"; }}\n{block}"
    );
    let mut command = Command::new("bash");
    command
        .args(["-c", &script])
        .current_dir(folder.path(""))
        .env("PATH", path);
    for (name, _) in env::vars().filter(|(name, _)| name.starts_with("PROMPTYARD_")) {
        command.env_remove(name);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{block}\n{}", text(&output.stderr));
    output
}

/// What stands before the two blanks of each line of a summary.
fn labels(summary: &str) -> Vec<String> {
    let lines = summary
        .lines()
        .filter_map(|line| line.trim().split_once("  "));
    lines.map(|(label, _)| label.to_owned()).collect()
}

#[test]
fn every_block_is_tested() {
    let lines = read("README.md").lines().count();
    assert!(lines <= LINES_MAX, "{lines} lines, at most {LINES_MAX}");
    for needle in BLOCKS {
        block(needle);
    }
    assert_eq!(blocks().len(), BLOCKS.len(), "a block has no test");
    let flow = block(FLOW);
    for stage in ["jobs.in", "router", "jobs.small", "jobs.large", "worker"] {
        assert!(flow.contains(stage), "{stage}");
    }
    let script = fs::metadata(root().join(block(TESTS).trim())).unwrap();
    assert!(script.is_file());
}

#[test]
fn the_first_run_prints_the_summary_that_is_shown() {
    let folder = checkout();
    let first = shell(&folder, &block(RUN));
    assert_eq!(json_lines(&first.stdout).len(), 200);
    let shown = labels(&block(SUMMARY));
    let printed = labels(&text(&first.stderr));
    assert!(shown.len() >= 8, "{shown:?}");
    assert_eq!(printed, shown, "{}", text(&first.stderr));
    let again = text(&shell(&folder, &block(RUN)).stderr);
    assert!(again.contains("200 of them by an earlier run"), "{again}");
}

#[test]
fn http_is_served_to_curl_and_the_openai_client() {
    let folder = checkout();
    let address = format!("127.0.0.1:{}", free_port());
    let up = block(UP);
    let arguments = up.trim().split_once(" -- ").unwrap().1.split(' ');
    let quiet = ["--listen", &address, "--metrics-listen", ""];
    let arguments: Vec<_> = arguments.chain(quiet).collect();
    let server = folder.start(&arguments);
    until_blocking("an HTTP server", || {
        std::net::TcpStream::connect(&address).is_ok()
    });
    let here = |block: String| {
        assert!(block.contains("127.0.0.1:8080"), "{block}");
        block.replace("127.0.0.1:8080", &address)
    };

    let answered = shell(&folder, &here(block(CURL)));
    let answer: Value = serde_json::from_slice(&answered.stdout).unwrap();
    let content = answer["choices"][0]["message"]["content"].as_str();
    assert!(content.unwrap().contains("PayPal"), "{answer}");

    let mut client = Command::new(python());
    let printed = client.args(["-c", &here(block(SDK))]).output().unwrap();
    assert!(
        printed.status.success(),
        "{}; run ./scripts/test, which installs the client",
        text(&printed.stderr)
    );
    let printed = text(&printed.stdout);
    assert!(printed.ends_with("# 56 large\n"), "{printed}");
    drop(server);
}

#[test]
fn own_models_answer_a_file() {
    let folder = checkout();
    folder.write(
        "prompts.jsonl",
        "how can i pay?\n{\"prompt\": \"what is 61 + 89?\"}\n",
    );
    let block = block(OWN_MODELS);
    for (flag, model) in [("--small", "small"), ("--large", "large")] {
        let (_, rest) = block.split_once(flag).unwrap();
        let directory = rest.split_whitespace().next().unwrap();
        symlink(root().join("models").join(model), folder.path(directory)).unwrap();
    }
    shell(&folder, &block);
    assert_eq!(folder.answers().len(), 2);
}

#[test]
fn compose_commands_name_files_and_services_that_exist() {
    let compose: Value = serde_saphyr::from_str(&read("docker-compose.yml")).unwrap();
    let block = block(COMPOSE);
    let mut scaled = 0;
    for line in block.lines() {
        let words: Vec<_> = line.split('#').next().unwrap().split_whitespace().collect();
        match words[..] {
            ["cp", from, _] => assert!(root().join(from).is_file(), "{from}"),
            ["docker", "compose", "up", "-d", ref options @ ..] => {
                for service in options.iter().filter_map(|word| word.split_once('=')) {
                    assert!(compose["services"].get(service.0).is_some(), "{line}");
                    scaled += 1;
                }
            }
            _ => panic!("nothing checks: {line}"),
        }
    }
    assert!(scaled > 0, "{block}");
}

#[tokio::test]
async fn roles_by_hand_answer_the_example_producer() {
    let fleet = TestFleet::bare();
    let mut roles = Vec::new();
    for line in block(ROLES).lines() {
        let line = line.split(" #").next().unwrap().trim();
        if let Some(assignment) = line.strip_prefix("export ") {
            let (variable, _) = assignment.split_once('=').unwrap();
            assert!(Config::path_of(variable).is_some(), "{variable}");
            continue;
        }
        let address = format!("127.0.0.1:{}", free_port());
        let line = line.replace("127.0.0.1:8080", &address);
        let words: Vec<_> = line.split(' ').collect();
        let ["promptyard", ref arguments @ ..] = words[..] else {
            panic!("nothing runs: {line}");
        };
        if arguments == ["migrate"] {
            let migrated = fleet.run(arguments, &[]).await;
            assert!(migrated.status.success(), "{}", text(&migrated.stderr));
        } else {
            roles.push(fleet.start(arguments).await);
        }
    }
    assert_eq!(roles.len(), 3);
    let script = block(PRODUCER).replacen("python", &python(), 1);
    let script = format!(
        "{} --url '{}' --prefix '{}'",
        script.trim(),
        fleet.broker.url.expose(),
        fleet.broker.prefix
    );
    let mut producer = Command::new("bash");
    producer.args(["-c", &script]).current_dir(root());
    let printed = output(producer, &[]).await;
    assert!(printed.status.success(), "{}", text(&printed.stderr));
    assert_eq!(json_lines(&printed.stdout).len(), 2);
    for role in roles {
        assert!(role.stop().await.success());
    }
}

/// The documents that people read, by their paths.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in [
        "",
        "docs",
        "models",
        "models/router",
        "benches/load",
        "benches/peers",
    ] {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 15, "{found:?}");
    found
}

/// A heading as links name it.
fn anchor(heading: &str) -> String {
    let lower = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = lower
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().replace(' ', "-")
}

#[test]
fn links_lead_to_files_and_headings_that_exist() {
    let mut checked = 0;
    for document in documents() {
        let content = fs::read_to_string(&document).unwrap();
        for link in content.split("](").skip(1) {
            let target = link.split(')').next().unwrap();
            if target.contains("://") {
                continue;
            }
            let (path, heading) = target.split_once('#').unwrap_or((target, ""));
            let file = match path {
                "" => document.clone(),
                path => document.parent().unwrap().join(path),
            };
            assert!(file.exists(), "{}: {target}", document.display());
            if !heading.is_empty() {
                let content = fs::read_to_string(&file).unwrap();
                let headings = content.lines().filter(|line| line.starts_with('#'));
                let anchors: BTreeSet<_> = headings.map(anchor).collect();
                assert!(
                    anchors.contains(heading),
                    "{}: {target}",
                    document.display()
                );
            }
            checked += 1;
        }
    }
    assert!(checked > 40, "only {checked} links were found");
}

/// The words of a line of shell, without quotes and comments.
fn words(line: &str) -> Vec<String> {
    let (mut found, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, ' ') => found.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    found.extend(word);
    found
}

#[test]
fn documented_commands_exist() {
    let mut checked = 0;
    for document in documents() {
        let content = fs::read_to_string(&document).unwrap().replace("\\\n", " ");
        let id = uuid::Uuid::now_v7().to_string();
        let mut is_fenced = false;
        for line in content.lines() {
            is_fenced ^= line.starts_with("```");
            let is_code = is_fenced || line.starts_with("    ");
            let line = line.split(" > ").next().unwrap().trim();
            if !is_code || !line.starts_with("promptyard ") {
                continue;
            }
            let line = line
                .replace("JOB_ID", &id)
                .replace(" ID", &format!(" {id}"));
            let parsed = promptyard::cli::command().try_get_matches_from(words(&line));
            parsed.unwrap_or_else(|error| panic!("{}: {line}\n{error}", document.display()));
            checked += 1;
        }
    }
    assert!(checked > 30, "only {checked} commands were found");
}

#[test]
fn workflows_fit_their_schema_and_build_every_target() {
    let folder = root().join(".github/workflows");
    let files = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut check = Command::new(python());
    let check = check
        .args(["-m", "check_jsonschema"])
        .args(["--builtin-schema", "vendor.github-workflows"])
        .args(files)
        .output()
        .unwrap();
    assert!(
        check.status.success(),
        "{}{}",
        text(&check.stdout),
        text(&check.stderr)
    );
    let release: Value = serde_saphyr::from_str(&read(".github/workflows/release.yml")).unwrap();
    let jobs = release["jobs"]["archive"]["strategy"]["matrix"]["include"]
        .as_array()
        .unwrap();
    let built: BTreeSet<_> = jobs
        .iter()
        .map(|job| job["target"].as_str().unwrap())
        .collect();
    let dist = read("dist-workspace.toml").parse::<toml::Table>().unwrap();
    let wanted = dist["dist"]["targets"].as_array().unwrap().iter();
    let wanted: BTreeSet<_> = wanted.map(|target| target.as_str().unwrap()).collect();
    assert_eq!(built, wanted);
}
