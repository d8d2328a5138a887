//! Consuming and settling messages.

use std::{collections::BTreeSet, time::Duration};

use promptyard::{
    broker::{Broker, Queue},
    job::Tier,
};
use tokio::time::{Instant, timeout};

use crate::{
    broker::harness::{
        TestBroker, ack, is_quiet, message, numbered, publish, ready, take, take_one, texts,
    },
    support::poll::until,
};

const LONG: Duration = Duration::from_secs(20);
const SMALL: Queue = Queue::Tier(Tier::Small);
const LARGE: Queue = Queue::Tier(Tier::Large);

/// Messages of one queue come in the order they were published in, and once.
pub async fn order_is_kept_and_an_acknowledged_message_is_gone(fleet: &TestBroker) {
    let broker = fleet.connect().await;
    publish(&broker, numbered(Queue::In, 0..150)).await;
    publish(&broker, numbered(Queue::In, 150..300)).await;
    let mut consumer = broker.consume(&[Queue::In], 512).await.unwrap();
    let all = take(&mut consumer, 300).await;
    let expected: Vec<_> = (0..300).map(|n| n.to_string()).collect();
    assert_eq!(texts(&all), expected);
    assert!(all.iter().all(|d| !d.redelivered && d.queue == Queue::In));
    assert_eq!(ack(&broker, all).await, 0);
    consumer.close().await;
    broker.close().await;

    let broker = fleet.connect().await;
    let mut consumer = broker.consume(&[Queue::In], 512).await.unwrap();
    assert!(is_quiet(&mut consumer).await);
}

/// A batch ends when it is full, or when it has lingered.
pub async fn a_batch_fills_until_its_linger_or_its_size(fleet: &TestBroker) {
    let broker = fleet.connect().await;
    let mut consumer = broker.consume(&[Queue::In], 64).await.unwrap();
    publish(&broker, numbered(Queue::In, 0..10)).await;
    let started = Instant::now();
    let full = consumer.next_batch(4, LONG).await;
    assert_eq!(texts(&full), ["0", "1", "2", "3"]);
    assert!(started.elapsed() < LONG);

    let linger = Duration::from_millis(500);
    let started = Instant::now();
    let rest = consumer.next_batch(64, linger).await;
    assert_eq!(rest.len(), 6);
    assert!(started.elapsed() >= linger);

    // A batch takes in what comes while it lingers.
    let late = async {
        until("the first is taken", || async {
            ready(&broker, Queue::In).await == 0
        })
        .await;
        publish(&broker, numbered(Queue::In, 11..12)).await;
    };
    publish(&broker, numbered(Queue::In, 10..11)).await;
    let (both, ()) = tokio::join!(consumer.next_batch(2, LONG), late);
    assert_eq!(texts(&both), ["10", "11"]);
}

/// A consumer never holds more than its prefetch of each queue.
pub async fn prefetch_bounds_what_is_unsettled(fleet: &TestBroker) {
    let broker = fleet.connect().await;
    publish(&broker, numbered(Queue::In, 0..20)).await;
    publish(&broker, numbered(SMALL, 0..20)).await;
    let mut consumer = broker.consume(&[Queue::In, SMALL], 5).await.unwrap();
    let mut unacked = take(&mut consumer, 10).await;
    assert_eq!(unacked.iter().filter(|d| d.queue == SMALL).count(), 5);
    assert!(is_quiet(&mut consumer).await);
    let settled: Vec<_> = unacked.drain(..2).collect();
    let mut freed: Vec<_> = settled.iter().map(|d| d.queue).collect();
    assert_eq!(ack(&broker, settled).await, 0);
    let next = take(&mut consumer, 2).await;
    let mut filled: Vec<_> = next.iter().map(|d| d.queue).collect();
    freed.sort();
    filled.sort();
    assert_eq!(filled, freed);
    assert!(is_quiet(&mut consumer).await);
}

/// What is put back is delivered again, marked as such.
pub async fn a_requeued_message_is_redelivered(fleet: &TestBroker) {
    let broker = fleet.connect().await;
    publish(&broker, numbered(Queue::In, 0..3)).await;
    let mut consumer = broker.consume(&[Queue::In], 8).await.unwrap();
    let first = take(&mut consumer, 3).await;
    let ackers = first.into_iter().map(|d| d.acker).collect();
    broker.requeue(ackers).await.unwrap();
    let again = take(&mut consumer, 3).await;
    assert!(again.iter().all(|d| d.redelivered));
    let bodies: BTreeSet<_> = texts(&again).into_iter().collect();
    assert_eq!(bodies, ["0", "1", "2"].map(String::from).into());
    assert_eq!(ack(&broker, again).await, 0);
    assert!(is_quiet(&mut consumer).await);
}

/// A closed consumer keeps nothing that it never returned; what it returned can be settled.
pub async fn closing_a_consumer_requeues_undelivered_messages(fleet: &TestBroker) {
    let broker = fleet.connect().await;
    publish(&broker, numbered(Queue::In, 0..20)).await;
    let mut consumer = broker.consume(&[Queue::In], 16).await.unwrap();
    let returned = take(&mut consumer, 3).await;
    consumer.close().await;
    until("17 wait", || async {
        ready(&broker, Queue::In).await == 17
    })
    .await;
    assert!(returned.iter().all(|d| d.acker.is_live()));
    assert_eq!(ack(&broker, returned).await, 0);

    let mut consumer = broker.consume(&[Queue::In], 64).await.unwrap();
    let rest = take(&mut consumer, 17).await;
    let bodies: BTreeSet<_> = texts(&rest).into_iter().collect();
    assert_eq!(bodies, (3..20).map(|n| n.to_string()).collect());
    assert!(is_quiet(&mut consumer).await);
}

