//! Unsure answers continue to the large model across processes; a job ends once whatever is killed
//! between its two attempts.

use promptyard::{
    broker::Publication,
    job::{JobId, RoutedJob, Tier},
    store::Store,
};
use serde_json::{Value, json};

use crate::{
    producer::Producer,
    support::fleet::{Role, TestFleet},
};

const JOBS: usize = 40;
const SMALL: &str = "scripted:model=little,unsure=riddle,latency_ms=30";
const LARGE: &str = "scripted:model=big,echo,latency_ms=30";

fn prompt(at: usize) -> String {
    let kind = if at.is_multiple_of(2) {
        "riddle"
    } else {
        "plain"
    };
    format!("{kind} number {at}")
}

async fn worker(fleet: &TestFleet, tier: &str) -> Role {
    fleet
        .start(&["work", "--tier", tier, "--small", SMALL, "--large", LARGE])
        .await
}

/// Publishes jobs of which every second one is beyond the small model.
async fn ask(fleet: &TestFleet) -> Producer {
    let producer = Producer::new(fleet).await;
    let messages = (0..JOBS).map(|at| {
        let name = format!("ask-{at}");
        let body = json!({"prompt": prompt(at)}).to_string();
        (
            producer.asking(&name).with_message_id(name.into()),
            body.into_bytes(),
        )
    });
    producer.publish("jobs.in", messages.collect()).await;
    producer
}

fn content(reply: &Value) -> &str {
    reply["response"]["body"]["choices"][0]["message"]["content"]
        .as_str()
        .unwrap_or_else(|| panic!("no answer: {reply}"))
}

/// Every job has ended once: riddles with the large model's words, the others with the small one's.
async fn check(fleet: &TestFleet, mut producer: Producer) {
    let (replies, _) = producer.replies_at_least_once(JOBS).await;
    for at in 0..JOBS {
        let reply = &replies[&format!("ask-{at}")];
        let told = &reply["response"]["body"]["promptyard"];
        let is_riddle = at % 2 == 0;
        assert_eq!(content(reply) == prompt(at), is_riddle, "{reply}");
        assert_eq!(told["escalated"], is_riddle, "{reply}");
        assert_eq!(told["tier"], if is_riddle { "large" } else { "small" });
    }
    let jobs = JOBS as i64;
    assert_eq!(fleet.count("select count(*) from jobs").await, jobs);
    let ended = "select count(*) from jobs where state = 'succeeded' and finished_at is not null";
    assert_eq!(fleet.count(ended).await, jobs);
    // Both answers of every riddle are there, with their tokens.
    let both = "select count(distinct a.job_id)
                  from attempts a join attempt_answers t on t.job_id = a.job_id and t.attempt = a.attempt
                  join attempts b on b.job_id = a.job_id and b.outcome = 'succeeded' and b.tier = 'large'
                 where a.outcome = 'escalated' and a.tier = 'small' and a.confidence < 0.5
                   and a.completion_tokens > 0 and b.completion_tokens > 0";
    assert_eq!(fleet.count(both).await, jobs / 2);
    let succeeded = "select count(*) from attempts where outcome = 'succeeded'";
    assert_eq!(fleet.count(succeeded).await, jobs);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn low_confidence_answers_are_escalated_despite_kills() {
    let mut fleet = TestFleet::new().await;
    fleet.settings.push("router.threshold=1".to_owned());
    let router = fleet.start(&["route"]).await;
    let first = [worker(&fleet, "small").await, worker(&fleet, "large").await];
    let producer = ask(&fleet).await;
    fleet
        .until_count(
            "select count(*) from attempts where outcome = 'escalated'",
            2,
        )
        .await;
    for role in first {
        role.kill();
    }
    let second = [worker(&fleet, "small").await, worker(&fleet, "large").await];
    check(&fleet, producer).await;
    for role in second {
        assert!(role.stop().await.success());
    }
    assert!(router.stop().await.success());
    fleet.queues_are_empty().await;
}

/// The worker that escalates dies after the commit: its messages are redelivered on the small tier's
/// queue, before and after the jobs went to the large one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_messages_of_escalated_jobs_run_nothing_twice() {
    let mut fleet = TestFleet::new().await;
    fleet.settings.push("router.threshold=1".to_owned());
    let router = fleet.start(&["route"]).await;
    let small = worker(&fleet, "small").await;
    let producer = ask(&fleet).await;
    fleet
        .until_count(
            "select count(*) from jobs where tier = 'large' and state = 'routed'",
            JOBS as i64 / 2,
        )
        .await;
    let store = Store::connect(&fleet.store).await.unwrap();
    let broker = fleet.connect().await;
    let ids: Vec<uuid::Uuid> = sqlx::query_scalar("select id from jobs where tier = 'large'")
        .fetch_all(&fleet.pool)
        .await
        .unwrap();
    let mut old = Vec::new();
    for id in ids {
        let job = store.job(JobId(id)).await.unwrap().unwrap();
        old.push(Publication::to_tier(&RoutedJob {
            job,
            tier: Tier::Small,
            cache_key: None,
            pair: None,
            candidate: None,
            poison_candidate: false,
        }));
    }
    let repeat = async |messages: Vec<Publication>| {
        let published = broker.publish(&messages).await;
        assert!(published.iter().all(Result::is_ok), "{published:?}");
    };
    repeat(old.clone()).await;
    let large = worker(&fleet, "large").await;
    check(&fleet, producer).await;
    repeat(old).await;
    assert!(small.stop().await.success());
    let last = worker(&fleet, "small").await;
    fleet.queues_are_empty().await;
    let attempts = "select count(*) from attempts";
    assert_eq!(fleet.count(attempts).await, (JOBS + JOBS / 2) as i64);
    for role in [last, large, router] {
        assert!(role.stop().await.success());
    }
    fleet.queues_are_empty().await;
    store.close().await;
    broker.close().await;
}
