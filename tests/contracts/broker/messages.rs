//! Envelopes, bodies and refusals.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use promptyard::{
    broker::{Envelope, Publication, PublishError, Queue, Target},
    job::Priority,
};

use crate::broker::harness::{TestBroker, message, publish, take, take_one, texts};

/// Every field of an envelope survives, also those longer than AMQP's 255 bytes.
pub async fn an_envelope_arrives_as_it_left(fleet: &TestBroker) {
    let broker = fleet.connect().await;
    let seconds = Utc::now().timestamp();
    let full = Envelope {
        // It is for retry queues; the consumer does not see it.
        rest_ms: None,
        message_id: Some("key-1".to_owned()),
        correlation_id: Some("corrélation".to_owned()),
        reply_to: Some("reply.queue".to_owned()),
        priority: Priority::High,
        expires_at: DateTime::from_timestamp_millis((seconds + 600) * 1000 + 123),
        timestamp: DateTime::from_timestamp(seconds, 0),
        headers: BTreeMap::from([
            ("promptyard-kind".to_owned(), "routed".to_owned()),
            ("quote\"'$.name".to_owned(), "\"{}\\\n".to_owned()),
            ("größe 尺寸".to_owned(), "naïve 🚂".to_owned()),
        ]),
    };
    let long = Envelope {
        message_id: Some("m".repeat(300)),
        correlation_id: Some("ü".repeat(200)),
        reply_to: Some("r".repeat(256)),
        // Past what RabbitMQ takes as an expiration.
        expires_at: DateTime::from_timestamp(seconds + 365 * 24 * 3600, 0),
        headers: BTreeMap::from([("long".to_owned(), "h".repeat(5000))]),
        ..Envelope::default()
    };
    let sent = [full, long, Envelope::default()];
    let publication = |envelope: &Envelope| Publication {
        target: Target::Queue(Queue::In),
        envelope: envelope.clone(),
        body: b"{}".to_vec(),
    };
    let mut consumer = broker.consume(&[Queue::In], 8).await.unwrap();
    for envelope in &sent {
        publish(&broker, vec![publication(envelope)]).await;
        assert_eq!(&take_one(&mut consumer).await.envelope, envelope);
    }
}

/// Bodies are bytes, from none to more than a frame.
pub async fn a_body_may_be_empty_or_large(fleet: &TestBroker) {
    let broker = fleet.connect().await;
    let large: Vec<u8> = (0..1 << 20)
        .map(|n: u32| n.to_le_bytes()[1] ^ 0xa5)
        .collect();
    let bodies = [Vec::new(), large, vec![0, 0xff, 0xfe]];
    let messages = bodies.iter().map(|b| message(Queue::In, b.clone()));
    publish(&broker, messages.collect()).await;
    let mut consumer = broker.consume(&[Queue::In], 8).await.unwrap();
    let arrived = take(&mut consumer, 3).await;
    for (delivery, body) in arrived.iter().zip(&bodies) {
        assert!(&delivery.body == body, "{} bytes came", delivery.body.len());
    }
}

/// A full queue says so and keeps exactly what it took.
pub async fn a_full_queue_refuses(fleet: &TestBroker) {
    let small = fleet.with(|config| config.queue_messages_max = 10);
    let broker = small.connect().await;
    let mut taken = Vec::new();
    let mut refused = 0;
    // RabbitMQ's limit is a soft one: what is under way when it is reached still gets in.
    for n in 0..200 {
        match broker.publish(&[message(Queue::In, n.to_string())]).await[0] {
            Ok(()) => taken.push(n.to_string()),
            Err(PublishError::Refused) => refused += 1,
            ref other => panic!("{other:?}"),
        }
        if refused == 5 {
            break;
        }
    }
    assert_eq!(refused, 5);
    assert!((10..50).contains(&taken.len()), "{} taken", taken.len());
    // Another queue has room.
    publish(&broker, vec![message(Queue::Dead, "x")]).await;
    let mut consumer = broker.consume(&[Queue::In], 256).await.unwrap();
    let all = take(&mut consumer, taken.len()).await;
    assert_eq!(texts(&all), taken);
    consumer.close().await;
    broker.close().await;
}

/// An unroutable reply fails alone in its batch, every time.
pub async fn a_reply_without_a_queue_is_unroutable(fleet: &TestBroker) {
    let broker = fleet.connect().await;
    let lost = |name: &str| Publication {
        target: Target::Reply(name.to_owned()),
        ..message(Queue::In, "answer")
    };
    let absent = format!("{}no-such-queue", fleet.config.prefix);
    let mut consumer = broker.consume(&[Queue::In], 256).await.unwrap();
    for round in 0..20 {
        let mut batch = vec![message(Queue::In, "kept"); 8];
        batch[round % 8] = lost(&absent);
        batch[(round + 3) % 8] = lost(&"x".repeat(300));
        let outcomes = broker.publish(&batch).await;
        for (at, outcome) in outcomes.into_iter().enumerate() {
            let expected = if at == round % 8 || at == (round + 3) % 8 {
                Err(PublishError::Unroutable)
            } else {
                Ok(())
            };
            assert_eq!(outcome, expected, "message {at} of round {round}");
        }
    }
    let kept = take(&mut consumer, 120).await;
    assert!(kept.iter().all(|d| d.body == b"kept"));
    let more = consumer.next_batch(1, Duration::ZERO);
    let more = tokio::time::timeout(Duration::from_millis(300), more).await;
    assert!(more.is_err(), "a lost reply came to the wrong queue");
}
