//! Jobs that share a prefix go to the worker that has it, a flood of them to all, and those of a
//! worker that is gone to the others.

use std::collections::BTreeSet;

use promptyard::{
    broker::{AffinityQueue, Queue},
    job::Tier,
};
use serde_json::json;

use crate::{
    producer::Producer,
    support::{
        fleet::{Role, TestFleet},
        poll::until,
    },
};

const WORKERS: usize = 3;

/// Three workers that hold two jobs each, and two routers; affinity queues have found their workers.
async fn start_fleet(latency_ms: u32) -> (TestFleet, Vec<Role>) {
    let mut fleet = TestFleet::new().await;
    fleet.settings = vec![
        "router.threshold=1".to_owned(),
        "small.batch_max=2".to_owned(),
        "worker.lease_s=6".to_owned(),
    ];
    let small = format!("scripted:latency_ms={latency_ms}");
    let large = [
        "--tier",
        "large",
        "--small",
        &small,
        "--large",
        "scripted:model=big",
    ];
    let mut roles = Vec::new();
    for _ in 0..WORKERS {
        roles.push(
            fleet
                .start(&["work", "--tier", "small", "--small", &small])
                .await,
        );
    }
    for _ in 0..2 {
        roles.push(fleet.start(&["route"]).await);
    }
    roles.push(fleet.start(&[&["work"], &large[..]].concat()).await);
    lanes_are_taken(&fleet, &roles).await;
    (fleet, roles)
}

/// Waits until every affinity queue has its worker, and workers and routers know it.
async fn lanes_are_taken(fleet: &TestFleet, roles: &[Role]) {
    let broker = fleet.connect().await;
    until("every affinity queue has its worker", async || {
        let depths = broker.depths().await.unwrap();
        let taken = depths.iter().filter(|depth| {
            matches!(depth.queue, Queue::Affinity(Tier::Small, _)) && depth.consumers == 1
        });
        taken.count() == AffinityQueue::COUNT
    })
    .await;
    broker.close().await;
    for role in roles {
        role.calls_store("workers").await;
    }
}

fn body(family: usize, at: usize) -> Vec<u8> {
    let instructions = format!(
        "You answer for shop {family}. {}",
        "Be polite and brief. ".repeat(60)
    );
    let body = json!({"messages": [
        {"role": "system", "content": instructions},
        {"role": "user", "content": format!("Question {at}?")}],
        "promptyard": {"cache": "off", "tags": [format!("family-{family}")]}});
    body.to_string().into_bytes()
}

async fn publish(producer: &Producer, jobs: &[(usize, usize)]) {
    let messages = jobs.iter().map(|(family, at)| {
        (
            producer.asking(&format!("{family}-{at}")),
            body(*family, *at),
        )
    });
    producer.publish("jobs.in", messages.collect()).await;
}

/// The workers that ran a family's jobs.
async fn workers_of(fleet: &TestFleet, family: usize) -> BTreeSet<String> {
    let workers: Vec<String> = sqlx::query_scalar(
        "select a.worker from attempts a join jobs j on j.id = a.job_id where j.tags @> $1::text::jsonb",
    )
    .bind(json!([format!("family-{family}")]).to_string())
    .fetch_all(&fleet.pool)
    .await
    .unwrap();
    workers.into_iter().collect()
}

async fn end(fleet: TestFleet, roles: Vec<Role>) {
    for role in roles {
        assert!(role.stop().await.success());
    }
    fleet.queues_are_empty().await;
}

#[tokio::test]
async fn jobs_with_a_common_prefix_go_to_one_worker() {
    let (fleet, roles) = start_fleet(5).await;
    let mut producer = Producer::new(&fleet).await;
    let families = 6;
    for at in 0..5 {
        // One after the other: nobody has a reason to take another's.
        for family in 0..families {
            publish(&producer, &[(family, at)]).await;
            producer.replies(1).await;
        }
    }
    let mut all = BTreeSet::new();
    for family in 0..families {
        let workers = workers_of(&fleet, family).await;
        assert_eq!(workers.len(), 1, "family {family} was run by {workers:?}");
        all.extend(workers);
    }
    assert!(all.len() > 1, "all families went to {all:?}");
    end(fleet, roles).await;
}

#[tokio::test]
async fn a_flood_with_one_prefix_is_stolen_and_runs_once() {
    let (fleet, roles) = start_fleet(150).await;
    let mut producer = Producer::new(&fleet).await;
    let jobs: Vec<_> = (0..90).map(|at| (0, at)).collect();
    publish(&producer, &jobs).await;
    assert_eq!(producer.replies(jobs.len()).await.len(), jobs.len());
    assert_eq!(workers_of(&fleet, 0).await.len(), WORKERS);
    assert_eq!(
        fleet.count("select count(*) from attempts").await,
        jobs.len() as i64
    );
    // Nobody stood by: with six places the whole takes fifteen rounds of its one worker's forty-five.
    let most = "select max(jobs) from (select count(*) as jobs from attempts group by worker) w";
    assert!(fleet.count(most).await <= 60);
    end(fleet, roles).await;
}

#[tokio::test]
async fn affinity_queues_of_a_dead_worker_are_emptied() {
    let (fleet, mut roles) = start_fleet(200).await;
    let mut producer = Producer::new(&fleet).await;
    let jobs: Vec<_> = (0..48).map(|at| (at % 12, at)).collect();
    publish(&producer, &jobs).await;
    fleet
        .until_count("select least(count(*), 3) from attempts", 3)
        .await;
    roles.remove(0).kill();
    let (replies, _) = producer.replies_at_least_once(jobs.len()).await;
    assert_eq!(replies.len(), jobs.len());
    assert_eq!(
        fleet
            .count("select count(*) from jobs where state = 'succeeded'")
            .await,
        jobs.len() as i64
    );
    assert_eq!(
        fleet
            .count("select count(*) from attempts where outcome = 'succeeded'")
            .await,
        jobs.len() as i64
    );
    end(fleet, roles).await;
}
