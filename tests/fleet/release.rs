//! A router dies after it released held jobs and before it published them: the next one does.

use std::time::Duration;

use lapin::BasicProperties;
use promptyard::{
    job::{JobId, Tier},
    store::{DeferredQueue, Store},
};
use serde_json::json;

use crate::{producer::Producer, support::fleet::TestFleet};

const JOBS: i64 = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_released_by_a_dead_router_are_published_by_the_next() {
    let mut fleet = TestFleet::new().await;
    // The rescuer would find them as well, much later.
    fleet.settings = ["router.window_jobs=1", "router.stuck_after_s=3600"]
        .map(str::to_owned)
        .to_vec();
    let router = fleet.start(&["route"]).await;
    let producer = Producer::new(&fleet).await;
    let messages = (0..JOBS).map(|at| {
        let body = json!({"model": "small", "prompt": format!("Number {at}?")});
        let properties = BasicProperties::default().with_message_id(format!("{at}").into());
        (properties, body.to_string().into_bytes())
    });
    producer.publish("jobs.in", messages.collect()).await;
    let routed = "select count(*) from jobs where state = 'routed'";
    fleet.until_count(routed, JOBS).await;
    router.kill();

    // What the router would have done last: its word of it to the broker never left.
    let store = Store::connect(&fleet.store).await.unwrap();
    let held = store
        .deferred(DeferredQueue::Tier(Tier::Small), JOBS as usize)
        .await
        .unwrap();
    assert!(held.len() as i64 > JOBS / 2, "nobody takes any: {held:?}");
    let held: Vec<JobId> = held.into_iter().map(|held| held.job).collect();
    assert_eq!(store.release(&held, false).await.unwrap().len(), held.len());

    let engine = "scripted:latency_ms=5";
    let worker = fleet
        .start(&["work", "--tier", "small", "--small", engine])
        .await;
    let router = fleet.start(&["route"]).await;
    fleet.until_ended(JOBS).await;
    for query in [
        "select count(*) from jobs where state = 'succeeded'",
        "select count(*) from attempts",
    ] {
        assert_eq!(fleet.count(query).await, JOBS, "{query}");
    }
    // Nothing is left to be found, and what was published is not published again and again.
    let unpublished = store.unpublished(Duration::ZERO, 100).await.unwrap();
    assert_eq!(unpublished, []);
    assert!(router.stop().await.success());
    assert!(worker.stop().await.success());
    fleet.queues_are_empty().await;
    store.close().await;
}
