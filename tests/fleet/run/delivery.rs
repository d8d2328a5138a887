//! Cancellation, deadlines, scheduling, fair scheduling, access and TLS.

use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};

use crate::{
    run::{
        http::{get, post, send},
        roles::{Up, stop, up},
    },
    support::{
        poll::{PATIENCE, poll_blocking, until_blocking},
        workdir::Workdir,
    },
};

fn submit(up: &Up, body: &Value) -> String {
    let response = post(up.api, "/v1/jobs", body);
    assert_eq!(response.status, 202, "{response:?}");
    response.json()["id"].as_str().unwrap().to_owned()
}

fn job(up: &Up, id: &str) -> Value {
    let response = get(up.api, &format!("/v1/jobs/{id}"));
    assert_eq!(response.status, 200, "{response:?}");
    response.json()
}

/// Waits until a job is in a state.
fn until(up: &Up, id: &str, state: &str) -> Value {
    until_blocking(&format!("{id} to be {state}"), || {
        job(up, id)["state"] == state
    });
    job(up, id)
}

fn one_at_a_time<'a>(small: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec![
        "--small",
        small,
        "--large",
        "scripted:model=big",
        "--set",
        "router.threshold=1",
        "--set",
        "small.batch_max=1",
    ];
    arguments.extend(more);
    arguments
}

#[test]
fn a_cancelled_running_job_keeps_its_partial_answer() {
    let dir = Workdir::new();
    // A word every 50 ms.
    let up = up(&dir, &one_at_a_time("scripted:latency_ms=20000,echo", &[]));
    let running = submit(&up, &json!({"prompt": "word ".repeat(400)}));
    let waiting = submit(&up, &json!({"prompt": "another one"}));
    until(&up, &running, "running");
    let cancelled = post(up.api, &format!("/v1/jobs/{running}/cancel"), &json!({}));
    assert_eq!(cancelled.status, 200, "{cancelled:?}");
    assert_eq!(cancelled.json()["state"], "cancelled");
    assert_eq!(cancelled.json()["error"]["code"], "cancelled");
    // Its place is free within a second or two, not after its twenty.
    until(&up, &waiting, "running");
    until_blocking("the attempt to be closed", || {
        job(&up, &running)["history"][0]["outcome"] == "cancelled"
    });
    let ended = job(&up, &running);
    let attempt = &ended["history"][0];
    let words = attempt["answer"].as_str().unwrap_or_default();
    assert!(words.starts_with("word"), "a part is kept: {ended}");
    assert_eq!(
        (&ended["state"], &ended["response"]),
        (&json!("cancelled"), &Value::Null)
    );

    let all = post(
        up.api,
        "/v1/jobs/cancel",
        &json!({"ids": [running, waiting]}),
    );
    assert_eq!(all.json()["data"], json!([waiting]), "{all:?}");
    let again = post(up.api, &format!("/v1/jobs/{running}/cancel"), &json!({}));
    assert_eq!(again.status, 200, "{again:?}");
    let unknown = post(
        up.api,
        "/v1/jobs/0199f0a0-0000-7000-8000-000000000000/cancel",
        &json!({}),
    );
    unknown.is_error(404, "job_not_found");
    post(up.api, "/v1/jobs/cancel", &json!({})).is_error(400, "invalid_value");
    let done = submit(&up, &json!({"prompt": "x", "model": "large"}));
    until(&up, &done, "succeeded");
    post(up.api, &format!("/v1/jobs/{done}/cancel"), &json!({})).is_error(409, "job_ended");
    stop(up);
    assert_eq!(dir.number("select count(*) from queue_messages"), 0);
}

