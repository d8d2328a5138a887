//! RabbitMQ only: other programs, other queue arguments, broken connections.

use std::{collections::BTreeSet, time::Duration};

use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{BasicGetOptions, BasicPublishOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};
use promptyard::{
    broker::{Broker, BrokerError, Delivery, Envelope, Publication, PublishError, Queue, Target},
    config::{BrokerConfig, SecretUrl},
    job::Priority,
};
use tokio::time::Instant;

use crate::{
    broker::harness::{
        PATIENCE, TestBroker, ack, in_time, is_quiet, message, numbered, publish,
        publish_until_taken, take, take_one, texts,
    },
    support::{
        poll::until,
        proxy::{Mode, Proxy},
        servers::amqp_url,
    },
};

async fn raw() -> (Connection, lapin::Channel) {
    let properties = ConnectionProperties::default();
    let connection = Connection::connect(&amqp_url(), properties).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

/// The same server through a proxy of ours.
async fn proxied() -> (Proxy, TestBroker) {
    let mut url = url::Url::parse(&amqp_url()).unwrap();
    let (host, port) = (url.host_str().unwrap(), url.port().unwrap_or(5672));
    let proxy = Proxy::start(format!("{host}:{port}")).await;
    url.set_host(Some("127.0.0.1")).unwrap();
    url.set_port(Some(proxy.port)).unwrap();
    // Deletes its queues directly when it goes.
    let mut fleet = TestBroker::rabbit();
    fleet.config.url = SecretUrl::new(url.as_str());
    (proxy, fleet)
}

/// Queues with other arguments are named, with a way out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn different_queue_arguments_are_a_conflict() {
    in_time(async {
        let fleet = TestBroker::rabbit();
        let broker = fleet.connect().await;
        let mut config = fleet.config.clone();
        config.queue_messages_max += 1;
        match Broker::connect(&config, &fleet.path()).await {
            Err(BrokerError::Conflict { queue, message }) => {
                assert_eq!(queue, format!("{}jobs.in", config.prefix));
                assert!(message.contains("x-max-length"), "{message}");
            }
            other => panic!("{other:?}"),
        }
        broker.close().await;
    })
    .await;
}

/// No error shows the password.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_broker_is_reported_without_its_password() {
    in_time(async {
        let mut refused = url::Url::parse(&amqp_url()).unwrap();
        refused.set_password(Some("opensesame")).unwrap();
        let urls = [
            "amqp://someone:opensesame@127.0.0.1:1/%2f",
            "amqp://someone:opensesame@127.0.0.1:99999/",
            refused.as_str(),
        ];
        for url in urls {
            let config = BrokerConfig {
                url: SecretUrl::new(url),
                ..BrokerConfig::default()
            };
            let error = Broker::connect(&config, "unused".as_ref())
                .await
                .unwrap_err();
            assert!(matches!(error, BrokerError::Unreachable { .. }), "{error}");
            assert!(!error.to_string().contains("opensesame"), "{error}");
            assert!(!format!("{error:?}").contains("opensesame"), "{error:?}");
        }
    })
    .await;
}

/// Any AMQP client may publish to the queue by its name, with headers of any type.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_other_programs_are_read() {
    in_time(async {
        let fleet = TestBroker::rabbit();
        let broker = fleet.connect().await;
        let mut consumer = broker.consume(&[Queue::In], 4).await.unwrap();
        let mut headers = FieldTable::default();
        headers.insert("text".into(), AMQPValue::LongString("yes".into()));
        headers.insert("number".into(), AMQPValue::LongInt(7));
        headers.insert("table".into(), AMQPValue::FieldTable(FieldTable::default()));
        let properties = BasicProperties::default()
            .with_message_id("mine".into())
            .with_priority(9)
            .with_expiration("60000".into())
            .with_timestamp(chrono::Utc::now().timestamp().cast_unsigned() - 10)
            .with_headers(headers);
        let (connection, channel) = raw().await;
        let name = format!("{}jobs.in", fleet.config.prefix);
        let options = BasicPublishOptions::default();
        channel
            .basic_publish("".into(), name.into(), options, b"{}", properties)
            .await
            .unwrap();
        let envelope = take_one(&mut consumer).await.envelope;
        assert_eq!(envelope.message_id.as_deref(), Some("mine"));
        assert_eq!(envelope.priority, Priority::High);
        assert_eq!(
            envelope.headers,
            [("text".to_owned(), "yes".to_owned())].into()
        );
        let left = envelope.expires_at.unwrap() - envelope.timestamp.unwrap();
        assert_eq!(left.num_milliseconds(), 60_000);
        connection.close(200, "OK".into()).await.unwrap();
    })
    .await;
}

/// An answer reaches the producer's own queue.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_reaches_its_queue() {
    in_time(async {
        let fleet = TestBroker::rabbit();
        let broker = fleet.connect().await;
        let (connection, channel) = raw().await;
        let options = QueueDeclareOptions::exclusive().auto_delete();
        let queue = channel
            .queue_declare("".into(), options, FieldTable::default())
            .await
            .unwrap();
        let reply = Publication {
            target: Target::Reply(queue.name().to_string()),
            envelope: Envelope {
                correlation_id: Some("c".to_owned()),
                ..Envelope::default()
            },
            body: b"answer".to_vec(),
        };
        publish(&broker, vec![reply]).await;
        let got = channel
            .basic_get(queue.name().clone(), BasicGetOptions::default())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(got.delivery.data, b"answer");
        let correlation_id = got.delivery.properties.correlation_id().clone();
        assert_eq!(correlation_id.unwrap().as_str(), "c");
        connection.close(200, "OK".into()).await.unwrap();
    })
    .await;
}

