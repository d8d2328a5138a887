//! A hundred identical jobs at once are one run, also when the worker that runs it dies.

use serde_json::{Value, json};

use crate::{
    harness::{Role, Yard},
    producer::Producer,
};

const JOBS: usize = 100;

async fn crew(yard: &Yard, engine: &str) -> Vec<Role> {
    let mut roles = Vec::new();
    for tiers in ["small", "small", "small,large"] {
        let arguments = [
            "work", "--tier", tiers, "--small", engine, "--large", engine,
        ];
        roles.push(yard.start(&arguments).await);
    }
    roles.push(yard.start(&["route"]).await);
    roles.push(yard.start(&["route"]).await);
    roles
}

async fn ask(yard: &Yard) -> Producer {
    let producer = Producer::new(yard).await;
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

async fn check(yard: &Yard, mut producer: Producer) {
    let replies = producer.replies(JOBS).await;
    let content =
        |line: &Value| line["response"]["body"]["choices"][0]["message"]["content"].clone();
    let first = content(&replies["ask-0"]);
    assert!(first.is_string(), "{:?}", replies["ask-0"]);
    assert!(replies.values().all(|line| content(line) == first));
    assert_eq!(
        yard.count("select count(*) from jobs where state = 'succeeded'")
            .await,
        JOBS as i64
    );
    assert_eq!(
        yard.count("select count(*) from jobs where source = 'computed'")
            .await,
        1
    );
    assert_eq!(
        yard.count("select count(*) from attempts where outcome = 'succeeded'")
            .await,
        1
    );
}

#[tokio::test]
async fn identical_jobs_run_once() {
    let mut yard = Yard::new().await;
    yard.settings.push("router.threshold=1".to_owned());
    let roles = crew(&yard, "scripted:latency_ms=400").await;
    let producer = ask(&yard).await;
    check(&yard, producer).await;
    assert_eq!(yard.count("select count(*) from attempts").await, 1);
    for role in roles {
        assert!(role.stop().await.success());
    }
    yard.queues_are_empty().await;
}

#[tokio::test]
async fn identical_jobs_outlive_the_worker_that_runs_them() {
    let mut yard = Yard::new().await;
    // The small tier has several workers; the large one's only worker could not be missed.
    yard.settings.push("router.threshold=1".to_owned());
    let mut roles = crew(&yard, "scripted:latency_ms=2000").await;
    let producer = ask(&yard).await;
    yard.until_count("select count(*) from attempts where outcome = 'running'", 1)
        .await;
    let worker: String = sqlx::query_scalar("select worker from attempts")
        .fetch_one(&yard.pool)
        .await
        .unwrap();
    // A worker's name holds its process id.
    let running = |role: &Role| worker.split('-').any(|part| part == role.id().to_string());
    let at = roles.iter().position(running).unwrap();
    roles.remove(at).kill();
    check(&yard, producer).await;
    let attempts: Vec<(i32, String)> =
        sqlx::query_as("select attempt, outcome from attempts order by attempt")
            .fetch_all(&yard.pool)
            .await
            .unwrap();
    assert_eq!(
        attempts,
        [(1, "lost".to_owned()), (2, "succeeded".to_owned())]
    );
    for role in roles {
        assert!(role.stop().await.success());
    }
    yard.queues_are_empty().await;
}
