//! Copies for learning, feedback and targets on RabbitMQ and Postgres, with the roles in processes of their
//! own.

use serde_json::json;

use crate::support::{
    fleet::{TestFleet, http, text},
    poll::{PATIENCE, until},
    servers::free_port,
};

/// A copy reaches large through the broker, leaves the producer's results alone, and feedback comes
/// by HTTP, and by SQL from a role that may do nothing else.
#[tokio::test]
async fn shadow_copies_and_feedback_are_stored() {
    let mut fleet = TestFleet::new().await;
    fleet.settings = vec![
        "router.threshold=1".to_owned(),
        "router.shadow_share=1".to_owned(),
    ];
    let (small, large) = ("scripted:echo", "scripted:model=big,echo");
    let models = ["--small", small, "--large", large];
    let worker = fleet
        .start(&[&["work", "--tier", "small,large"], &models[..]].concat())
        .await;
    let router = fleet.start(&["route"]).await;
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let api = fleet.start(&["serve", "--listen", &listen]).await;

    let body =
        json!({"prompt": "hello", "promptyard": {"tenant": "acme", "tags": ["eu"]}}).to_string();
    let answered = http(port, "POST", "/v1/chat/completions", &[], &body)
        .await
        .unwrap();
    assert_eq!(answered.status, 200, "{}", answered.body);
    let extension = &answered.json()["promptyard"];
    assert_eq!(extension["tier"], "small");
    let id = extension["job_id"].as_str().unwrap().to_owned();
    fleet
        .until_count(
            "select count(*) from shadow_pairs where agrees and tenant = 'acme'",
            1,
        )
        .await;
    assert_eq!(
        fleet
            .count("select sum(jobs)::bigint from tenant_usage")
            .await,
        1
    );
    assert_eq!(
        fleet
            .count("select sum(copies)::bigint from shadow_costs where tenant = 'acme'")
            .await,
        1
    );
    assert_eq!(
        fleet
            .count("select count(*) from jobs where tags @> '[\"eu\"]'")
            .await,
        2
    );
    let results = fleet.run(&["results", "--since", "1h"], b"").await;
    assert_eq!(text(&results.stdout).lines().count(), 1);

    let path = format!("/v1/jobs/{id}/feedback");
    let stranger = http(port, "POST", &path, &[], r#"{"score":1}"#)
        .await
        .unwrap();
    assert_eq!(stranger.status, 404, "{}", stranger.body);
    for score in ["0.5", "0.75"] {
        let word = format!(r#"{{"score":{score},"tenant":"acme"}}"#);
        let kept = http(port, "POST", &path, &[], &word).await.unwrap();
        assert_eq!(kept.status, 200, "{}", kept.body);
    }
    let mut connection = fleet.pool.acquire().await.unwrap();
    let role = "set role promptyard_labeller";
    sqlx::query(role).execute(&mut *connection).await.unwrap();
    let word = "insert into feedback (job_id, source, score) values ($1, 'review', 1)
                    on conflict (job_id, source) do update set score = excluded.score";
    let job: uuid::Uuid = id.parse().unwrap();
    for _ in 0..2 {
        sqlx::query(word)
            .bind(job)
            .execute(&mut *connection)
            .await
            .unwrap();
    }
    let beyond = "insert into feedback (job_id, source, score) values ($1, 'worse', 1.5)";
    assert!(
        sqlx::query(beyond)
            .bind(job)
            .execute(&mut *connection)
            .await
            .is_err()
    );
    let peek = sqlx::query("select * from answers")
        .execute(&mut *connection)
        .await;
    assert!(peek.is_err(), "a labeller sees no answers");
    sqlx::query("reset role")
        .execute(&mut *connection)
        .await
        .unwrap();
    drop(connection);
    assert_eq!(
        fleet
            .count("select count(*) from feedback where score in (0.75, 1)")
            .await,
        2
    );

    let explained = fleet.run(&["router", "explain", &id, "--json"], b"").await;
    let explained: serde_json::Value = serde_json::from_slice(&explained.stdout).unwrap();
    assert_eq!(
        explained["feedback"].as_array().map(Vec::len),
        Some(2),
        "{explained}"
    );
    for role in [api, router, worker] {
        assert!(role.stop().await.success());
    }
}

/// Submits jobs, waits for their end and returns how many of them were decided by a target.
async fn decided_by(fleet: &TestFleet, batch: &str, target: &str) -> i64 {
    // Both routers take from the queue, so that some of these go to each.
    let lines: String = (0..JOBS)
        .map(|at| format!("Question {at} of {batch}\n"))
        .collect();
    let arguments = ["submit", "-", "--batch", batch];
    let done = fleet.run(&arguments, lines.as_bytes()).await;
    assert!(done.status.success(), "{}", text(&done.stderr));
    let count = async |statement: &'static str| -> i64 {
        let counting = sqlx::query_scalar(statement).bind(batch).bind(target);
        counting.fetch_one(&fleet.pool).await.unwrap()
    };
    let ended =
        "select count(*) from jobs where batch = $1 and finished_at is not null and $2 <> ''";
    until("every job has ended", async || count(ended).await >= JOBS).await;
    count("select count(*) from jobs where batch = $1 and target_scope || ' ' || target = $2").await
}

/// Jobs of a submission.
const JOBS: i64 = 40;

/// Every router of a fleet follows a target that is set while it runs.
#[tokio::test]
async fn routers_follow_a_target_without_a_restart() {
    let mut fleet = TestFleet::new().await;
    fleet.settings = vec!["router.target=threshold:1".to_owned()];
    let models = ["--small", "scripted:echo", "--large", "scripted:echo"];
    let worker = fleet
        .start(&[&["work", "--tier", "small,large"], &models[..]].concat())
        .await;
    let routers = [fleet.start(&["route"]).await, fleet.start(&["route"]).await];
    let follow = async |name: &str, target: &str| {
        let following = async {
            for at in 0.. {
                if decided_by(&fleet, &format!("{name}-{at}"), target).await == JOBS {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, following)
            .await
            .expect(target);
    };
    follow("configured", "all threshold:1").await;
    for (arguments, name, target) in [
        (&["set", "all", "threshold:0"][..], "set", "all threshold:0"),
        (&["unset", "all"], "unset", "all threshold:1"),
    ] {
        let arguments = [&["router", "target"], arguments].concat();
        let done = fleet.run(&arguments, b"").await;
        assert!(done.status.success(), "{}", text(&done.stderr));
        follow(name, target).await;
    }
    let strays = "select count(*) from jobs where (tier = 'large') <> (target = 'threshold:0')";
    assert_eq!(fleet.count(strays).await, 0);
    for role in routers.into_iter().chain([worker]) {
        assert!(role.stop().await.success());
    }
}
