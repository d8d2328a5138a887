//! The HTTP interface as a process of its own, in front of a router and a worker.

use serde_json::json;

use crate::support::{
    fleet::{Role, TestFleet, http},
    servers::free_port,
};

async fn serve(fleet: &TestFleet) -> (Role, u16) {
    let port = free_port();
    let role = fleet
        .start(&["serve", "--listen", &format!("127.0.0.1:{port}")])
        .await;
    (role, port)
}

#[tokio::test]
async fn requests_get_their_answers_from_the_fleet() {
    let fleet = TestFleet::new().await;
    let worker = fleet
        .start(&[
            "work",
            "--tier",
            "small,large",
            "--small",
            "scripted:echo",
            "--large",
            "scripted:echo",
        ])
        .await;
    let router = fleet.start(&["route"]).await;
    let (server, port) = serve(&fleet).await;
    let body = json!({"model": "auto", "messages": [{"role": "user", "content": "hello yard"}]})
        .to_string();
    let chat = |body: String| async move {
        http(
            port,
            "POST",
            "/v1/chat/completions",
            &["content-type: application/json"],
            &body,
        )
        .await
        .unwrap()
    };
    let answers = futures::future::join_all((0..20).map(|_| chat(body.clone()))).await;
    for answer in answers {
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(
            answer.json()["choices"][0]["message"]["content"],
            "hello yard"
        );
    }
    let refused = chat("{".to_owned()).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["error"]["code"], "invalid_json");
    let unknown = chat(r#"{"model":"gpt-9","prompt":"a"}"#.to_owned()).await;
    assert_eq!(
        unknown.json()["error"]["code"],
        "model_not_found",
        "{unknown:?}"
    );

    let key = ["idempotency-key: order-1"];
    let submitted = http(port, "POST", "/v1/jobs", &key, r#"{"prompt":"later"}"#)
        .await
        .unwrap();
    assert_eq!(submitted.status, 202, "{submitted:?}");
    let id = submitted.json()["id"].as_str().unwrap().to_owned();
    fleet
        .until_count(
            "select count(*) from jobs where key = 'order-1' and state = 'succeeded'",
            1,
        )
        .await;
    let shown = http(port, "GET", &format!("/v1/jobs/{id}"), &[], "")
        .await
        .unwrap()
        .json();
    assert_eq!(
        shown["response"]["choices"][0]["message"]["content"],
        "later"
    );
    assert_eq!(shown["history"][0]["outcome"], "succeeded");
    let again = http(port, "POST", "/v1/jobs", &key, r#"{"prompt":"later"}"#)
        .await
        .unwrap();
    assert_eq!(
        (again.status, again.json()["id"].as_str()),
        (200, Some(id.as_str()))
    );
    let other = http(port, "POST", "/v1/jobs", &key, r#"{"prompt":"else"}"#)
        .await
        .unwrap();
    assert_eq!(other.status, 409);
    for role in [server, router, worker] {
        assert!(role.stop().await.success());
    }
    fleet.queues_are_empty().await;
}

#[tokio::test]
async fn a_full_queue_answers_429_with_retry_after() {
    let mut fleet = TestFleet::new().await;
    fleet
        .settings
        .push("broker.queue_messages_max=5".to_owned());
    // Only the small tier is served.
    fleet.settings.push("router.threshold=1".to_owned());
    fleet.broker.queue_messages_max = 5;
    let (server, port) = serve(&fleet).await;
    let mut accepted = 0;
    let refused = loop {
        let body = json!({"prompt": format!("number {accepted}")}).to_string();
        let answer = http(port, "POST", "/v1/jobs", &[], &body).await.unwrap();
        if answer.status != 202 {
            break answer;
        }
        accepted += 1;
        assert!(accepted < 20, "the queue takes more than its limit");
    };
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(
        refused.headers.contains("\r\nretry-after: "),
        "{}",
        refused.headers
    );
    assert!(accepted >= 5);
    // What was refused has ended; what was accepted is answered once there is a fleet.
    assert_eq!(
        fleet
            .count("select count(*) from jobs where state = 'rejected'")
            .await,
        1
    );
    let worker = fleet
        .start(&["work", "--tier", "small", "--small", "scripted:echo"])
        .await;
    let router = fleet.start(&["route"]).await;
    fleet.until_ended(accepted + 1).await;
    assert_eq!(
        fleet
            .count("select count(*) from jobs where state = 'succeeded'")
            .await,
        accepted
    );
    for role in [server, router, worker] {
        assert!(role.stop().await.success());
    }
    fleet.queues_are_empty().await;
}
