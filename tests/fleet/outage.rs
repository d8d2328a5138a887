//! The connections to RabbitMQ are cut while jobs run: none is lost, none answered twice.

use lapin::BasicProperties;
use promptyard::config::SecretUrl;
use serde_json::json;

use crate::{
    harness::{Yard, amqp_url},
    producer::Producer,
    proxy::{Mode, Proxy},
};

const JOBS: usize = 400;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_broker_is_waited_out() {
    let mut yard = Yard::new().await;
    let url = url::Url::parse(&amqp_url()).unwrap();
    let server = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(5672));
    let proxy = Proxy::start(server).await;
    let mut through = url;
    through.set_host(Some("127.0.0.1")).unwrap();
    through.set_port(Some(proxy.port)).unwrap();
    let direct = std::mem::replace(&mut yard.broker.url, SecretUrl::new(through.to_string()));
    let engine = "scripted:latency_ms=100,jitter_ms=100";
    let worker = yard
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
    let router = yard.start(&["route"]).await;
    let mut producer = Producer::new(&yard).await;
    let messages = |names: std::ops::Range<usize>| -> Vec<(BasicProperties, Vec<u8>)> {
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
    };
    producer.publish("jobs.in", messages(0..JOBS / 2)).await;
    yard.until_ended(30).await;
    // A blink, in which everything delivered comes again.
    proxy.cut();
    yard.until_ended(80).await;
    // An outage that both notice, with new jobs meanwhile.
    proxy.set(Mode::Shut);
    tokio::join!(router.ready(503), worker.ready(503));
    producer.publish("jobs.in", messages(JOBS / 2..JOBS)).await;
    proxy.set(Mode::Open);
    tokio::join!(router.ready(200), worker.ready(200));
    yard.until_ended(JOBS as i64).await;

    assert_eq!(yard.count("select count(*) from jobs").await, JOBS as i64);
    assert_eq!(
        yard.count("select count(*) from jobs where state = 'succeeded'")
            .await,
        JOBS as i64
    );
    assert_eq!(
        yard.count("select count(*) from attempts where outcome = 'succeeded'")
            .await,
        JOBS as i64
    );
    assert_eq!(
        yard.count("select count(*) from attempts where outcome = 'running'")
            .await,
        0
    );
    // A reply may come twice when its confirmation was cut off, but each must come.
    producer.replies_at_least_once(JOBS).await;
    assert!(router.stop().await.success());
    assert!(worker.stop().await.success());
    yard.broker.url = direct;
    yard.queues_are_empty().await;
}
