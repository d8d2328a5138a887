//! Two thousand jobs through two routers and three workers: each ends once, despite kills.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use promptyard::scoring::{features::Features, scorer::Scorer};
use serde_json::json;

use crate::{
    producer::Producer,
    support::fleet::{Role, TestFleet, json_lines, text},
};

/// Jobs of each kind of producer.
const HALF: usize = 1000;
/// Jobs whose messages are published twice.
const REPEATED: usize = 60;
const ENDED: &str = "select count(*) from jobs where finished_at is not null";

/// Prompts of many lengths, so that both tiers get some; every fifth is like another.
fn body(name: usize) -> serde_json::Value {
    let same = if name % 5 == 4 {
        name - name % 50
    } else {
        name
    };
    let filler = "Explain each step of the calculation: 3 * 7 + 12. ".repeat(same % 7);
    json!({"custom_id": format!("job-{name}"), "body": {"prompt": format!("{filler}Number {same}?"), "temperature": 0}})
}

struct Crew {
    routers: Vec<Role>,
    workers: Vec<Role>,
}

const SMALL: &str = "scripted:model=small,latency_ms=40,jitter_ms=60";
const LARGE: &str = "scripted:model=large,latency_ms=40,jitter_ms=60";

/// Half of the prompts' scores lie on either side of the threshold, whatever the weights.
async fn fleet_of_both() -> TestFleet {
    let scorer = Scorer::bundled();
    let score = |name| {
        let prompt = body(name)["body"]["prompt"].as_str().unwrap().to_owned();
        scorer.score(&Features::of_text(&prompt)).gain
    };
    let mut scores: Vec<f64> = (0..2 * HALF).map(score).collect();
    scores.sort_by(f64::total_cmp);
    let mut fleet = TestFleet::new().await;
    fleet
        .settings
        .push(format!("router.threshold={}", scores[HALF]));
    fleet
}

async fn worker(fleet: &TestFleet, tiers: &str) -> Role {
    fleet
        .start(&["work", "--tier", tiers, "--small", SMALL, "--large", LARGE])
        .await
}

async fn start_roles(fleet: &TestFleet) -> Crew {
    let (small, large, both) = tokio::join!(
        worker(fleet, "small"),
        worker(fleet, "large"),
        worker(fleet, "small,large")
    );
    let workers = vec![small, large, both];
    let (one, other) = tokio::join!(fleet.start(&["route"]), fleet.start(&["route"]));
    Crew {
        routers: vec![one, other],
        workers,
    }
}

/// The first half, as `submit` sends it.
async fn submit(fleet: &TestFleet) {
    let lines: String = (0..HALF).map(|name| format!("{}\n", body(name))).collect();
    let submitted = fleet
        .run(&["submit", "-", "--batch", "half"], lines.as_bytes())
        .await;
    assert!(submitted.status.success(), "{}", text(&submitted.stderr));
    assert_eq!(text(&submitted.stdout), "half\n");
}

/// The second half by a plain AMQP client, with some messages repeated.
async fn publish(fleet: &TestFleet) {
    let producer = Producer::new(fleet).await;
    let names = (HALF..2 * HALF).chain(HALF..HALF + REPEATED);
    let messages = names.map(|name| {
        let properties = BasicProperties::default().with_message_id(format!("key-{name}").into());
        (properties, body(name).to_string().into_bytes())
    });
    producer.publish("jobs.in", messages.collect()).await;
}

/// Asserts that all jobs ended once with every attempt accounted for; returns the answers by name.
async fn check(fleet: &TestFleet, crew: Crew) -> BTreeMap<String, String> {
    let count = |query| fleet.count(query);
    assert_eq!(count("select count(*) from jobs").await, 2 * HALF as i64);
    assert_eq!(
        count("select count(distinct custom_id) from jobs").await,
        2 * HALF as i64
    );
    assert_eq!(
        count("select count(*) from jobs where state <> 'succeeded'").await,
        0
    );
    assert_eq!(
        count("select count(*) from jobs where tier = 'large'")
            .await
            .min(100),
        100
    );
    assert_eq!(
        count("select count(*) from jobs where tier = 'small'")
            .await
            .min(100),
        100
    );
    // One committed run for each computed answer, and it is the job's latest.
    let unaccounted = "select count(*) from jobs j where
        (select count(*) from attempts a where a.job_id = j.id) <> j.attempts
        or (select count(*) from attempts a where a.job_id = j.id and a.outcome = 'succeeded')
           <> case when j.source = 'computed' then 1 else 0 end
        or (j.source = 'computed' and not exists (select from attempts a
               where a.job_id = j.id and a.attempt = j.attempts and a.outcome = 'succeeded'))";
    assert_eq!(count(unaccounted).await, 0);
    let open = "select count(*) from attempts where outcome = 'running' or finished_at is null";
    assert_eq!(count(open).await, 0);
    let reused = count("select count(*) from jobs where source <> 'computed'").await;
    assert!(reused > 100, "identical prompts run once: {reused}");
    assert_eq!(count("select count(*) from dead_letters").await, 0);
    for role in crew.routers.into_iter().chain(crew.workers) {
        let log = role.log.clone();
        let status = role.stop().await;
        assert!(
            status.success(),
            "{}",
            std::fs::read_to_string(log).unwrap()
        );
    }
    fleet.queues_are_empty().await;
    let rows: Vec<(String, String)> =
        sqlx::query_as("select j.custom_id, a.text from jobs j join answers a on a.job_id = j.id")
            .fetch_all(&fleet.pool)
            .await
            .unwrap();
    let answers: BTreeMap<_, _> = rows.into_iter().collect();
    assert_eq!(answers.len(), 2 * HALF);
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_job_ends_once_despite_kills() {
    let fleet = fleet_of_both().await;
    let roles = start_roles(&fleet).await;
    tokio::join!(submit(&fleet), publish(&fleet));
    fleet.until_ended(2 * HALF as i64).await;
    let batch = fleet.run(&["results", "--batch", "half"], b"").await;
    assert_eq!(json_lines(&batch.stdout).len(), HALF);
    let undisturbed = check(&fleet, roles).await;
    assert_eq!(
        fleet
            .count("select count(*) from attempts where outcome <> 'succeeded'")
            .await,
        0
    );

    let mut fleet = fleet_of_both().await;
    // What the dead worker had claimed is free again before anybody's patience ends.
    fleet.settings.push("worker.lease_s=20".to_owned());
    let mut roles = start_roles(&fleet).await;
    submit(&fleet).await;
    fleet.until_count(ENDED, 100).await;
    // The worker of both tiers dies over its batches.
    roles.workers.pop().unwrap().kill();
    tokio::join!(publish(&fleet), async {
        fleet
            .until_count("select count(*) from jobs", HALF as i64 + 50)
            .await;
        roles.routers.pop().unwrap().kill();
    });
    fleet.until_count(ENDED, 600).await;
    let drained = roles.workers.remove(0);
    let (status, replacement) = tokio::join!(drained.stop(), worker(&fleet, "small"));
    assert!(status.success());
    roles.workers.push(replacement);
    fleet.until_ended(2 * HALF as i64).await;
    assert!(
        fleet
            .count("select count(*) from attempts where outcome = 'lost'")
            .await
            > 0
    );
    let disturbed = check(&fleet, roles).await;
    assert_eq!(undisturbed, disturbed);
}
