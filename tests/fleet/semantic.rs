//! Semantic reuse on RabbitMQ and Postgres: two routers learn of each other's questions, hits are run
//! again in the background, and a wrong one costs its entry the trust.

use serde_json::{Value, json};

use crate::{
    producer::Producer,
    support::{
        fleet::{Role, TestFleet},
        servers::embedder_folder,
    },
};

async fn start_fleet(small: &str) -> (TestFleet, Vec<Role>) {
    let embedder = embedder_folder();
    let mut fleet = TestFleet::new().await;
    fleet.settings = vec![
        format!("cache.embedder={embedder}"),
        "cache.recheck_share=1".to_owned(),
        "router.threshold=1".to_owned(),
    ];
    let worker = [
        "work",
        "--tier",
        "small,large",
        "--small",
        small,
        "--large",
        "scripted:model=big",
    ];
    let mut roles = vec![fleet.start(&worker).await];
    for _ in 0..2 {
        roles.push(fleet.start(&["route"]).await);
    }
    (fleet, roles)
}

/// Waits until both routers know the present questions, since either may take the next message.
async fn questions_are_read(roles: &[Role]) {
    for router in &roles[1..] {
        router.calls_store("known_questions").await;
    }
}

/// Publishes questions and returns the sources of their answers by name.
async fn ask(fleet: &TestFleet, questions: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut producer = Producer::new(fleet).await;
    let messages = questions.iter().map(|(name, question)| {
        let body = json!({"prompt": question, "promptyard": {"cache": "semantic"}});
        (producer.asking(name), body.to_string().into_bytes())
    });
    producer.publish("jobs.in", messages.collect()).await;
    let replies = producer.replies(questions.len()).await;
    let source = |line: &Value| {
        let extension = &line["response"]["body"]["promptyard"];
        extension["source"].as_str().unwrap().to_owned()
    };
    let mut sources: Vec<_> = replies
        .iter()
        .map(|(name, line)| (name.clone(), source(line)))
        .collect();
    sources.sort();
    sources
}

/// Answers that differ raise what the entry asks for, so that the question that was given a wrong one is
/// computed the next time.
#[tokio::test]
async fn wrong_hits_raise_the_threshold() {
    let (fleet, roles) = start_fleet("scripted:").await;
    assert_eq!(
        ask(&fleet, &[("a", "How do I reset my password?")]).await[0].1,
        "computed"
    );
    fleet
        .until_count(
            "select count(*) from cache_entries where state = 'ready'",
            1,
        )
        .await;
    questions_are_read(&roles).await;
    let sources = ask(&fleet, &[("b", "How can I reset my password?")]).await;
    assert_eq!(sources[0].1, "semantic");
    fleet
        .until_count("select count(*) from semantic_lookups where not agrees", 1)
        .await;
    assert_eq!(
        fleet
            .count("select disagreements::bigint from cache_questions")
            .await,
        1
    );
    assert_eq!(
        fleet.count("select count(*) from semantic_lookups l join cache_questions q on q.key = l.entry where q.cosine_min > l.cosine").await,
        1
    );
    assert_eq!(
        fleet
            .count("select (wrong_share * 100)::bigint from semantic_reuse")
            .await,
        100
    );
    questions_are_read(&roles).await;
    let sources = ask(&fleet, &[("c", "How can I reset my password?")]).await;
    assert_eq!(sources[0].1, "computed");
    // The copy that was run to learn this is nobody's job.
    assert_eq!(
        fleet
            .count("select sum(jobs)::bigint from tenant_usage")
            .await,
        3
    );
    for role in roles {
        assert!(role.stop().await.success());
    }
    fleet.queues_are_empty().await;
}

/// Answers that say the same leave the entry as it is.
#[tokio::test]
async fn right_hits_are_confirmed() {
    let (fleet, roles) = start_fleet("scripted:says=By its link.").await;
    ask(&fleet, &[("a", "How do I reset my password?")]).await;
    questions_are_read(&roles).await;
    let near = [
        ("b", "How can I reset my password?"),
        ("c", "What is the best way to reset my password?"),
    ];
    let sources = ask(&fleet, &near).await;
    assert!(
        sources.iter().all(|(_, source)| source == "semantic"),
        "{sources:?}"
    );
    fleet
        .until_count("select count(*) from semantic_lookups where agrees", 2)
        .await;
    assert_eq!(
        fleet
            .count("select count(*) from cache_questions where rechecks = 2 and disagreements = 0")
            .await,
        1
    );
    for role in roles {
        assert!(role.stop().await.success());
    }
}
