//! Many requests at once: to a server that takes them, takes some, asks for time, or is away.

use std::{sync::atomic::Ordering, time::Duration};

use axum::{Router, routing::get};
use chrono::Utc;
use futures::future::join_all;
use promptyard::{
    config::ModelConfig,
    engine::{self, EngineError},
    job::Tier,
};
use tokio::{net::TcpListener, time::Instant};

use crate::upstream::server::{
    Reply, Server, models, open, refusal, request, settle, soon, streamed,
};

#[tokio::test]
async fn in_flight_and_waiting_requests_are_limited() {
    let (server, url) = Server::new().start().await;
    server.gate.forget_permits(1000);
    let config = ModelConfig {
        batch_max: 2,
        ..ModelConfig::default()
    };
    let engine = open(&url, config).await;
    let accepted: Vec<_> = (0..10).map(|_| engine.generate(request(0.0))).collect();
    let refused = engine.generate(request(0.0)).await.unwrap_err();
    assert!(
        matches!(refused, EngineError::Unavailable { .. }),
        "{refused:?}"
    );
    while server.in_flight.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    server.gate.add_permits(10);
    for answer in soon(join_all(accepted)).await {
        answer.unwrap();
    }
    assert_eq!(server.in_flight_most.load(Ordering::SeqCst), 2);
    server.gate.add_permits(1);
    engine.generate(request(0.0)).await.unwrap();
}

/// A server that takes four at once is kept busy, refuses few, and every request is answered.
#[tokio::test]
async fn concurrency_follows_the_servers_capacity() {
    let server = Server {
        capacity: 4,
        takes: Duration::from_millis(40),
        ..Server::new()
    };
    let (server, url) = server.start().await;
    server.replies(Reply::Stream(streamed()));
    let engine = open(&url, ModelConfig::default()).await;
    assert_eq!(engine.info().batch_max, 16);
    let batch = |count: usize| {
        let answers = join_all((0..count).map(|_| engine.generate(request(0.0))));
        async {
            for answer in soon(answers).await {
                assert_eq!(answer.unwrap().answer.text, "Paris");
            }
        }
    };
    batch(80).await;
    let learning = server.refused.swap(0, Ordering::SeqCst);
    server.busy_us.store(0, Ordering::SeqCst);
    let began = Instant::now();
    batch(80).await;
    let refused = server.refused.load(Ordering::SeqCst);
    let busy_us = server.busy_us.load(Ordering::SeqCst) as f64;
    let in_flight = busy_us / began.elapsed().as_micros() as f64;
    assert!(in_flight >= 3.0, "{in_flight} in flight on average");
    assert!(
        (1..=30).contains(&refused) && learning >= 12,
        "refused {learning} at first, then {refused} of 80"
    );
}

#[tokio::test]
async fn retry_after_is_honoured() {
    let (server, url) = Server::new().start().await;
    let engine = open(&url, ModelConfig::default()).await;
    for status in [429, 503, 529] {
        let wait = [("retry-after-ms", "150")];
        server.replies_once(refusal(status, &wait, "rate_limit_exceeded", "slow down"));
        let began = Instant::now();
        let first = tokio::spawn(engine.generate(request(0.0)));
        while !server.script.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        settle().await;
        let sent = server.bodies().len();
        let other = tokio::spawn(engine.generate(request(0.0)));
        settle().await;
        assert!(
            began.elapsed() > Duration::from_millis(150) || server.bodies().len() == sent,
            "nothing is sent meanwhile"
        );
        soon(first).await.unwrap().unwrap();
        soon(other).await.unwrap().unwrap();
        assert!(began.elapsed() >= Duration::from_millis(150));
    }
}

/// A wait too long to hold a request for goes back to the caller, in seconds or as a date.
#[tokio::test]
async fn a_long_retry_after_is_returned_to_the_caller() {
    let date = (Utc::now() + Duration::from_secs(121)).to_rfc2822();
    for value in ["120", &date.replace("+0000", "GMT")] {
        let (server, url) = Server::new().start().await;
        let engine = open(&url, ModelConfig::default()).await;
        let wait = [("retry-after", value)];
        server.replies(refusal(429, &wait, "rate_limit_exceeded", "slow down"));
        match soon(engine.generate(request(0.0))).await.unwrap_err() {
            EngineError::Unavailable {
                retry_after_ms: Some(ms),
                ..
            } => assert!((100_000..=121_000).contains(&ms), "{value}: {ms}"),
            other => panic!("expected a wait, found {other:?}"),
        }
        assert_eq!(server.bodies().len(), 1);
        assert!(engine.is_ready(), "it can be reached");
    }
}

#[tokio::test]
async fn an_unreachable_server_is_detected_and_recovers() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let url = format!("http://{address}");
    let nameless = ModelConfig {
        model: Some(url.clone()),
        ..ModelConfig::default()
    };
    let error = engine::open(Tier::Large, &nameless)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("cannot connect") && !error.contains('\n'),
        "{error}"
    );

    let named = ModelConfig {
        name: Some("served".to_owned()),
        ..ModelConfig::default()
    };
    let engine = open(&url, named).await;
    assert!(!engine.is_ready());
    let waiting = tokio::spawn(engine.generate(request(0.0)));
    settle().await;
    let server = Server::new().listen(TcpListener::bind(address).await.unwrap());
    assert_eq!(server.bodies().len(), 0, "nothing is sent to a lost server");
    soon(waiting).await.unwrap().unwrap();
    assert!(engine.is_ready());
    assert_eq!(server.bodies().len(), 1);
}

/// A request that finds nobody waits for the server, and is sent once it is there.
#[tokio::test]
async fn a_request_outlives_a_restart_of_the_server() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let url = format!("http://{address}");
    // Serves its list and keeps no connection, so that the next one finds nobody.
    let list = || async { ([("connection", "close")], models().await) };
    let list = Router::new().route("/v1/models", get(list));
    let serving = tokio::spawn(async { axum::serve(listener, list).await });
    let engine = open(&url, ModelConfig::default()).await;
    serving.abort();
    let _ = serving.await;
    assert!(engine.is_ready(), "nobody knows yet");
    let waiting = tokio::spawn(engine.generate(request(0.0)));
    let noticed = async {
        while engine.is_ready() {
            tokio::task::yield_now().await;
        }
    };
    soon(noticed).await;
    let server = Server::new().listen(TcpListener::bind(address).await.unwrap());
    let generation = soon(waiting).await.unwrap().unwrap();
    assert_eq!(generation.answer.text, "Paris");
    assert_eq!(server.bodies().len(), 1);
}
