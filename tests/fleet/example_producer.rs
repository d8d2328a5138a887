//! examples/producer.py does what producers are told to copy: run for real against RabbitMQ, with a
//! stand-in for the fleet, so that refusals and silence can be had at will.

use std::{
    path::Path,
    process::{Command, Output},
};

use futures::StreamExt;
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind,
    options::{
        BasicConsumeOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions,
        QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::servers::{amqp_url, python};

/// Runs the producer on a thread of its own, so that the stand-in can answer meanwhile.
async fn produce(arguments: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = python();
    let mut command = Command::new(&python);
    command
        .arg(root.join("examples/producer.py"))
        .args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output());
    output
        .await
        .unwrap()
        .unwrap_or_else(|error| panic!("cannot run {python} ({error}): use ./scripts/test"))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The fleet's exchange under a prefix of this test's own, with one queue bound to it. Both vanish
/// with the connection.
struct StandIn {
    prefix: String,
    queue: String,
    channel: Channel,
    _connection: Connection,
}

impl StandIn {
    async fn new(routing_key: &str, arguments: FieldTable) -> Self {
        let url = amqp_url();
        let connection = Connection::connect(&url, ConnectionProperties::default())
            .await
            .unwrap_or_else(|error| panic!("RabbitMQ does not answer at {url}: {error}"));
        let channel = connection.create_channel().await.unwrap();
        let prefix = format!("producer-{}.", Uuid::now_v7());
        let exchange = format!("{prefix}promptyard");
        let options = ExchangeDeclareOptions {
            auto_delete: true,
            ..Default::default()
        };
        channel
            .exchange_declare(
                exchange.as_str().into(),
                ExchangeKind::Direct,
                options,
                FieldTable::default(),
            )
            .await
            .unwrap();
        let queue = format!("{prefix}jobs.in");
        let options = QueueDeclareOptions {
            exclusive: true,
            ..Default::default()
        };
        channel
            .queue_declare(queue.as_str().into(), options, arguments)
            .await
            .unwrap();
        channel
            .queue_bind(
                queue.as_str().into(),
                exchange.as_str().into(),
                routing_key.into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .unwrap();
        Self {
            prefix,
            queue,
            channel,
            _connection: connection,
        }
    }

    /// Takes `count` jobs and answers each with the status that its body asks for; returns what came.
    async fn answer(&self, count: usize) -> Vec<(BasicProperties, Value)> {
        let options = BasicConsumeOptions {
            no_ack: true,
            ..Default::default()
        };
        let consumer = self.channel.basic_consume(
            self.queue.as_str().into(),
            "".into(),
            options,
            FieldTable::default(),
        );
        let mut consumer = consumer.await.unwrap();
        let mut came = Vec::new();
        while came.len() < count {
            let delivery = consumer.next().await.unwrap().unwrap();
            let body: Value = serde_json::from_slice(&delivery.data).unwrap();
            let status = body["seed"].as_u64().unwrap_or(200);
            let line = json!({"id": "x", "custom_id": null, "error": null,
                "response": {"status_code": status, "body": {"asked": body}}});
            let sent = delivery.properties;
            let reply = BasicProperties::default()
                .with_correlation_id(sent.correlation_id().clone().unwrap());
            self.channel
                .basic_publish(
                    "".into(),
                    sent.reply_to().clone().unwrap(),
                    BasicPublishOptions::default(),
                    line.to_string().as_bytes(),
                    reply,
                )
                .await
                .unwrap();
            came.push((sent, body));
        }
        came
    }
}

#[tokio::test]
async fn prints_an_answer_for_every_prompt() {
    let fleet = StandIn::new("jobs.in", FieldTable::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompts");
    std::fs::write(
        &file,
        "{\"prompt\": \"three\", \"max_tokens\": 3}\n\nfour – plain text\n",
    )
    .unwrap();
    let url = amqp_url();
    let arguments = [
        "--url",
        &url,
        "--prefix",
        &fleet.prefix,
        "--key",
        "run-1",
        "--file",
        file.to_str().unwrap(),
        "--timeout",
        "30",
        "one",
        "two",
    ];
    let (output, came) = tokio::join!(produce(&arguments), fleet.answer(4));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let prompts: Vec<_> = came
        .iter()
        .map(|(_, body)| body["prompt"].as_str().unwrap())
        .collect();
    assert_eq!(prompts, ["one", "two", "three", "four – plain text"]);
    for (number, (properties, _)) in came.iter().enumerate() {
        assert_eq!(properties.delivery_mode(), &Some(2), "persistent");
        let key = properties.message_id().as_ref().unwrap().as_str();
        assert_eq!(key, format!("run-1-{}", number + 1));
    }
    let printed = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = printed
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[2]["response"]["body"]["asked"]["max_tokens"], 3);
}

#[tokio::test]
async fn a_failed_answer_sets_the_exit_code() {
    let fleet = StandIn::new("jobs.in", FieldTable::default()).await;
    let url = amqp_url();
    let arguments = [
        "--url",
        &url,
        "--prefix",
        &fleet.prefix,
        r#"{"prompt":"a","seed":400}"#,
        "b",
    ];
    let (output, _) = tokio::join!(produce(&arguments), fleet.answer(2));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 2);
}

#[tokio::test]
async fn a_refusal_by_a_full_queue_is_reported() {
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    arguments.insert(
        "x-overflow".into(),
        AMQPValue::LongString("reject-publish".into()),
    );
    let fleet = StandIn::new("jobs.in", arguments).await;
    let url = amqp_url();
    let output = produce(&[
        "--url",
        &url,
        "--prefix",
        &fleet.prefix,
        "--timeout",
        "1",
        "fits",
        "does not",
    ])
    .await;
    let said = stderr(&output);
    assert!(
        said.contains("prompt 2 refused: the queue is full"),
        "{said}"
    );
    assert!(said.contains("1 answers missing"), "{said}");
    assert_eq!(output.status.code(), Some(4));
}

#[tokio::test]
async fn an_unroutable_prompt_is_reported() {
    let fleet = StandIn::new("elsewhere", FieldTable::default()).await;
    let url = amqp_url();
    let output = produce(&["--url", &url, "--prefix", &fleet.prefix, "lost"]).await;
    assert!(
        stderr(&output).contains("prompt 1 unroutable"),
        "{}",
        stderr(&output)
    );
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test]
async fn a_missing_fleet_or_broker_is_reported() {
    let url = amqp_url();
    let nobody = format!("nobody-{}.", Uuid::now_v7());
    let output = produce(&["--url", &url, "--prefix", &nobody, "x"]).await;
    assert!(
        stderr(&output).contains("has promptyard been started?"),
        "{}",
        stderr(&output)
    );
    assert_eq!(output.status.code(), Some(3));

    let output = produce(&["--url", "amqp://127.0.0.1:1/", "x"]).await;
    assert!(
        stderr(&output).contains("cannot be reached"),
        "{}",
        stderr(&output)
    );
    assert_eq!(output.status.code(), Some(3));

    let output = produce(&[]).await;
    assert!(
        stderr(&output).contains("no prompts"),
        "{}",
        stderr(&output)
    );
    assert_eq!(output.status.code(), Some(2));
}
