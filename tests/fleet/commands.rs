//! What people type beside a fleet on RabbitMQ and Postgres.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    time::Duration,
};

use serde_json::Value;

use crate::support::{
    binary::{promptyard, signal},
    fleet::{TestFleet, json_lines, output, text},
};

#[tokio::test]
async fn results_status_and_views_agree() {
    let fleet = TestFleet::new().await;
    let engine = "scripted:latency_ms=5";
    let worker = fleet
        .start(&[
            "work",
            "--tier",
            "small,large",
            "--small",
            engine,
            "--large",
            engine,
        ])
        .await;
    let router = fleet.start(&["route"]).await;
    // Follows from before there is anything.
    let mut following = fleet.command(&["results", "--batch", "b1", "--follow"]);
    let mut following = following
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines: String = (0..50)
        .map(|at| format!("Question {} of the day?\n", at % 40))
        .collect();
    let submitted = fleet
        .run(&["submit", "-", "--batch", "b1"], lines.as_bytes())
        .await;
    assert!(submitted.status.success(), "{}", text(&submitted.stderr));
    let stdout = following.stdout.take().unwrap();
    let followed = tokio::task::spawn_blocking(move || {
        let lines = BufReader::new(stdout).lines().take(50);
        lines
            .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
            .collect::<Vec<Value>>()
    });
    let followed = tokio::time::timeout(Duration::from_secs(60), followed).await;
    signal("TERM", following.id());
    let ended = tokio::task::spawn_blocking(move || following.wait())
        .await
        .unwrap();
    assert!(ended.unwrap().success());
    let mut followed = followed.expect("follow prints every answer").unwrap();
    let listed = fleet.run(&["results", "--batch", "b1"], b"").await;
    let mut listed = json_lines(&listed.stdout);
    let id = |line: &Value| line["id"].as_str().unwrap().to_owned();
    followed.sort_by_key(id);
    listed.sort_by_key(id);
    assert_eq!(followed, listed);
    let some = id(&listed[0]);
    let one = fleet.run(&["results", "--id", &some], b"").await;
    assert_eq!(json_lines(&one.stdout), [listed[0].clone()]);

    let status = fleet.run(&["status", "--json"], b"").await;
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["jobs"]["succeeded"], 50, "{status}");
    assert_eq!(status["finished_last_minute"], 50);
    assert_eq!(status["dead_letters"], 0);
    assert_eq!(status["workers"].as_array().unwrap().len(), 2);
    let table = text(&fleet.run(&["status"], b"").await.stdout);
    assert!(
        table.contains("jobs.small") && table.contains("50 succeeded"),
        "{table}"
    );

    // What analysts see is what happened, whichever hour the test began in.
    let count = |query| fleet.count(query);
    assert_eq!(count("select sum(jobs)::bigint from latency").await, 50);
    assert_eq!(count("select sum(jobs)::bigint from route_mix").await, 50);
    assert_eq!(
        count("select sum(computed)::bigint from cache_savings").await,
        40
    );
    assert_eq!(
        count("select sum(from_cache + shared)::bigint from cache_savings").await,
        10
    );
    assert_eq!(
        count("select sum(attempts)::bigint from attempt_outcomes where outcome = 'succeeded'")
            .await,
        40
    );
    assert_eq!(
        count("select sum(succeeded)::bigint from tenant_usage").await,
        50
    );
    let generated = count("select sum(completion_tokens)::bigint from tokens").await;
    assert_eq!(
        generated,
        count("select sum(completion_tokens)::bigint from jobs where source = 'computed'").await
    );
    assert!(router.stop().await.success());
    assert!(worker.stop().await.success());
}

#[tokio::test]
async fn concurrent_migrations_wait_for_each_other() {
    let fleet = TestFleet::bare();
    let runs = futures::future::join_all((0..3).map(|_| fleet.run(&["migrate"], b""))).await;
    let mut said: Vec<_> = runs.iter().map(|run| text(&run.stderr)).collect();
    assert!(runs.iter().all(|run| run.status.success()), "{said:?}");
    said.sort();
    assert_eq!(
        said.iter()
            .filter(|said| said.contains("up to date"))
            .count(),
        2,
        "{said:?}"
    );
    assert!(
        fleet
            .count("select count(*) from pg_inherits i where i.inhparent = 'jobs'::regclass")
            .await
            >= 2
    );
}

/// Roles without what they need end at once, with one line that says what is wrong.
#[tokio::test]
async fn a_role_that_cannot_start_prints_one_line() {
    let fleet = TestFleet::bare();
    let no_tables = fleet.run(&["route"], b"").await;
    complains(&no_tables, "promptyard migrate");
    let amqp = fleet.broker.url.expose().to_owned();
    let database = fleet.store.url.expose().to_owned();
    for role in ["route", "work", "serve", "up", "status"] {
        let at = |broker: &str, store: &str| {
            let mut command = promptyard();
            command.args([role, "--broker", broker, "--store", store]);
            command.args(["--set", &format!("store.schema={}", fleet.store.schema)]);
            command.args(["--set", &format!("broker.prefix={}", fleet.broker.prefix)]);
            if role != "status" {
                command.args(["--metrics-listen", "127.0.0.1:0"]);
            }
            command
        };
        let no_ledger = output(
            at(&amqp, "postgres://postgres:secret@127.0.0.1:1/postgres"),
            b"",
        )
        .await;
        complains(&no_ledger, "127.0.0.1:1");
        if role == "up" {
            assert!(fleet.run(&["migrate"], b"").await.status.success());
        }
        if ["up", "status"].contains(&role) {
            let no_broker = output(at("amqp://guest:secret@127.0.0.1:1/%2f", &database), b"").await;
            complains(&no_broker, "127.0.0.1:1");
        }
    }
}

fn complains(output: &std::process::Output, about: &str) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let lines: Vec<_> = said
        .lines()
        .filter(|line| !line.starts_with("note: "))
        .collect();
    assert_eq!(lines.len(), 1, "{said}");
    assert!(
        lines[0].starts_with("error: ") && lines[0].contains(about),
        "{said}"
    );
    assert!(!said.contains("secret"), "{said}");
}
