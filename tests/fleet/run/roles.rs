//! `up` with its HTTP interface, and the commands that work beside it on the same database.

use std::{net::SocketAddr, thread};

use serde_json::{Value, json};

use crate::{
    run::http::{get, post, send},
    support::{
        poll::until_blocking,
        workdir::{Process, Workdir, by_name, text},
    },
};

/// A fleet in one process, with the addresses that it told.
pub struct Up {
    process: Process,
    pub api: SocketAddr,
    metrics: SocketAddr,
}

/// Starts `up` on free ports and waits until it is ready.
pub fn up(dir: &Workdir, more: &[&str]) -> Up {
    let arguments = [
        "up",
        "--listen",
        "127.0.0.1:0",
        "--metrics-listen",
        "127.0.0.1:0",
        "--log-format",
        "json",
    ];
    let mut process = dir.start(&[&arguments[..], more].concat());
    let mut line = Value::Null;
    until_blocking("the line that tells the addresses", || {
        assert!(!process.has_ended(), "{}", process.stderr());
        let said = process.stderr();
        let found = said
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|line| line["message"] == "running");
        line = found.unwrap_or_default();
        !line.is_null()
    });
    let address = |field: &str| {
        let shown = line[field].as_str().unwrap();
        shown
            .trim_start_matches("Some(")
            .trim_end_matches(')')
            .parse()
            .unwrap()
    };
    let up = Up {
        process,
        api: address("api"),
        metrics: address("metrics"),
    };
    until_blocking("readiness", || get(up.metrics, "/readyz").status == 200);
    up
}

impl Up {
    /// The process's id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The value of a metric without labels, once it has one.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let metrics = get(self.metrics, "/metrics").body;
        metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    /// What it said on standard error so far.
    pub fn said(&self) -> String {
        self.process.stderr()
    }

    /// Kills it with SIGKILL.
    pub fn end(self) {
        self.process.kill();
    }
}

fn fast(dir: &Workdir) -> Up {
    up(
        dir,
        &[
            "--small",
            "scripted:echo",
            "--large",
            "scripted:model=big,echo",
        ],
    )
}

pub fn stop(up: Up) {
    up.process.signal("TERM");
    up.process.wait().exits(0);
}

#[test]
fn http_answers_as_openai_does_and_keeps_the_job() {
    let dir = Workdir::new();
    let up = fast(&dir);
    let body = json!({"model": "auto", "messages": [{"role": "user", "content": "Hello there"}]});
    let response = post(up.api, "/v1/chat/completions", &body);
    assert_eq!(response.status, 200, "{response:?}");
    let completion = response.json();
    assert_eq!(completion["object"], "chat.completion");
    assert_eq!(
        completion["choices"][0]["message"]["content"],
        "Hello there"
    );
    assert_eq!(completion["choices"][0]["finish_reason"], "stop");
    assert_eq!(completion["usage"]["total_tokens"], 4);
    let job = completion["promptyard"]["job_id"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        response
            .headers
            .contains(&format!("x-promptyard-job-id: {job}")),
        "{response:?}"
    );

    let shown = get(up.api, &format!("/v1/jobs/{job}")).json();
    assert_eq!(
        (&shown["id"], &shown["state"]),
        (&json!(job), &json!("succeeded"))
    );
    assert_eq!(shown["history"].as_array().unwrap().len(), 1, "{shown}");
    assert_eq!(shown["response"]["choices"], completion["choices"]);

    let key = "Idempotency-Key: order-1\r\n";
    let submit = |prompt: &str| {
        let body = json!({"prompt": prompt}).to_string();
        send(up.api, "POST", "/v1/jobs", key, body.as_bytes()).unwrap()
    };
    let first = submit("once");
    assert!([200, 202].contains(&first.status), "{first:?}");
    let id = first.json()["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/jobs/{id}");
    until_blocking("the job's end", || {
        get(up.api, &path).json()["state"] == "succeeded"
    });
    let second = submit("once");
    assert_eq!(
        (second.status, second.json()["id"].as_str()),
        (200, Some(&*id))
    );
    submit("something else").is_error(409, "idempotency_key_reused");
    assert_eq!(dir.number("select count(*) from jobs"), 2);
    stop(up);
}

