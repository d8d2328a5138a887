//! A producer that knows nothing but AMQP, and `examples/producer.py`.

use std::{collections::HashMap, path::Path, process::Command};

use futures::StreamExt;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer,
    options::{
        BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
    },
    types::FieldTable,
};
use serde_json::Value;

use crate::support::{
    fleet::{TestFleet, output, text},
    poll::PATIENCE,
    servers::{amqp_url, python},
};

/// A connection with a reply queue of its own.
pub struct Producer {
    channel: Channel,
    exchange: String,
    pub reply_queue: String,
    replies: Consumer,
    _connection: Connection,
}

impl Producer {
    pub async fn new(fleet: &TestFleet) -> Self {
        let connection = Connection::connect(&amqp_url(), ConnectionProperties::default())
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .unwrap();
        let exclusive = QueueDeclareOptions {
            exclusive: true,
            ..QueueDeclareOptions::default()
        };
        let queue = channel
            .queue_declare("".into(), exclusive, FieldTable::default())
            .await
            .unwrap();
        let reply_queue = queue.name().to_string();
        let no_ack = BasicConsumeOptions {
            no_ack: true,
            ..BasicConsumeOptions::default()
        };
        let replies = channel
            .basic_consume(
                reply_queue.as_str().into(),
                "".into(),
                no_ack,
                FieldTable::default(),
            )
            .await
            .unwrap();
        Self {
            channel,
            exchange: format!("{}promptyard", fleet.broker.prefix),
            reply_queue,
            replies,
            _connection: connection,
        }
    }

    /// Properties that ask for a reply under a name.
    pub fn asking(&self, name: &str) -> BasicProperties {
        BasicProperties::default()
            .with_reply_to(self.reply_queue.as_str().into())
            .with_correlation_id(name.into())
    }

    /// Publishes to one of the fleet's queues; the broker must confirm every message.
    pub async fn publish(&self, queue: &str, messages: Vec<(BasicProperties, Vec<u8>)>) {
        let mut confirms = Vec::new();
        let mandatory = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        for (properties, body) in messages {
            let sent = self.channel.basic_publish(
                self.exchange.as_str().into(),
                queue.into(),
                mandatory,
                &body,
                properties.with_delivery_mode(2),
            );
            confirms.push(sent.await.unwrap());
        }
        for confirm in confirms {
            assert!(matches!(confirm.await.unwrap(), Confirmation::Ack(None)));
        }
    }

    /// The next replies, by correlation id; none may come twice.
    pub async fn replies(&mut self, count: usize) -> HashMap<String, Value> {
        let (came, repeated) = self.replies_at_least_once(count).await;
        assert_eq!(repeated, Vec::<String>::new());
        came
    }

    /// Replies under so many correlation ids, and the ids that came more than once.
    pub async fn replies_at_least_once(
        &mut self,
        count: usize,
    ) -> (HashMap<String, Value>, Vec<String>) {
        let (mut came, mut repeated) = (HashMap::new(), Vec::new());
        while came.len() < count {
            let next = tokio::time::timeout(PATIENCE, self.replies.next()).await;
            let Ok(Some(Ok(reply))) = next else {
                let names: Vec<_> = came.keys().collect();
                panic!("{} of {count} replies came: {names:?}", came.len());
            };
            let name = reply
                .properties
                .correlation_id()
                .as_ref()
                .unwrap()
                .to_string();
            let body = serde_json::from_slice(&reply.data).unwrap();
            if came.insert(name.clone(), body).is_some() {
                repeated.push(name);
            }
        }
        (came, repeated)
    }
}

/// The example that producers are told to copy gets its answers from a real fleet.
#[tokio::test]
async fn the_example_producer_is_answered() {
    let fleet = TestFleet::new().await;
    let _worker = fleet
        .start(&[
            "work",
            "--tier",
            "small,large",
            "--small",
            "scripted:echo",
            "--large",
            "scripted:echo",
        ])
        .await;
    let _router = fleet.start(&["route"]).await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(python());
    command.arg(root.join("examples/producer.py"));
    command.args([
        "--url",
        &amqp_url(),
        "--prefix",
        &fleet.broker.prefix,
        "--timeout",
        "60",
    ]);
    command.args([
        "--key",
        "order",
        "one",
        r#"{"prompt":"two","model":"large"}"#,
        "three é",
    ]);
    let produced = output(command, b"").await;
    assert!(produced.status.success(), "{}", text(&produced.stderr));
    let mut answers: Vec<_> = crate::support::fleet::json_lines(&produced.stdout)
        .iter()
        .map(|line| {
            line["response"]["body"]["choices"][0]["message"]["content"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    answers.sort();
    assert_eq!(answers, ["one", "three é", "two"]);
    let keys = fleet.count("select count(*) from jobs where key in ('order-1', 'order-2', 'order-3') and state = 'succeeded'");
    assert_eq!(keys.await, 3);
}
