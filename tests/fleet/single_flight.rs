//! A hundred identical jobs at once are one run, also when the worker that runs it dies.

use std::time::Duration;

use chrono::Utc;
use promptyard::{
    broker::Queue,
    job::{Answer, ContextSavings, FinishReason, RoutedJob, Tier, Usage},
    store::{AttemptOutcome, Claim, Claimant, Claimed, Settlement, Store},
};
use serde_json::{Value, json};

use crate::{
    producer::Producer,
    support::fleet::{Role, TestFleet},
};

const JOBS: usize = 100;

async fn start_roles(fleet: &TestFleet, engine: &str) -> Vec<Role> {
    let mut roles = Vec::new();
    for tiers in ["small", "small", "small,large"] {
        let arguments = [
            "work", "--tier", tiers, "--small", engine, "--large", engine,
        ];
        roles.push(fleet.start(&arguments).await);
    }
    roles.push(fleet.start(&["route"]).await);
    roles.push(fleet.start(&["route"]).await);
    roles
}

async fn ask(fleet: &TestFleet) -> Producer {
    let producer = Producer::new(fleet).await;
    let body = json!({"prompt": "What is the capital of France?", "temperature": 0}).to_string();
    let messages = (0..JOBS).map(|at| {
        let name = format!("ask-{at}");
        (
            producer.asking(&name).with_message_id(name.into()),
            body.clone().into_bytes(),
        )
    });
    producer.publish("jobs.in", messages.collect()).await;
    producer
}

async fn check(fleet: &TestFleet, mut producer: Producer) {
    let replies = producer.replies(JOBS).await;
    let content =
        |line: &Value| line["response"]["body"]["choices"][0]["message"]["content"].clone();
    let first = content(&replies["ask-0"]);
    assert!(first.is_string(), "{:?}", replies["ask-0"]);
    assert!(replies.values().all(|line| content(line) == first));
    assert_eq!(
        fleet
            .count("select count(*) from jobs where state = 'succeeded'")
            .await,
        JOBS as i64
    );
    assert_eq!(
        fleet
            .count("select count(*) from jobs where source = 'computed'")
            .await,
        1
    );
    assert_eq!(
        fleet
            .count("select count(*) from attempts where outcome = 'succeeded'")
            .await,
        1
    );
}

#[tokio::test]
async fn identical_jobs_run_once() {
    let mut fleet = TestFleet::new().await;
    fleet.settings.push("router.threshold=1".to_owned());
    let roles = start_roles(&fleet, "scripted:latency_ms=400").await;
    let producer = ask(&fleet).await;
    check(&fleet, producer).await;
    assert_eq!(fleet.count("select count(*) from attempts").await, 1);
    for role in roles {
        assert!(role.stop().await.success());
    }
    fleet.queues_are_empty().await;
}

/// A worker commits the shared answer and dies before it publishes: its message is redelivered, and every
/// job gets its reply.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_survive_a_worker_killed_after_its_commit() {
    let mut fleet = TestFleet::new().await;
    fleet.settings.push("router.threshold=1".to_owned());
    // The models are known before the jobs are routed, so that the answer may be kept.
    let engine = ["--small", "scripted:", "--large", "scripted:"];
    let work = [&["work", "--tier", "small,large"], &engine[..]].concat();
    assert!(fleet.start(&work).await.stop().await.success());
    let router = fleet.start(&["route"]).await;
    let producer = ask(&fleet).await;
    fleet
        .until_count(
            "select count(*) from jobs where waits_for is not null",
            JOBS as i64 - 1,
        )
        .await;
    let (store, broker) = (
        Store::connect(&fleet.store).await.unwrap(),
        fleet.connect().await,
    );
    let mut consumer = broker
        .consume(&[Queue::Tier(Tier::Small)], 1)
        .await
        .unwrap();
    let delivery = consumer.next_batch(1, Duration::ZERO).await.remove(0);
    let routed: RoutedJob = serde_json::from_slice(&delivery.body).unwrap();
    settle(&store, &routed).await;
    assert_eq!(
        fleet
            .count("select count(*) from jobs where state = 'succeeded'")
            .await,
        JOBS as i64
    );
    // The connection goes with everything that was not acknowledged.
    drop(delivery);
    consumer.close().await;
    broker.close().await;
    let worker = fleet.start(&work).await;
    check(&fleet, producer).await;
    assert_eq!(fleet.count("select count(*) from attempts").await, 1);
    for role in [worker, router] {
        assert!(role.stop().await.success());
    }
    fleet.queues_are_empty().await;
    store.close().await;
}

/// What a worker writes for a job that it has answered.
async fn settle(store: &Store, routed: &RoutedJob) {
    let job = routed.job.head.id;
    let claimant = Claimant {
        worker: "small-0-test".to_owned(),
        tier: Tier::Small,
        model: "scripted".to_owned(),
        revision: "r".to_owned(),
        attempts_max: 4,
        lease: Duration::from_secs(60),
    };
    let claims = [Claim {
        job,
        redelivered: false,
    }];
    let claimed = store.claim(&claimant, &claims).await.unwrap();
    assert!(
        matches!(claimed[0], Claimed::Run { attempt: 1, .. }),
        "{claimed:?}"
    );
    let now = Utc::now();
    let answer = Answer {
        text: "Paris".to_owned(),
        finish_reason: FinishReason::Stop,
        usage: Usage::default(),
        model: "scripted".to_owned(),
        revision: "r".to_owned(),
        mean_logprob: None,
        logprobs: None,
    };
    let settlement = Settlement {
        job,
        attempt: 1,
        outcome: AttemptOutcome::Succeeded(answer),
        started_at: now,
        first_token_at: None,
        finished_at: now,
        cache_key: routed.cache_key,
        saved: ContextSavings::default(),
        reusable: true,
        confidence: None,
        signals: None,
    };
    store
        .settle(&[settlement], Duration::from_secs(600))
        .await
        .unwrap();
}

#[tokio::test]
async fn identical_jobs_survive_the_death_of_their_worker() {
    let mut fleet = TestFleet::new().await;
    // The small tier has several workers; the large one's only worker could not be missed.
    fleet.settings.push("router.threshold=1".to_owned());
    let mut roles = start_roles(&fleet, "scripted:latency_ms=2000").await;
    let producer = ask(&fleet).await;
    fleet
        .until_count("select count(*) from attempts where outcome = 'running'", 1)
        .await;
    let worker: String = sqlx::query_scalar("select worker from attempts")
        .fetch_one(&fleet.pool)
        .await
        .unwrap();
    // A worker's name holds its process id.
    let running = |role: &Role| worker.split('-').any(|part| part == role.id().to_string());
    let at = roles.iter().position(running).unwrap();
    roles.remove(at).kill();
    check(&fleet, producer).await;
    let attempts: Vec<(i32, String)> =
        sqlx::query_as("select attempt, outcome from attempts order by attempt")
            .fetch_all(&fleet.pool)
            .await
            .unwrap();
    assert_eq!(
        attempts,
        [(1, "lost".to_owned()), (2, "succeeded".to_owned())]
    );
    for role in roles {
        assert!(role.stop().await.success());
    }
    fleet.queues_are_empty().await;
}