/// Two consumers of one queue get each message once between them.
pub async fn two_consumers_share_without_duplicates(fleet: &TestBroker) {
    let broker = fleet.connect().await;
    let mut one = broker.consume(&[Queue::In], 8).await.unwrap();
    let mut two = broker.consume(&[Queue::In], 8).await.unwrap();
    publish(&broker, numbered(Queue::In, 0..200)).await;
    let mut seen = Vec::new();
    while seen.len() < 200 {
        let linger = Duration::from_millis(5);
        let batch = tokio::select! {
            batch = one.next_batch(8, linger) => batch,
            batch = two.next_batch(8, linger) => batch,
        };
        seen.extend(texts(&batch));
        assert_eq!(ack(&broker, batch).await, 0);
    }
    assert_eq!(seen.len(), 200);
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 200);
    assert!(is_quiet(&mut one).await && is_quiet(&mut two).await);
}

/// A call that is dropped half way, at any moment, leaves its messages for the next one.
pub async fn a_cancelled_next_batch_loses_nothing(fleet: &TestBroker) {
    let broker = fleet.connect().await;
    let mut consumer = broker.consume(&[Queue::In], 64).await.unwrap();
    let publishing = broker.clone();
    let publisher = tokio::spawn(async move {
        for start in (0..400).step_by(20) {
            publish(&publishing, numbered(Queue::In, start..start + 20)).await;
        }
    });
    let mut seen = Vec::new();
    let (mut dropped, started) = (0, Instant::now());
    while seen.len() < 400 {
        assert!(started.elapsed() < LONG * 3, "{} of 400 came", seen.len());
        let patience = Duration::from_micros(50 * (dropped % 40));
        let linger = Duration::from_millis(1);
        match timeout(patience, consumer.next_batch(7, linger)).await {
            Ok(batch) => {
                seen.extend(texts(&batch));
                assert_eq!(ack(&broker, batch).await, 0);
            }
            Err(_) => dropped += 1,
        }
    }
    publisher.await.unwrap();
    assert!(dropped > 0, "no call was ever dropped");
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 400);
    assert!(is_quiet(&mut consumer).await);
}

/// A delivery tells which queue it came from.
pub async fn several_queues_feed_one_consumer(fleet: &TestBroker) {
    let broker = fleet.connect().await;
    let mut consumer = broker.consume(&[SMALL, LARGE], 4).await.unwrap();
    publish(&broker, vec![message(SMALL, "s"), message(LARGE, "l")]).await;
    let both = take(&mut consumer, 2).await;
    for delivery in &both {
        let expected: &[u8] = if delivery.queue == LARGE { b"l" } else { b"s" };
        assert_eq!(delivery.body, expected);
    }
    assert_eq!(both.iter().filter(|d| d.queue == LARGE).count(), 1);
}

/// After a close nothing can be settled, and everything is redelivered.
pub async fn ackers_of_a_closed_broker_are_ignored(fleet: &TestBroker) {
    let broker = fleet.connect().await;
    publish(&broker, numbered(Queue::In, 0..5)).await;
    let mut consumer = broker.consume(&[Queue::In], 8).await.unwrap();
    let mut unacked = take(&mut consumer, 5).await;
    let acked = unacked.split_off(4);
    assert_eq!(ack(&broker, acked).await, 0);
    broker.close().await;
    // A task of its own reports the channel's end, which may take a while on a busy machine.
    until("ackers are dead", async || {
        !unacked.iter().any(|d| d.acker.is_live())
    })
    .await;
    assert!(!broker.is_connected());
    assert!(consumer.next_batch(1, Duration::ZERO).await.is_empty());

    let broker: Broker = fleet.connect().await;
    assert!(broker.is_connected());
    assert_eq!(ack(&broker, unacked).await, 4);
    let mut consumer = broker.consume(&[Queue::In], 8).await.unwrap();
    let again = take(&mut consumer, 4).await;
    assert!(again.iter().all(|d| d.redelivered));
    let bodies: BTreeSet<_> = texts(&again).into_iter().collect();
    assert_eq!(bodies, (0..4).map(|n| n.to_string()).collect());
    assert!(is_quiet(&mut consumer).await);
}

/// Depths count what waits, not what is unacked, and consumers.
pub async fn depths_count_ready_messages(fleet: &TestBroker) {
    let broker = fleet.connect().await;
    publish(&broker, numbered(Queue::In, 0..7)).await;
    publish(&broker, numbered(LARGE, 0..2)).await;
    until("7 wait", || async { ready(&broker, Queue::In).await == 7 }).await;
    until("2 wait", || async { ready(&broker, LARGE).await == 2 }).await;
    let mut consumer = broker.consume(&[Queue::In], 4).await.unwrap();
    let unacked = take_one(&mut consumer).await;
    let consumers = || async {
        let depths = broker.depths().await.unwrap();
        assert_eq!(depths.len(), Queue::ALL.len());
        depths.iter().map(|d| d.consumers).sum::<u32>()
    };
    until("there is one consumer", || async { consumers().await == 1 }).await;
    until("fewer wait", || async {
        ready(&broker, Queue::In).await < 7
    })
    .await;
    consumer.close().await;
    // RabbitMQ counts a consumer that has ended until its last message is settled.
    assert_eq!(ack(&broker, vec![unacked]).await, 0);
    until("there is none", || async { consumers().await == 0 }).await;
    until("6 wait", || async { ready(&broker, Queue::In).await == 6 }).await;
    broker.delete_queues().await.unwrap();
}