/// A queue deleted under its consumer is declared and consumed again; other queues do not notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_queue_is_declared_and_consumed_again() {
    in_time(async {
        let fleet = TestBroker::rabbit();
        let broker = fleet.connect().await;
        let mut consumer = broker.consume(&[Queue::In, Queue::Dead], 4).await.unwrap();
        publish(&broker, vec![message(Queue::Dead, "other")]).await;
        let other = take_one(&mut consumer).await;
        let (connection, channel) = raw().await;
        let name = format!("{}jobs.in", fleet.config.prefix);
        channel
            .queue_delete(name.into(), QueueDeleteOptions::default())
            .await
            .unwrap();
        until("the queue is back", || async {
            broker.publish(&[message(Queue::In, "again")]).await[0].is_ok()
        })
        .await;
        let again = take_one(&mut consumer).await;
        assert_eq!((again.queue, &again.body[..]), (Queue::In, &b"again"[..]));
        assert!(other.acker.is_live());
        assert_eq!(ack(&broker, vec![other, again]).await, 0);
        connection.close(200, "OK".into()).await.unwrap();
    })
    .await;
}

/// Connections cut again and again lose nothing, and ackers of a cut connection are dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_connections_are_cut() {
    in_time(async {
        let (proxy, fleet) = proxied().await;
        let broker = fleet.connect().await;
        let mut consumer = broker.consume(&[Queue::In], 16).await.unwrap();
        let publishing = broker.clone();
        let publisher = tokio::spawn(async move {
            for message in numbered(Queue::In, 0..200) {
                publish_until_taken(&publishing, message).await;
            }
        });
        let (mut seen, mut cuts, mut dead) = (BTreeSet::new(), 0, 0);
        while seen.len() < 200 {
            let batch = take(&mut consumer, 1).await;
            if seen.len() >= cuts * 50 + 25 && cuts < 4 {
                cuts += 1;
                proxy.cut();
                let lives = |d: &Delivery| d.acker.is_live();
                until("ackers are dead", || async { !batch.iter().any(lives) }).await;
                dead += ack(&broker, batch).await;
            } else {
                let bodies = texts(&batch);
                if ack(&broker, batch).await == 0 {
                    seen.extend(bodies);
                }
            }
        }
        publisher.await.unwrap();
        assert_eq!((cuts, dead), (4, 4));
        until("it is connected", || async { broker.is_connected() }).await;
        broker.close().await;
    })
    .await;
}

/// Calls fail in time while the server is down, and work once it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_fail_while_the_server_is_down_and_recover() {
    in_time(async {
        let (proxy, mut fleet) = proxied().await;
        fleet.config.connect_timeout_ms = 1_000;
        let broker = fleet.connect().await;
        let mut consumer = broker.consume(&[Queue::In], 4).await.unwrap();
        publish(&broker, vec![message(Queue::In, "held")]).await;
        let unacked = take_one(&mut consumer).await;
        proxy.set(Mode::Shut);
        until("it is away", || async { !broker.is_connected() }).await;
        let started = Instant::now();
        let outcome = broker.publish(&[message(Queue::In, "lost")]).await;
        assert!(
            matches!(outcome[0], Err(PublishError::Unreachable(_))),
            "{outcome:?}"
        );
        assert!(started.elapsed() < Duration::from_secs(10));
        assert!(matches!(
            broker.depths().await,
            Err(BrokerError::Unreachable { .. })
        ));
        assert_eq!(ack(&broker, vec![unacked]).await, 1);
        proxy.set(Mode::Open);
        until("it is back", || async { broker.is_connected() }).await;
        let again = take_one(&mut consumer).await;
        assert_eq!((&again.body[..], again.redelivered), (&b"held"[..], true));
        assert_eq!(ack(&broker, vec![again]).await, 0);
        publish(&broker, vec![message(Queue::In, "new")]).await;
        assert_eq!(take_one(&mut consumer).await.body, b"new");
        broker.close().await;
    })
    .await;
}

/// A broker short of memory stops reading: the publisher gives up in time and later continues.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_does_not_confirm_times_out() {
    in_time(async {
        let (proxy, mut fleet) = proxied().await;
        fleet.config.publish_timeout_ms = 500;
        let broker = fleet.connect().await;
        publish(&broker, vec![message(Queue::In, "before")]).await;
        proxy.set(Mode::Silent);
        let started = Instant::now();
        let outcomes = broker.publish(&numbered(Queue::In, 0..3)).await;
        assert_eq!(outcomes, vec![Err(PublishError::TimedOut(500)); 3]);
        assert!(started.elapsed() < PATIENCE / 3);
        proxy.set(Mode::Open);
        publish_until_taken(&broker, message(Queue::In, "after")).await;
        let mut consumer = broker.consume(&[Queue::In], 16).await.unwrap();
        // What timed out may have arrived all the same, which is why jobs carry keys.
        let mut bodies = texts(&take(&mut consumer, 2).await);
        while bodies.last().unwrap() != "after" {
            bodies.extend(texts(&take(&mut consumer, 1).await));
        }
        assert_eq!(bodies[0], "before");
        broker.close().await;
    })
    .await;
}

/// Consumers do not declare queues again that this broker deleted on purpose.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_queues_stay_deleted() {
    in_time(async {
        let fleet = TestBroker::rabbit();
        let broker = fleet.connect().await;
        let mut consumer = broker.consume(&[Queue::In], 4).await.unwrap();
        broker.delete_queues().await.unwrap();
        assert!(is_quiet(&mut consumer).await);
        assert!(broker.depths().await.is_err());
        let outcome = broker.publish(&[message(Queue::In, "x")]).await;
        assert!(outcome[0].is_err());
        broker.close().await;
    })
    .await;
}
