//! What only the embedded broker promises: one consuming process, many publishing ones.

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use promptyard::{
    broker::{Broker, BrokerError, PublishError, Queue, Target},
    config::BrokerConfig,
};

use crate::{
    broker::harness::{
        TestBroker, ack, in_time, is_quiet, message, numbered, publish, take, texts,
    },
    support::poll::{PATIENCE, poll, until},
};

/// Tells a child process which file to use.
const PATH_VARIABLE: &str = "PROMPTYARD_TEST_BROKER_FILE";

/// Runs one of the ignored tests below as a process of its own.
fn child(test: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("broker::embedded_only::{test}")])
        .args(["--ignored", "--nocapture"])
        .env(PATH_VARIABLE, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

async fn open_as_child() -> Broker {
    let path = PathBuf::from(std::env::var_os(PATH_VARIABLE).unwrap());
    Broker::connect(&BrokerConfig::default(), &path)
        .await
        .unwrap()
}

#[tokio::test]
#[ignore = "the other process of another_process_may_publish"]
async fn child_that_publishes() {
    let broker = open_as_child().await;
    for start in (100..200).step_by(10) {
        publish(&broker, numbered(Queue::In, start..start + 10)).await;
    }
    let consuming = broker.consume(&[Queue::In], 1).await;
    assert!(matches!(consuming, Err(BrokerError::InUse { .. })));
}

#[tokio::test]
#[ignore = "the other process of a_killed_consumer_loses_nothing"]
async fn child_that_holds_messages() {
    let broker = open_as_child().await;
    let mut consumer = broker.consume(&[Queue::In], 64).await.unwrap();
    let mut unacked = take(&mut consumer, 30).await;
    let acked = unacked.drain(..10).collect();
    assert_eq!(ack(&broker, acked).await, 0);
    assert_eq!(unacked.len(), 20);
    // The parent kills us once this file is there.
    std::fs::write(
        holding(std::env::var_os(PATH_VARIABLE).unwrap().as_ref()),
        "",
    )
    .unwrap();
    std::future::pending::<()>().await;
}

fn holding(path: &Path) -> PathBuf {
    path.with_extension("holding")
}

/// Messages of another process are noticed without a signal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_may_publish() {
    in_time(async {
        let fleet = TestBroker::embedded();
        let broker = fleet.connect().await;
        let mut consumer = broker.consume(&[Queue::In], 512).await.unwrap();
        let mut child = child("child_that_publishes", &fleet.path());
        publish(&broker, numbered(Queue::In, 0..100)).await;
        let mut bodies = texts(&take(&mut consumer, 200).await);
        bodies.sort_by_key(|body| body.parse::<u32>().unwrap());
        let expected: Vec<_> = (0..200).map(|n| n.to_string()).collect();
        assert_eq!(bodies, expected);
        let ended = tokio::task::spawn_blocking(move || {
            let mut output = String::new();
            child
                .stdout
                .take()
                .unwrap()
                .read_to_string(&mut output)
                .unwrap();
            (child.wait().unwrap(), output)
        });
        let (status, output) = ended.await.unwrap();
        assert!(status.success(), "{output}");
    })
    .await;
}

/// A process killed without warning leaves everything it had not acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_consumer_loses_nothing() {
    in_time(async {
        let fleet = TestBroker::embedded();
        let broker = fleet.connect().await;
        publish(&broker, numbered(Queue::In, 0..100)).await;
        let mut child = child("child_that_holds_messages", &fleet.path());
        let path = fleet.path();
        until("the child holds messages", || async {
            holding(&path).exists()
        })
        .await;
        assert!(matches!(
            broker.consume(&[Queue::In], 1).await,
            Err(BrokerError::InUse { .. })
        ));
        // SIGKILL.
        child.kill().unwrap();
        child.wait().unwrap();
        let mut consumer = broker.consume(&[Queue::In], 512).await.unwrap();
        let rest = take(&mut consumer, 90).await;
        let expected: Vec<_> = (10..100).map(|n| n.to_string()).collect();
        assert_eq!(texts(&rest), expected);
        for (at, delivery) in rest.iter().enumerate() {
            assert_eq!(delivery.redelivered, at < 20, "message {at}");
        }
        assert!(is_quiet(&mut consumer).await);
    })
    .await;
}

