//! Malformed messages: each ends as a row or a dead letter with a reason, the reply
//! says it, and nothing comes round again.

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use serde_json::Value;

use crate::{
    producer::Producer,
    support::fleet::{TestFleet, json_lines, text},
};

/// A name, a body, and the code of the error that it must get; an empty code is an answer.
fn bodies() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let mut large = br#"{"prompt": ""#.to_vec();
    large.resize(20 << 20, b'a');
    large.extend(br#""}"#);
    let text = |body: &str| body.as_bytes().to_vec();
    vec![
        ("no json", text("{\"prompt\": "), "invalid_json"),
        ("empty", Vec::new(), "invalid_json"),
        (
            "not utf-8",
            b"{\"prompt\": \"\xff\xfe\"}".to_vec(),
            "invalid_utf8",
        ),
        ("a list", text("[1, 2]"), "invalid_type"),
        ("wrong type", text(r#"{"prompt": 7}"#), "invalid_type"),
        (
            "wrong number",
            text(r#"{"prompt": "a", "temperature": "hot"}"#),
            "invalid_value",
        ),
        (
            "negative",
            text(r#"{"prompt": "a", "max_completion_tokens": -1}"#),
            "invalid_value",
        ),
        ("no prompt", text(r#"{"model": "auto"}"#), "missing_field"),
        ("empty prompt", text(r#"{"prompt": ""}"#), "empty_prompt"),
        ("large", large, "body_too_large"),
        (
            "unknown model",
            text(r#"{"prompt": "a", "model": "gpt-9"}"#),
            "model_not_found",
        ),
        (
            "unknown option",
            text(r#"{"prompt": "a", "promptyard": {"fast": true}}"#),
            "unknown_field",
        ),
        (
            "expired",
            text(r#"{"prompt": "a", "promptyard": {"deadline_ms": 0}}"#),
            "deadline_passed",
        ),
        (
            "too long",
            text(&format!(r#"{{"prompt": "{}"}}"#, "word ".repeat(200))),
            "context_length_exceeded",
        ),
        ("nul in prompt", text(r#"{"prompt": "a\u0000b"}"#), ""),
        (
            "nul in name",
            text(r#"{"custom_id": "c\u0000d", "body": {"prompt": "a"}}"#),
            "",
        ),
        (
            "nul in tenant",
            text(r#"{"prompt": "a", "promptyard": {"tenant": "t\u0000"}}"#),
            "invalid_value",
        ),
    ]
}

fn code(reply: &Value) -> &str {
    reply["error"]["code"].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_messages_end_with_a_reason() {
    let fleet = TestFleet::new().await;
    let engine = "scripted:echo,context=100";
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
    // Declares the queues, and goes: expirations need nobody that consumes.
    let broker = fleet.connect().await;
    let mut producer = Producer::new(&fleet).await;
    let soon = producer.asking("expiration").with_expiration("1".into());
    let prompt = br#"{"prompt": "a"}"#.to_vec();
    producer
        .publish("jobs.in", vec![(soon, prompt.clone())])
        .await;
    let router = fleet.start(&["route"]).await;
    assert_eq!(
        code(&producer.replies(1).await["expiration"]),
        "deadline_passed"
    );

    let cases = bodies();
    let messages = cases
        .iter()
        .map(|(name, body, _)| (producer.asking(name), body.clone()));
    producer.publish("jobs.in", messages.collect()).await;
    let replies = producer.replies(cases.len()).await;
    let got: Vec<_> = cases
        .iter()
        .map(|(name, ..)| (*name, code(&replies[*name])))
        .collect();
    let wanted: Vec<_> = cases.iter().map(|(name, _, code)| (*name, *code)).collect();
    assert_eq!(got, wanted);
    for (name, _, wanted) in &cases {
        let reply = &replies[*name];
        let message = reply["error"]["message"].as_str().unwrap_or_default();
        assert_eq!(message.is_empty(), wanted.is_empty(), "{name}: {reply}");
        let status = reply["response"]["status_code"].as_u64().unwrap();
        assert_eq!(status == 200, wanted.is_empty(), "{name}: {reply}");
    }

    // Odd properties on good bodies.
    let nul = producer.asking("nul\0").with_message_id("key\0".into());
    let urgent = producer
        .asking("urgent")
        .with_priority(9)
        .with_expiration("60000".into());
    let mut marked = FieldTable::default();
    marked.insert(
        "promptyard-routed".into(),
        AMQPValue::LongString("1".into()),
    );
    marked.insert(
        "promptyard-job-id".into(),
        AMQPValue::LongString("no id".into()),
    );
    let odd = vec![
        (
            producer.asking("first").with_message_id("same".into()),
            prompt.clone(),
        ),
        (nul, prompt.clone()),
        (urgent, prompt.clone()),
        (
            producer.asking("marked").with_headers(marked),
            prompt.clone(),
        ),
        (
            BasicProperties::default()
                .with_reply_to("no-such-queue".into())
                .with_message_id("gone".into()),
            prompt.clone(),
        ),
    ];
    producer.publish("jobs.in", odd).await;
    let replies = producer.replies(4).await;
    assert!(
        replies.values().all(|reply| code(reply).is_empty()),
        "{replies:?}"
    );
    let reused = vec![
        (
            producer.asking("same again").with_message_id("same".into()),
            prompt.clone(),
        ),
        (
            producer.asking("another").with_message_id("same".into()),
            br#"{"prompt": "b"}"#.to_vec(),
        ),
    ];
    producer.publish("jobs.in", reused).await;
    let replies = producer.replies(2).await;
    assert_eq!(code(&replies["same again"]), "");
    assert_eq!(code(&replies["another"]), "idempotency_key_reused");
    fleet
        .until_count(
            "select count(*) from jobs where key = 'gone' and state = 'succeeded'",
            1,
        )
        .await;

    // Messages where only the fleet itself may publish.
    for queue in ["jobs.small", "jobs.large", "jobs.dead", "jobs.retry.1s"] {
        let garbage = BasicProperties::default().with_message_id(queue.into());
        producer
            .publish(queue, vec![(garbage, b"\xffgarbage\0".to_vec())])
            .await;
    }
    fleet
        .until_count("select count(*) from dead_letters", 3)
        .await;
    // What rested comes back as any message does, and is refused as one.
    fleet
        .until_count(
            "select count(*) from jobs where key = 'jobs.retry.1s' and state = 'rejected'",
            1,
        )
        .await;
    let open = "select count(*) from jobs where finished_at is null";
    assert_eq!(fleet.count(open).await, 0);
    let without_reason = "select count(*) from jobs
        where state <> 'succeeded' and (reason_code is null or length(reason_message) < 10)";
    assert_eq!(fleet.count(without_reason).await, 0);

    letters(&fleet).await;
    assert!(router.stop().await.success());
    assert!(worker.stop().await.success());
    broker.close().await;
    fleet.queues_are_empty().await;
}

/// Dead letters are listed, one is redriven and the others are discarded.
async fn letters(fleet: &TestFleet) {
    let listed = fleet.run(&["dead", "list", "--json"], b"").await;
    let letters = json_lines(&listed.stdout);
    assert_eq!(letters.len(), 3, "{letters:?}");
    assert!(
        letters
            .iter()
            .all(|letter| letter["reason"]["code"] == "unreadable")
    );
    let id = letters[0]["id"].as_str().unwrap();
    let shown = fleet.run(&["dead", "show", id], b"").await;
    assert!(
        text(&shown.stdout).contains("garbage"),
        "{}",
        text(&shown.stdout)
    );
    let before = fleet.count("select count(*) from jobs").await;
    let redriven = fleet.run(&["dead", "redrive", id], b"").await;
    assert!(redriven.status.success(), "{}", text(&redriven.stderr));
    fleet
        .until_count(
            "select count(*) from jobs where reason_code = 'invalid_utf8'",
            3,
        )
        .await;
    assert_eq!(fleet.count("select count(*) from jobs").await, before + 1);
    let discarded = fleet.run(&["dead", "discard", "--all"], b"").await;
    assert!(
        text(&discarded.stderr).contains("2 discarded"),
        "{}",
        text(&discarded.stderr)
    );
    let table = fleet.run(&["dead", "list"], b"").await;
    assert!(text(&table.stderr).contains("no dead letters"));
}
