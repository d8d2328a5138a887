//! A RabbitMQ server of our own that is killed and started again.

use std::collections::BTreeSet;

use promptyard::broker::{Broker, Queue};
use tokio::time::timeout;

use crate::{
    broker::harness::{
        TestBroker, ack, message, numbered, publish, publish_until_taken, take, texts,
    },
    support::{
        poll::{poll, until},
        rabbit_server::{START_PATIENCE, Server},
    },
};

async fn connect(fleet: &TestBroker) -> Broker {
    let connected = poll(START_PATIENCE, async || {
        Broker::connect(&fleet.config, &fleet.path()).await.ok()
    });
    connected.await.expect("the server starts")
}

/// What the broker confirmed outlives its sudden death; publishing and consuming continue by
/// themselves once it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_nothing_confirmed() {
    let test = async {
        let mut server = Server::start();
        let mut fleet = TestBroker::embedded();
        fleet.config.url = promptyard::config::SecretUrl::new(server.url());
        let broker = connect(&fleet).await;
        publish(&broker, numbered(Queue::In, 0..50)).await;
        let mut consumer = broker.consume(&[Queue::In], 16).await.unwrap();
        let acked = take(&mut consumer, 10).await;
        let mut seen: BTreeSet<_> = texts(&acked).into_iter().collect();
        assert_eq!(ack(&broker, acked).await, 0);
        let unacked = take(&mut consumer, 10).await;

        server.kill();
        until("the broker is away", || async { !broker.is_connected() }).await;
        until("ackers are dead", || async {
            !unacked.iter().any(|d| d.acker.is_live())
        })
        .await;
        assert_eq!(ack(&broker, unacked).await, 10);

        server.restart();
        let reconnected = poll(START_PATIENCE, async || broker.is_connected().then_some(()));
        reconnected.await.expect("the broker reconnects");
        publish_until_taken(&broker, message(Queue::In, "50")).await;
        // Acknowledgements are not confirmed, so some of the first ten may be redelivered.
        while seen.len() < 51 {
            let batch = take(&mut consumer, 1).await;
            seen.extend(texts(&batch));
            assert_eq!(ack(&broker, batch).await, 0);
        }
        broker.close().await;
    };
    timeout(START_PATIENCE * 3, test)
        .await
        .expect("the test hangs");
}
