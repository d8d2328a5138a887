//! The connections to RabbitMQ or Postgres are cut while jobs run: none is lost, none answered
//! twice.

use std::ops::Range;

use lapin::BasicProperties;
use promptyard::config::SecretUrl;
use serde_json::json;

use crate::{
    producer::Producer,
    support::{
        fleet::TestFleet,
        proxy::{Mode, Proxy},
        servers::{amqp_url, database_url},
    },
};

const JOBS: usize = 400;

/// A proxy in front of a server, and the server's URL by way of it.
async fn before(url: &str) -> (Proxy, SecretUrl) {
    let mut url = url::Url::parse(url).unwrap();
    let standard = if url.scheme().starts_with("amqp") {
        5672
    } else {
        5432
    };
    let server = format!(
        "{}:{}",
        url.host_str().unwrap(),
        url.port().unwrap_or(standard)
    );
    let proxy = Proxy::start(server).await;
    url.set_host(Some("127.0.0.1")).unwrap();
    url.set_port(Some(proxy.port)).unwrap();
    (proxy, SecretUrl::new(url.to_string()))
}

/// Jobs that ask the producer's own queue for their answers.
fn messages(producer: &Producer, names: Range<usize>) -> Vec<(BasicProperties, Vec<u8>)> {
    names
        .map(|at| {
            let name = format!("job-{at}");
            let body = json!({"custom_id": name, "body": {"prompt": format!("Number {at}?")}});
            (
                producer.asking(&name).with_message_id(name.into()),
                body.to_string().into_bytes(),
            )
        })
        .collect()
}

/// Every job ended once, with one committed run.
async fn check(fleet: &TestFleet) {
    for query in [
        "select count(*) from jobs",
        "select count(*) from jobs where state = 'succeeded'",
        "select count(*) from attempts where outcome = 'succeeded'",
    ] {
        assert_eq!(fleet.count(query).await, JOBS as i64, "{query}");
    }
    let running = "select count(*) from attempts where outcome = 'running'";
    assert_eq!(fleet.count(running).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fleet_survives_a_broker_outage() {
    let mut fleet = TestFleet::new().await;
    let (proxy, through) = before(&amqp_url()).await;
    let direct = std::mem::replace(&mut fleet.broker.url, through);
    let engine = "scripted:latency_ms=100,jitter_ms=100";
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
    let mut producer = Producer::new(&fleet).await;
    producer
        .publish("jobs.in", messages(&producer, 0..JOBS / 2))
        .await;
    fleet.until_ended(30).await;
    // A blink, in which everything delivered is redelivered.
    proxy.cut();
    fleet.until_ended(80).await;
    // An outage that both notice, with new jobs meanwhile.
    proxy.set(Mode::Shut);
    tokio::join!(router.ready(503), worker.ready(503));
    producer
        .publish("jobs.in", messages(&producer, JOBS / 2..JOBS))
        .await;
    proxy.set(Mode::Open);
    tokio::join!(router.ready(200), worker.ready(200));
    fleet.until_ended(JOBS as i64).await;

    check(&fleet).await;
    // A reply may come twice when its confirmation was cut off, but each must come.
    producer.replies_at_least_once(JOBS).await;
    assert!(router.stop().await.success());
    assert!(worker.stop().await.success());
    fleet.broker.url = direct;
    fleet.queues_are_empty().await;
}

/// Whether a commit happened whose word was cut off is unknown; every job must end all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fleet_survives_a_database_outage() {
    let mut fleet = TestFleet::new().await;
    let (proxy, through) = before(&database_url()).await;
    let direct = std::mem::replace(&mut fleet.store.url, through);
    let engine = "scripted:latency_ms=50,jitter_ms=50";
    let arguments = [
        "work",
        "--tier",
        "small,large",
        "--small",
        engine,
        "--large",
        engine,
    ];
    let worker = fleet.start(&arguments).await;
    let router = fleet
        .start(&["route", "--set", "router.batch_max=16"])
        .await;
    let mut producer = Producer::new(&fleet).await;
    for at in 0..10 {
        let part = JOBS / 10;
        producer
            .publish("jobs.in", messages(&producer, at * part..(at + 1) * part))
            .await;
        fleet.until_ended((at * part / 2 + 1) as i64).await;
        proxy.cut();
    }
    proxy.set(Mode::Shut);
    tokio::join!(router.ready(503), worker.ready(503));
    proxy.set(Mode::Open);
    fleet.until_ended(JOBS as i64).await;
    check(&fleet).await;
    producer.replies_at_least_once(JOBS).await;
    assert!(router.stop().await.success());
    assert!(worker.stop().await.success());
    fleet.store.url = direct;
    fleet.queues_are_empty().await;
}