#[test]
fn a_batch_is_cancelled_by_name() {
    let dir = Workdir::new();
    let lines: String = (0..40)
        .map(|at| json!({"prompt": format!("line {at}")}).to_string() + "\n")
        .collect();
    dir.write("prompts", lines);
    let up = up(&dir, &one_at_a_time("scripted:latency_ms=300", &[]));
    let batch = dir
        .run(&["submit", "prompts"])
        .exits(0)
        .stdout
        .trim()
        .to_owned();
    dir.wait_for(3, "select count(*) from jobs where state = 'succeeded'");
    let done = dir.run(&["cancel", "--batch", &batch]).exits(0);
    let count = done.stdout.lines().count();
    assert!(count > 20, "{done}");
    done.complains(&format!("{count} cancelled"));
    dir.run(&["cancel", "--batch", &batch])
        .exits(0)
        .complains("0 cancelled");
    dir.run(&["cancel"]).exits(2).complains("--batch");
    until_blocking("every attempt to be closed", || {
        dir.number("select count(*) from attempts where outcome = 'running'") == 0
    });
    stop(up);
    let open = dir.number("select count(*) from jobs where finished_at is null");
    let jobs = dir.number("select count(*) from jobs where state in ('succeeded', 'cancelled')");
    assert_eq!((open, jobs), (0, 40));
}

#[test]
fn jobs_cancelled_before_routing_never_run() {
    let dir = Workdir::new();
    dir.write("prompts", "one\ntwo\nthree\n");
    let submit = ["submit", "prompts", "--batch", "early"];
    dir.run(&submit).exits(0);
    dir.run(&["cancel", "--batch", "early", "--tenant", "other"])
        .exits(0);
    dir.run(&["cancel", "--batch", "early"])
        .exits(0)
        .complains("0 cancelled");
    let up = up(&dir, &one_at_a_time("scripted:", &[]));
    dir.wait_for(3, "select count(*) from jobs where state = 'cancelled'");
    // The name may be used again.
    dir.write("others", "four\n");
    dir.run(&["submit", "others", "--batch", "early"]).exits(0);
    dir.wait_for(1, "select count(*) from jobs where state = 'succeeded'");
    stop(up);
    assert_eq!(dir.number("select count(*) from attempts"), 1);
}