/// Only one opening of a file consumes from it, and a close hands it on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_consuming_broker_is_refused_until_the_first_closes() {
    in_time(async {
        let fleet = TestBroker::embedded();
        let (first, second) = (fleet.connect().await, fleet.connect().await);
        let unacked = first.consume(&[Queue::In], 1).await.unwrap();
        let error = second.consume(&[Queue::In], 1).await.unwrap_err();
        assert!(error.to_string().contains("ledger.db is in use"), "{error}");
        publish(&second, numbered(Queue::In, 0..1)).await;
        first.close().await;
        drop(unacked);
        // A child that another test starts holds every open file until it becomes its program, so
        // the lock may outlive the close for a moment.
        let consumer = poll(PATIENCE, async || {
            match second.consume(&[Queue::In], 1).await {
                Err(BrokerError::InUse { .. }) => None,
                other => Some(other.unwrap()),
            }
        });
        let mut consumer = consumer.await.expect("the lock is released");
        assert_eq!(take(&mut consumer, 1).await[0].body, b"0");
        let after = first.publish(&[message(Queue::In, "late")]).await;
        assert!(matches!(after[0], Err(PublishError::Unreachable(_))));
        let after = first.consume(&[Queue::In], 1).await;
        assert!(matches!(after, Err(BrokerError::Closed)));
    })
    .await;
}

/// Handles dropped without a close release the file and requeue what they had unacknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_handles_requeue_their_messages() {
    in_time(async {
        let fleet = TestBroker::embedded();
        let broker = fleet.connect().await;
        publish(&broker, numbered(Queue::In, 0..5)).await;
        let mut consumer = broker.consume(&[Queue::In], 8).await.unwrap();
        drop(take(&mut consumer, 3).await);
        drop(consumer);
        drop(broker);
        let broker = fleet.connect().await;
        let mut consumer = None;
        until("the file is free", || async {
            broker.consume(&[Queue::Dead], 1).await.is_ok()
        })
        .await;
        let again = consumer.insert(broker.consume(&[Queue::In], 8).await.unwrap());
        let all = take(again, 5).await;
        assert_eq!(texts(&all), ["0", "1", "2", "3", "4"]);
        let redelivered: Vec<_> = all.iter().map(|d| d.redelivered).collect();
        assert_eq!(redelivered, [true, true, true, false, false]);
    })
    .await;
}

/// Urgent messages overtake, and keep their order among themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn urgent_messages_come_first() {
    in_time(async {
        let fleet = TestBroker::embedded();
        let broker = fleet.connect().await;
        let mut mixed = numbered(Queue::In, 0..6);
        for message in mixed.iter_mut().skip(1).step_by(2) {
            message.envelope.priority = promptyard::job::Priority::High;
        }
        publish(&broker, mixed).await;
        let mut consumer = broker.consume(&[Queue::In], 8).await.unwrap();
        let all = consumer.next_batch(6, Duration::from_secs(10)).await;
        assert_eq!(texts(&all), ["1", "3", "5", "0", "2", "4"]);
    })
    .await;
}

/// Fleets with different prefixes share a file without seeing each other's messages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefixes_keep_fleets_apart() {
    in_time(async {
        let mut fleet = TestBroker::embedded();
        let plain = fleet.connect().await;
        fleet.config.prefix = "other.".to_owned();
        let other = fleet.connect().await;
        publish(&plain, numbered(Queue::In, 0..2)).await;
        publish(&other, numbered(Queue::In, 7..8)).await;
        let reply = promptyard::broker::Publication {
            target: Target::Reply("other.jobs.in".to_owned()),
            ..message(Queue::In, "x")
        };
        let outcomes = plain.publish(&[reply]).await;
        assert_eq!(outcomes, [Err(PublishError::Unroutable)]);
        let mut consumer = other.consume(&[Queue::In], 8).await.unwrap();
        assert_eq!(texts(&take(&mut consumer, 1).await), ["7"]);
        assert!(is_quiet(&mut consumer).await);
        other.delete_queues().await.unwrap();
        other.close().await;
        let mut consumer = plain.consume(&[Queue::In], 8).await.unwrap();
        assert_eq!(texts(&take(&mut consumer, 2).await), ["0", "1"]);
    })
    .await;
}

/// A file that cannot hold queues is named, with what is wrong with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_no_database_is_refused() {
    in_time(async {
        let fleet = TestBroker::embedded();
        let path = fleet.folder.path().join("notes.txt");
        std::fs::write(&path, "shopping list, ".repeat(400)).unwrap();
        for path in [path.as_path(), fleet.folder.path()] {
            let error = Broker::connect(&fleet.config, path).await.unwrap_err();
            assert!(matches!(error, BrokerError::Storage { .. }), "{error}");
            assert!(
                error.to_string().contains(path.to_str().unwrap()),
                "{error}"
            );
        }
        assert!(
            std::fs::read_to_string(&path)
                .unwrap()
                .starts_with("shopping")
        );
    })
    .await;
}
