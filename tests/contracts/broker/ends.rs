//! Where messages go that are not acknowledged.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use promptyard::{
    broker::{
        Consumer, Delay, Delivery, Envelope, HEADER_DEATH_QUEUE, HEADER_DEATH_REASON, Publication,
        Queue,
    },
    job::Tier,
};
use tokio::time::Instant;

use crate::{
    broker::harness::{TestBroker, ack, is_quiet, message, publish, ready, take_one},
    support::poll::until,
};

fn with_header(queue: Queue) -> Publication {
    Publication {
        envelope: Envelope {
            message_id: Some("key".to_owned()),
            headers: [("kept".to_owned(), "yes".to_owned())].into(),
            ..Envelope::default()
        },
        ..message(queue, "body")
    }
}

/// Takes a dead letter and checks all its fields.
async fn expect_letter(dead: &mut Consumer, reason: &str, queue: Queue) -> Delivery {
    let letter = take_one(dead).await;
    let headers = &letter.envelope.headers;
    assert_eq!(headers.get(HEADER_DEATH_REASON).unwrap(), reason);
    assert_eq!(headers.get(HEADER_DEATH_QUEUE).unwrap(), queue.name());
    assert_eq!(headers.get("kept").unwrap(), "yes");
    assert_eq!(headers.len(), 3, "{headers:?}");
    assert_eq!(letter.envelope.message_id.as_deref(), Some("key"));
    assert_eq!(
        (letter.queue, &letter.body[..]),
        (Queue::Dead, &b"body"[..])
    );
    assert!(!letter.redelivered);
    letter
}

/// A rejected message becomes a dead letter with its reason.
pub async fn a_rejected_message_becomes_a_dead_letter(fleet: &TestBroker) {
    let broker = fleet.connect().await;
    let small = Queue::Tier(Tier::Small);
    publish(&broker, vec![with_header(small)]).await;
    let mut consumer = broker.consume(&[small], 4).await.unwrap();
    let rejected = take_one(&mut consumer).await;
    broker.reject(vec![rejected.acker]).await.unwrap();
    let mut dead = broker.consume(&[Queue::Dead], 4).await.unwrap();
    let letter = expect_letter(&mut dead, "rejected", small).await;
    assert_eq!(ack(&broker, vec![letter]).await, 0);
    assert!(is_quiet(&mut consumer).await && is_quiet(&mut dead).await);
}

/// A message past its deadline is not delivered.
pub async fn an_expired_message_becomes_a_dead_letter(fleet: &TestBroker) {
    let broker = fleet.connect().await;
    let mut late = with_header(Queue::In);
    let deadline = Utc::now() + TimeDelta::milliseconds(300);
    late.envelope.expires_at = Some(deadline);
    publish(&broker, vec![late]).await;
    let mut dead = broker.consume(&[Queue::Dead], 4).await.unwrap();
    let letter = expect_letter(&mut dead, "expired", Queue::In).await;
    let kept = letter.envelope.expires_at.unwrap();
    assert_eq!(kept.timestamp_millis(), deadline.timestamp_millis());
    assert!(Utc::now() >= kept);
    assert_eq!(ready(&broker, Queue::In).await, 0);
}

/// A message delivered too often becomes a dead letter.
pub async fn a_message_delivered_too_often_becomes_a_dead_letter(fleet: &TestBroker) {
    let limited = fleet.with(|config| config.delivery_limit = 2);
    let broker = limited.connect().await;
    publish(&broker, vec![with_header(Queue::In)]).await;
    broker.close().await;
    for round in 0..3 {
        let broker = limited.connect().await;
        let mut consumer = broker.consume(&[Queue::In], 4).await.unwrap();
        assert_eq!(take_one(&mut consumer).await.redelivered, round > 0);
        broker.close().await;
    }
    let broker = limited.connect().await;
    let mut dead = broker.consume(&[Queue::Dead], 4).await.unwrap();
    expect_letter(&mut dead, "delivery_limit", Queue::In).await;
    let mut consumer = broker.consume(&[Queue::In], 4).await.unwrap();
    assert!(is_quiet(&mut consumer).await);
    broker.close().await;
}

/// Neither a deadline, nor a rejection, nor many deliveries remove a dead letter.
pub async fn a_dead_letter_is_never_lost(fleet: &TestBroker) {
    let limited = fleet.with(|config| config.delivery_limit = 1);
    let broker = limited.connect().await;
    let mut letter = message(Queue::Dead, "letter");
    letter.envelope.expires_at = Some(Utc::now() - TimeDelta::seconds(5));
    let sent = letter.envelope.expires_at.unwrap().timestamp_millis();
    publish(&broker, vec![letter]).await;
    let mut dead = broker.consume(&[Queue::Dead], 4).await.unwrap();
    for round in 0..6 {
        let letter = take_one(&mut dead).await;
        assert_eq!(letter.redelivered, round > 0);
        let expires_at = letter.envelope.expires_at.unwrap();
        assert_eq!(expires_at.timestamp_millis(), sent);
        if round % 2 == 0 {
            broker.requeue(vec![letter.acker]).await.unwrap();
        } else {
            broker.reject(vec![letter.acker]).await.unwrap();
        }
    }
    dead.close().await;
    until("the letter waits", || async {
        ready(&broker, Queue::Dead).await == 1
    })
    .await;
    broker.close().await;
}

/// A delayed message returns to the router on time, with its deadline.
pub async fn a_delayed_message_returns_on_time(fleet: &TestBroker) {
    let broker = fleet.connect().await;
    let mut resting = with_header(Queue::Retry(Delay::S1));
    // Shorter than the rest would be cut short by, were it sent as the broker's own expiration.
    let deadline = Utc::now() + TimeDelta::minutes(5);
    resting.envelope.expires_at = Some(deadline);
    let started = Instant::now();
    publish(&broker, vec![resting.clone()]).await;
    let mut consumer = broker.consume(&[Queue::In], 4).await.unwrap();
    let back = take_one(&mut consumer).await;
    let rested = started.elapsed();
    assert!(
        rested >= Duration::from_millis(950),
        "came after {rested:?}"
    );
    assert!(rested < Duration::from_secs(10), "came after {rested:?}");
    assert_eq!((back.queue, &back.body), (Queue::In, &resting.body));
    assert_eq!(back.envelope.headers, resting.envelope.headers);
    let expires_at = back.envelope.expires_at.unwrap();
    assert_eq!(expires_at.timestamp_millis(), deadline.timestamp_millis());
    assert!(!back.redelivered);
}