#[test]
fn not_before_and_deadline_are_kept() {
    let dir = Workdir::new();
    let up = up(&dir, &one_at_a_time("scripted:latency_ms=10000", &[]));
    let start = Utc::now() + TimeDelta::seconds(3);
    let later = submit(
        &up,
        &json!({"prompt": "later", "model": "large", "promptyard": {"not_before": start.to_rfc3339()}}),
    );
    let late = submit(
        &up,
        &json!({"prompt": "too slow", "promptyard": {"deadline_ms": 2500}}),
    );
    until(&up, &late, "running");
    assert_eq!(job(&up, &later)["state"], "queued");
    let expired = until(&up, &late, "expired");
    assert_eq!(expired["error"]["code"], "deadline_passed");
    assert_eq!(expired["history"][0]["outcome"], "expired");
    assert!(expired["latency_ms"].as_i64().unwrap() < 9_000, "{expired}");
    let answered = until(&up, &later, "succeeded");
    let begun: chrono::DateTime<Utc> = answered["history"][0]["claimed_at"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(begun >= start, "{begun} {start}");
    for (field, wrong) in [
        ("not_before", json!("tomorrow")),
        ("not_before", json!("2999-01-01T00:00:00Z")),
        ("attempts_max", json!(0)),
    ] {
        let body = json!({"prompt": "a", "promptyard": {field: wrong}});
        post(up.api, "/v1/jobs", &body).is_error(400, "invalid_value");
    }
    stop(up);
}

#[test]
fn a_hung_engine_is_reopened_and_only_the_culprit_fails() {
    let dir = Workdir::new();
    let more = [
        "--set",
        "small.step_hang_s=1",
        "--set",
        "small.batch_max=4",
        "--set",
        "worker.attempts_max=2",
    ];
    let up = up(
        &dir,
        &one_at_a_time("scripted:latency_ms=100,hang=HANG", &more),
    );
    let culprit = submit(&up, &json!({"prompt": "a HANG here"}));
    let others: Vec<_> = (0..8)
        .map(|at| submit(&up, &json!({"prompt": format!("fine {at}")})))
        .collect();
    for other in &others {
        until(&up, other, "succeeded");
    }
    let given_up = until(&up, &culprit, "failed");
    assert_eq!(given_up["error"]["code"], "engine_crashed", "{given_up}");
    let history = given_up["history"].as_array().unwrap();
    assert_eq!(
        history.len(),
        3,
        "one in company does not count: {given_up}"
    );
    let letters = get(up.api, "/v1/dead").json();
    assert_eq!(letters["data"][0]["job"], json!(culprit), "{letters}");
    let redriven = post(
        up.api,
        "/v1/dead/redrive",
        &json!({"reason": "engine_crashed"}),
    );
    assert_eq!(redriven.json(), json!({"redriven": 1, "failed": 0}));
    post(up.api, "/v1/dead/discard", &json!({})).is_error(400, "missing_field");
    dir.wait_for(
        1,
        "select count(*) from dead_letters where resolution is null",
    );
    dir.run(&["dead", "discard", "--before", "1d"])
        .exits(0)
        .complains("0 discarded");
    let discarded = post(up.api, "/v1/dead/discard", &json!({"all": true}));
    assert_eq!(discarded.json(), json!({"discarded": 1}));
    stop(up);
}

#[test]
fn a_flood_of_one_tenant_does_not_delay_another() {
    let dir = Workdir::new();
    let more = [
        "--set",
        "small.batch_max=4",
        "--set",
        "router.window_jobs=8",
    ];
    let up = up(&dir, &one_at_a_time("scripted:latency_ms=100", &more));
    let body = |tenant: &str, at: usize| json!({"prompt": format!("{tenant} {at}"), "promptyard": {"tenant": tenant}});
    let lines: String = (0..400)
        .map(|at| body("flood", at).to_string() + "\n")
        .collect();
    dir.write("flood", lines);
    dir.run(&["submit", "flood"]).exits(0);
    dir.wait_for(
        1,
        "select count(*) from deferred_jobs where released_at is null",
    );
    for at in 0..3 {
        let id = submit(&up, &body("trickle", at));
        until(&up, &id, "succeeded");
    }
    let left =
        dir.number("select count(*) from jobs where tenant = 'flood' and finished_at is null");
    assert!(left > 100, "the flood is far from over: {left}");
    // Its own limit, said while the fleet runs, holds within moments.
    let said = dir
        .run(&[
            "tenant",
            "set",
            "flood",
            "--running-max",
            "1",
            "--weight",
            "2",
        ])
        .exits(0)
        .json();
    assert_eq!(
        (&said["running_max"], &said["weight"]),
        (&json!(1), &json!(2.0))
    );
    dir.run(&["tenant", "set", "flood", "--weight", "0"])
        .exits(2)
        .complains("above 0");
    let running = "select count(*) from jobs where tenant = 'flood' and state = 'running'";
    let mut in_a_row = 0;
    until_blocking("the limit to hold in 40 polls in a row", || {
        in_a_row = if dir.number(running) <= 1 {
            in_a_row + 1
        } else {
            0
        };
        in_a_row == 40
    });
    dir.run(&["tenant", "reset", "flood"]).exits(0);
    dir.run(&["tenant", "list"]).exits(0).complains("defaults");
    dir.wait_for(
        400,
        "select count(*) from jobs where tenant = 'flood' and state = 'succeeded'",
    );
    stop(up);
}

#[test]
fn deferred_jobs_are_limited_and_the_queue_refuses_more() {
    let dir = Workdir::new();
    let more = [
        "--set",
        "router.window_jobs=1",
        "--set",
        "router.deferred_max=20",
        "--set",
        "broker.queue_messages_max=30",
    ];
    let up = up(&dir, &one_at_a_time("scripted:latency_ms=60000", &more));
    let mut accepted = 0;
    let refused = poll_blocking(PATIENCE, || {
        let body = json!({"prompt": format!("number {accepted}")});
        let response = post(up.api, "/v1/jobs", &body);
        accepted += 1;
        assert!(accepted < 2000, "every job is accepted");
        (response.status != 202).then_some(response)
    });
    let refused = refused.expect("a job is refused");
    refused.is_error(429, "queue_full");
    assert!(
        refused.headers.to_lowercase().contains("\r\nretry-after: "),
        "{refused:?}"
    );
    let held = dir.number("select count(*) from deferred_jobs where released_at is null");
    assert!((20..1000).contains(&held), "{held}");
    up.end();
}

#[test]
fn a_job_without_its_message_is_rescued() {
    let dir = Workdir::new();
    dir.write("prompts", "{\"prompt\":\"one\"}\n");
    let up = up(
        &dir,
        &one_at_a_time("scripted:", &["--set", "router.stuck_after_s=2"]),
    );
    let id = submit(&up, &json!({"prompt": "first"}));
    until(&up, &id, "succeeded");
    stop(up);
    // As if a producer had died between writing its job and publishing it.
    dir.execute(
        "insert into jobs (id, tenant, state, submitted_at, digest)
         select x'0199f0a0000070008000000000000001', tenant, 'queued', submitted_at, digest from jobs;
         insert into requests select x'0199f0a0000070008000000000000001', request from requests;",
    );
    let up = crate::run::roles::up(
        &dir,
        &one_at_a_time("scripted:", &["--set", "router.stuck_after_s=2"]),
    );
    until(&up, "0199f0a0-0000-7000-8000-000000000001", "succeeded");
    stop(up);
}

#[test]
fn key_scopes_are_enforced() {
    let dir = Workdir::new();
    let up = up(
        &dir,
        &one_at_a_time("scripted:", &["--set", "api.keys=true"]),
    );
    let key = |arguments: &[&str]| {
        let made = dir.run(&[&["key", "create"], arguments].concat()).exits(0);
        made.stdout.trim().to_owned()
    };
    let acme = key(&["--name", "acme", "--tenant", "acme", "--expires", "90d"]);
    let reader = key(&["--name", "reader", "--scopes", "read"]);
    let admin = key(&["--name", "admin", "--scopes", "submit,read,admin"]);
    let with = |key: &str| format!("Authorization: Bearer {key}\r\n");
    let ask = |key: &str, method: &str, path: &str, body: &Value| {
        send(
            up.api,
            method,
            path,
            &with(key),
            body.to_string().as_bytes(),
        )
        .unwrap()
    };
    let prompt = json!({"prompt": "hello"});
    send(up.api, "POST", "/v1/jobs", "", b"{}")
        .unwrap()
        .is_error(401, "missing_api_key");
    ask("pyk_wrong", "POST", "/v1/jobs", &prompt).is_error(401, "invalid_api_key");
    ask(&reader, "POST", "/v1/chat/completions", &prompt).is_error(403, "scope_missing");
    let own = ask(&acme, "POST", "/v1/jobs", &prompt).json();
    assert_eq!(
        own["tenant"], "acme",
        "the key's tenant goes without saying"
    );
    let id = own["id"].as_str().unwrap();
    until_blocking("the answer", || {
        ask(&acme, "GET", &format!("/v1/jobs/{id}"), &json!(null)).json()["state"] == "succeeded"
    });
    assert_eq!(dir.column("select distinct tenant from jobs"), ["acme"]);
    let other = json!({"prompt": "hello", "promptyard": {"tenant": "other"}});
    ask(&acme, "POST", "/v1/jobs", &other).is_error(403, "tenant_forbidden");
    let foreign = ask(&admin, "POST", "/v1/jobs", &other).json();
    let foreign = foreign["id"].as_str().unwrap();
    for (method, path) in [
        ("GET", format!("/v1/jobs/{foreign}")),
        ("POST", format!("/v1/jobs/{foreign}/cancel")),
        ("POST", format!("/v1/jobs/{foreign}/feedback")),
    ] {
        ask(&acme, method, &path, &json!({"score": 1})).is_error(404, "job_not_found");
    }
    let none = ask(&acme, "POST", "/v1/jobs/cancel", &json!({"ids": [foreign]}));
    assert_eq!(none.json()["cancelled"], 0);
    assert_eq!(
        ask(&reader, "GET", &format!("/v1/jobs/{foreign}"), &json!(null)).status,
        200
    );
    for path in ["/v1/dead", "/v1/tenants"] {
        ask(&acme, "GET", path, &json!(null)).is_error(403, "scope_missing");
        assert_eq!(ask(&admin, "GET", path, &json!(null)).status, 200);
    }
    let limit = json!({"requests_per_minute": 2});
    assert_eq!(ask(&admin, "PUT", "/v1/tenants/acme", &limit).status, 200);
    let refused = poll_blocking(PATIENCE, || {
        let response = ask(&acme, "POST", "/v1/jobs", &prompt);
        (response.status != 202).then_some(response)
    });
    let refused = refused.expect("the limit holds within seconds");
    refused.is_error(429, "rate_limited");
    assert!(
        refused.headers.to_lowercase().contains("\r\nretry-after: "),
        "{refused:?}"
    );

    let listed = dir.run(&["key", "list", "--json"]).exits(0);
    assert!(
        !listed.stdout.contains(&acme) && listed.stdout.lines().count() == 3,
        "{listed}"
    );
    let first: Value = serde_json::from_str(listed.stdout.lines().next().unwrap()).unwrap();
    dir.run(&["key", "revoke", first["id"].as_str().unwrap()])
        .exits(0);
    until_blocking("the key to be refused", || {
        ask(&acme, "GET", "/v1/dead", &json!(null)).status == 401
    });
    dir.run(&["key", "revoke", first["id"].as_str().unwrap()])
        .exits(1);
    stop(up);
}

#[test]
fn http_is_served_over_tls() {
    let dir = Workdir::new();
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tls");
    let (cert, key) = (
        format!("api.tls_cert={fixtures}/cert.pem"),
        format!("api.tls_key={fixtures}/key.pem"),
    );
    let missing = format!("api.tls_key={fixtures}/none.pem");
    let engines = [
        "up",
        "--small",
        "scripted:",
        "--large",
        "scripted:",
        "--listen",
        "127.0.0.1:0",
    ];
    for (more, told) in [
        (vec!["--set", &cert], "set together"),
        (vec!["--set", &cert, "--set", &missing], "none.pem"),
    ] {
        dir.run(&[&engines[..], &more].concat())
            .exits(1)
            .complains(told);
    }
    let up = up(
        &dir,
        &one_at_a_time("scripted:echo", &["--set", &cert, "--set", &key]),
    );
    let chain = std::fs::read(format!("{fixtures}/cert.pem")).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let answer = runtime.block_on(async {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(&chain).unwrap()])
            .build()
            .unwrap();
        let url = format!("https://{}/v1/chat/completions", up.api);
        let sent = client
            .post(url)
            .json(&json!({"prompt": "over TLS"}))
            .send()
            .await;
        sent.unwrap().json::<Value>().await.unwrap()
    });
    assert_eq!(answer["choices"][0]["message"]["content"], "over TLS");
    stop(up);
}

#[test]
fn chaos_command_checks_a_fleet() {
    let dir = Workdir::new();
    let up = up(
        &dir,
        &one_at_a_time(
            "scripted:latency_ms=20,jitter_ms=20",
            &["--set", "small.batch_max=8"],
        ),
    );
    let pid = up.id();
    let hurt = format!("kill -s STOP {pid}; sleep 0.2; kill -s CONT {pid}");
    let done = dir.run(&[
        "chaos", "--jobs", "60", "--rate", "40", "--every", "1s", "--seed", "7", "--json",
        "--hurt", &hurt, "--hurt", "false",
    ]);
    let report = done.exits(0).complains("seed 7").json();
    assert_eq!(report["states"], json!({"succeeded": 60}), "{report}");
    assert_eq!(report["violations"], json!([]), "{report}");
    assert!(report["commands"].as_u64().unwrap() >= 1, "{report}");
    stop(up);
    // Nobody runs the jobs: they stay open, and that is told.
    let done = dir
        .run(&["chaos", "--jobs", "3", "--rate", "50", "--wait", "1s"])
        .exits(1);
    assert!(done.stdout.contains("VIOLATION"), "{done}");
}
