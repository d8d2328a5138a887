//! Copies for learning and feedback on RabbitMQ and Postgres, with the roles in processes of their
//! own.

use serde_json::json;

use crate::harness::{Yard, free_port, http, text};

/// A copy reaches large through the broker, leaves the producer's results alone, and feedback comes
/// by HTTP, and by SQL from a role that may do nothing else.
#[tokio::test]
async fn copies_and_feedback_reach_the_ledger() {
    let mut yard = Yard::new().await;
    yard.settings = vec![
        "router.threshold=1".to_owned(),
        "router.shadow_share=1".to_owned(),
    ];
    let (small, large) = ("scripted:echo", "scripted:model=big,echo");
    let models = ["--small", small, "--large", large];
    let worker = yard
        .start(&[&["work", "--tier", "small,large"], &models[..]].concat())
        .await;
    let router = yard.start(&["route"]).await;
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let api = yard.start(&["serve", "--listen", &listen]).await;

    let body =
        json!({"prompt": "hello", "promptyard": {"tenant": "acme", "tags": ["eu"]}}).to_string();
    let answered = http(port, "POST", "/v1/chat/completions", &[], &body)
        .await
        .unwrap();
    assert_eq!(answered.status, 200, "{}", answered.body);
    let extension = &answered.json()["promptyard"];
    assert_eq!(extension["tier"], "small");
    let id = extension["job_id"].as_str().unwrap().to_owned();
    yard.until_count(
        "select count(*) from shadow_pairs where agrees and tenant = 'acme'",
        1,
    )
    .await;
    assert_eq!(
        yard.count("select sum(jobs)::bigint from tenant_usage")
            .await,
        1
    );
    assert_eq!(
        yard.count("select sum(copies)::bigint from shadow_costs where tenant = 'acme'")
            .await,
        1
    );
    assert_eq!(
        yard.count("select count(*) from jobs where tags @> '[\"eu\"]'")
            .await,
        2
    );
    let results = yard.run(&["results", "--since", "1h"], b"").await;
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
    let mut connection = yard.pool.acquire().await.unwrap();
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
        yard.count("select count(*) from feedback where score in (0.75, 1)")
            .await,
        2
    );

    let explained = yard.run(&["router", "explain", &id, "--json"], b"").await;
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