#[test]
fn http_refuses_as_openai_does() {
    let dir = Workdir::new();
    let up = up(
        &dir,
        &[
            "--small",
            "scripted:context=10",
            "--large",
            "scripted:model=big,context=10",
        ],
    );
    let chat = "/v1/chat/completions";
    let raw = |body: &[u8]| send(up.api, "POST", chat, "", body).unwrap();
    raw(b"{").is_error(400, "invalid_json");
    raw(b"").is_error(400, "invalid_json");
    raw(b"\xff\xfe").is_error(400, "invalid_utf8");
    raw(&vec![b'x'; 20 << 20]).is_error(413, "body_too_large");
    post(up.api, chat, &json!({"prompt": ""})).is_error(400, "empty_prompt");
    post(up.api, chat, &json!({"prompt": "a", "max_tokens": -1})).is_error(400, "invalid_value");
    post(up.api, chat, &json!({"prompt": "a", "model": "gpt-17"})).is_error(404, "model_not_found");
    post(up.api, chat, &json!({"prompt": vec!["w"; 20].join(" ")}))
        .is_error(400, "context_length_exceeded");
    get(up.api, "/v1/nothing").is_error(404, "not_found");
    get(up.api, "/v1/jobs/seven").is_error(404, "job_not_found");
    get(up.api, "/v1/jobs/01a20a00-5046-76c8-a691-5caeb76282ef").is_error(404, "job_not_found");
    get(up.api, chat).is_error(405, "method_not_allowed");
    let long = format!("Idempotency-Key: {}\r\n", "k".repeat(300));
    let refused = send(up.api, "POST", "/v1/jobs", &long, br#"{"prompt":"a"}"#).unwrap();
    refused.is_error(400, "invalid_value");
    assert_eq!(get(up.metrics, "/healthz").status, 200);
    stop(up);
}

#[test]
fn other_processes_submit_and_read_while_it_runs() {
    let dir = Workdir::new();
    let up = fast(&dir);
    let lines: String = (0..20)
        .map(|at| {
            format!("{{\"custom_id\":\"q{at}\",\"body\":{{\"prompt\":\"question {at}\"}}}}\n")
        })
        .collect();
    dir.write("prompts", lines + "{\"prompt\":\n");
    let submit = ["submit", "prompts", "--batch", "night"];
    let first = dir
        .run(&submit)
        .exits(1)
        .complains("line 21 not submitted")
        .complains("20 submitted, 1 failed");
    assert_eq!(first.stdout, "night\n");
    dir.wait_for(20, "select count(*) from jobs where state = 'succeeded'");
    dir.run(&submit).exits(1);
    let results = dir
        .run(&["results", "--batch", "night", "--since", "1h"])
        .exits(0);
    let answers = by_name(&results.stdout);
    assert_eq!(answers.len(), 20);
    assert_eq!(text(&answers["q7"]), "question 7");
    assert_eq!(dir.run(&["results", "--batch", "day"]).exits(0).stdout, "");
    let id = answers["q7"]["id"].as_str().unwrap();
    let one = dir.run(&["results", "--id", id]).exits(0);
    assert_eq!(one.json()["custom_id"], "q7");

    let follow = dir.start(&["results", "--follow", "--batch", "late"]);
    dir.write("late", "a late one\n");
    dir.run(&["submit", "late", "--batch", "late"]).exits(0);
    until_blocking("the late answer", || follow.stdout().lines().count() == 1);
    assert_eq!(text(&by_name(&follow.stdout())["1"]), "a late one");
    follow.signal("INT");
    follow.wait().exits(0);

    let status = dir.run(&["status", "--json"]).exits(0).json();
    assert_eq!(
        status["jobs"]["succeeded"], 21,
        "the batch was submitted twice and ran once: {status}"
    );
    assert_eq!(status["workers"].as_array().unwrap().len(), 2, "{status}");
    let shown = dir.run(&["status"]).exits(0).stdout;
    assert!(
        shown.contains("jobs.small") && shown.contains("21 succeeded"),
        "{shown}"
    );
    dir.run(&["migrate"]).exits(0).complains("up to date");
    stop(up);
}

#[test]
fn a_stopping_worker_returns_unstarted_jobs_and_finishes_the_rest() {
    let dir = Workdir::new();
    let slow = "scripted:latency_ms=1500";
    let up = up(
        &dir,
        &[
            "--small",
            slow,
            "--large",
            slow,
            "--set",
            "small.batch_max=3",
            "--set",
            "router.threshold=1",
        ],
    );
    let lines: String = (0..12).map(|at| format!("question {at}\n")).collect();
    dir.write("prompts", lines);
    dir.run(&["submit", "prompts", "--batch", "b"]).exits(0);
    dir.wait_for(3, "select count(*) from attempts where outcome = 'running'");
    let waiting = thread::spawn(move || {
        post(
            up.api,
            "/v1/chat/completions",
            &json!({"prompt": "one more", "model": "large"}),
        )
    });
    dir.wait_for(4, "select count(*) from attempts");
    up.process.signal("TERM");
    let mut told = false;
    until_blocking("`draining` on /readyz", || {
        let response = send(up.metrics, "GET", "/readyz", "", b"");
        told |= response.is_ok_and(|r| r.status == 503 && r.body.contains("draining"));
        told
    });
    let done = up.process.wait().exits(0);
    assert_eq!(
        waiting.join().unwrap().status,
        200,
        "an open request gets its answer: {done}"
    );
    let outcomes = dir.column("select distinct outcome from attempts");
    assert_eq!(outcomes, ["succeeded"], "what ran has finished: {done}");
    let succeeded = dir.number("select count(*) from jobs where state = 'succeeded'");
    assert!((4..13).contains(&succeeded), "{succeeded} of 13");
    let open = dir.number("select count(*) from jobs where finished_at is null");
    let messages = dir.number("select count(*) from queue_messages where claimed = 0");
    assert_eq!(
        (open, messages),
        (13 - succeeded, 13 - succeeded),
        "the rest waits in the queue"
    );

    let again = fast(&dir);
    dir.wait_for(13, "select count(*) from jobs where state = 'succeeded'");
    stop(again);
}

#[test]
fn a_waiting_request_does_not_delay_shutdown() {
    let dir = Workdir::new();
    let slow = "scripted:latency_ms=60000";
    let up = up(
        &dir,
        &[
            "--small",
            slow,
            "--large",
            slow,
            "--set",
            "worker.drain_s=1",
        ],
    );
    let body = json!({"prompt": "not today"});
    let waiting = thread::spawn(move || post(up.api, "/v1/chat/completions", &body));
    dir.wait_for(1, "select count(*) from attempts");
    up.process.signal("TERM");
    let done = up.process.wait().exits(0);
    let response = waiting.join().unwrap();
    response.is_error(503, "answer_pending");
    let job = dir.column("select state from jobs");
    assert_eq!(job, ["routed"], "the job goes on later: {done}");
    let attempt = dir.column("select outcome from attempts");
    assert_eq!(attempt, ["returned"]);
}

#[test]
fn metrics_are_served_and_prompts_stay_out_of_metrics_and_logs() {
    let dir = Workdir::new();
    const MARKER: &str = "xylophonequartz";
    let up = up(
        &dir,
        &[
            "--log",
            "trace",
            "--small",
            "scripted:echo,poison=BOOM,context=30,unsure=doubtful",
            "--large",
            "scripted:model=big,echo",
            "--set",
            "worker.attempts_max=2",
            "--set",
            "router.threshold=1",
        ],
    );
    let chat = "/v1/chat/completions";
    let good = post(up.api, chat, &json!({"prompt": format!("say {MARKER}")}));
    assert_eq!(good.status, 200, "{good:?}");
    let escalated = post(
        up.api,
        chat,
        &json!({"prompt": format!("doubtful {MARKER}")}),
    );
    assert_eq!(escalated.status, 200, "{escalated:?}");
    for bad in [
        json!({"prompt": MARKER, "max_tokens": -1}),
        json!({"prompt": format!("BOOM {MARKER}")}),
        json!({"prompt": vec![MARKER; 40].join(" ")}),
        json!({"prompt": MARKER, "model": "none"}),
        json!({MARKER: 1}),
    ] {
        post(up.api, chat, &bad);
    }
    let broken = format!("{{\"prompt\": \"{MARKER}\"");
    send(up.api, "POST", chat, "", broken.as_bytes()).unwrap();
    dir.write(
        "prompts",
        format!("{MARKER} by file\n{{\"prompt\": 1, \"x\": \"{MARKER}\"}}\n"),
    );
    let submitted = dir.run(&["submit", "prompts", "--log", "trace"]).exits(1);
    dir.wait_for(3, "select count(*) from jobs where state = 'succeeded'");
    let metrics = get(up.metrics, "/metrics").body;
    let missing: Vec<_> = promptyard::metrics::ALL
        .iter()
        .map(|metric| metric.name)
        .filter(|name| !metrics.contains(name))
        .filter(|name| !RARE.contains(name))
        .collect();
    assert!(missing.is_empty(), "no samples of {missing:?}:\n{metrics}");
    assert!(!metrics.contains(MARKER), "{metrics}");
    let running = "promptyard_jobs_finished_total{state=\"succeeded\",source=\"computed\"} ";
    assert!(metrics.contains(running), "{metrics}");
    up.process.signal("TERM");
    let ran = dir
        .answer("prompts", &["--log", "trace", "--ledger", "other.db"])
        .exits(1);
    assert!(ran.stderr.contains("DEBUG"), "{ran}");
    let stopped = up.process.wait().exits(0);
    let logs = [stopped.stderr, submitted.stderr, ran.stderr].concat();
    assert!(logs.lines().count() > 20, "{logs}");
    let leaks: Vec<_> = logs.lines().filter(|line| line.contains(MARKER)).collect();
    assert!(leaks.is_empty(), "{leaks:?}");
}

/// Metrics that have no sample in an embedded fleet with scripted engines to which nothing happens.
const RARE: [&str; 20] = [
    promptyard::metrics::ENGINE_RESTARTS,
    promptyard::metrics::RECONNECTED,
    promptyard::metrics::REPLIES_LOST,
    promptyard::metrics::STORE_ERRORS,
    promptyard::metrics::ENGINE_STEPS,
    promptyard::metrics::STEP_SECONDS,
    promptyard::metrics::STEP_SEQUENCES,
    promptyard::metrics::ENGINE_WAITING,
    promptyard::metrics::STEP_TOKENS,
    promptyard::metrics::KV_BLOCKS_USED,
    promptyard::metrics::PREEMPTED,
    promptyard::metrics::UPSTREAM_LIMIT,
    promptyard::metrics::UPSTREAM_RUNNING,
    promptyard::metrics::UPSTREAM_THROTTLED,
    promptyard::metrics::STOLEN,
    promptyard::metrics::SEMANTIC_LOOKUPS,
    promptyard::metrics::SEMANTIC_SECONDS,
    promptyard::metrics::SEMANTIC_QUESTIONS,
    promptyard::metrics::SEMANTIC_CHECKS,
    promptyard::metrics::SEMANTIC_RECHECKS,
];
