//! The upstream engine against a small server that answers as real ones do.
#![expect(
    clippy::unwrap_used,
    reason = "a test whose server does not start fails"
)]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::future::join_all;
use promptyard::{
    config::{ModelConfig, Secret},
    engine::{self, Engine, EngineFault, Generate},
    job::{FinishReason, Message, Role, Sampling, Tier},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Semaphore};

/// What the server does, and what it saw.
struct Server {
    answer: Mutex<(StatusCode, HeaderMap, Value)>,
    requests: Mutex<Vec<(HeaderMap, Value)>>,
    gives_logprobs: bool,
    /// Lets answers go.
    gate: Semaphore,
    in_flight: AtomicUsize,
    in_flight_most: AtomicUsize,
}

fn completion() -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "served",
        "system_fingerprint": "fp_1",
        "choices": [{
            "index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "Paris"},
            "logprobs": {"content": [{"token": "Par", "logprob": -0.5}, {"token": "is", "logprob": -0.1}]}
        }],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11,
                  "prompt_tokens_details": {"cached_tokens": 4}}
    })
}

async fn complete(
    State(server): State<Arc<Server>>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    let now = server.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
    server.in_flight_most.fetch_max(now, Ordering::SeqCst);
    let wants_logprobs = body["logprobs"] == json!(true);
    server.requests.lock().unwrap().push((headers, body));
    server.gate.acquire().await.unwrap().forget();
    server.in_flight.fetch_sub(1, Ordering::SeqCst);
    if wants_logprobs && !server.gives_logprobs {
        server.gate.add_permits(1);
        let body =
            json!({"error": {"message": "logprobs are not supported", "code": "unsupported"}});
        return (StatusCode::BAD_REQUEST, Json(body)).into_response();
    }
    let (status, headers, body) = server.answer.lock().unwrap().clone();
    (status, headers, Json(body)).into_response()
}

async fn models() -> Json<Value> {
    Json(
        json!({"object": "list", "data": [{"id": "served", "max_model_len": 2048}, {"id": "other"}]}),
    )
}

impl Server {
    /// Listens on a free port and gives its root.
    async fn start(gives_logprobs: bool) -> (Arc<Self>, String) {
        let server = Arc::new(Self {
            answer: Mutex::new((StatusCode::OK, HeaderMap::new(), completion())),
            requests: Mutex::default(),
            gives_logprobs,
            gate: Semaphore::new(1000),
            in_flight: AtomicUsize::new(0),
            in_flight_most: AtomicUsize::new(0),
        });
        let router = Router::new()
            .route("/v1/models", get(models))
            .route("/v1/chat/completions", post(complete))
            .with_state(server.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async { axum::serve(listener, router).await });
        (server, url)
    }

    fn answers(&self, status: u16, headers: &[(&'static str, &str)], body: Value) {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        *self.answer.lock().unwrap() = (StatusCode::from_u16(status).unwrap(), headers, body);
    }
}

async fn open(url: &str, config: ModelConfig) -> Arc<dyn Engine> {
    let config = ModelConfig {
        model: Some(url.to_owned()),
        ..config
    };
    engine::open(Tier::Large, &config).await.unwrap()
}

fn request(temperature: f32) -> Generate {
    Generate {
        messages: vec![Message {
            role: Role::User,
            content: "What is the capital of France?".to_owned(),
        }],
        sampling: Sampling {
            temperature,
            top_p: 0.9,
            stop: vec!["\n".to_owned()],
            max_completion_tokens: 7,
            ..Sampling::default()
        },
        seed_default: u64::MAX,
    }
}

#[tokio::test]
async fn maps_request_and_answer() {
    let (server, url) = Server::start(true).await;
    let config = ModelConfig {
        api_key: Some(Secret::new("sk-test")),
        ..ModelConfig::default()
    };
    let engine = open(&format!("{url}/v1/"), config).await;
    assert_eq!(engine.info().model, "served");
    assert_eq!(engine.info().context_tokens, Some(2048));
    let generation = engine.generate(request(0.0)).await.unwrap();
    let signals = generation.signals.unwrap();
    assert_eq!((signals.tokens, signals.truncated), (2, true));
    assert_eq!((signals.min_logprob, signals.first_logprob), (-0.5, -0.5));
    assert_eq!(
        signals.distribution, None,
        "a server shows no distributions"
    );
    let answer = generation.answer;
    assert_eq!(
        (answer.text.as_str(), answer.finish_reason),
        ("Paris", FinishReason::Length)
    );
    assert_eq!(
        (
            answer.usage.prompt_tokens,
            answer.usage.prompt_tokens_computed
        ),
        (9, 5)
    );
    assert_eq!(answer.usage.completion_tokens, 2);
    assert!((answer.mean_logprob.unwrap() + 0.3).abs() < 1e-6);
    assert!(answer.revision.starts_with(&engine.info().revision));
    engine.generate(request(0.5)).await.unwrap();

    let seen = server.requests.lock().unwrap();
    let (headers, body) = &seen[0];
    assert_eq!(headers["authorization"], "Bearer sk-test");
    let mut body = body.clone();
    // A 32-bit number, widened on its way.
    assert!((body["top_p"].take().as_f64().unwrap() - 0.9).abs() < 1e-6);
    let expected = json!({
        "model": "served", "temperature": 0.0, "top_p": null, "stop": ["\n"], "max_tokens": 7, "logprobs": true,
        "messages": [{"role": "user", "content": "What is the capital of France?"}]
    });
    assert_eq!(body, expected);
    assert_eq!(
        seen[1].1["seed"],
        json!(i64::MAX),
        "sampling is repeatable, and the seed is a signed number"
    );
}

#[tokio::test]
async fn does_without_log_probabilities_where_a_server_has_none() {
    let (server, url) = Server::start(false).await;
    let engine = open(&url, ModelConfig::default()).await;
    engine.generate(request(0.0)).await.unwrap();
    engine.generate(request(0.0)).await.unwrap();
    assert_eq!(
        server.requests.lock().unwrap().len(),
        3,
        "asked for once, refused, and never again"
    );
}

#[tokio::test]
async fn faults_say_what_to_do_next() {
    let (server, url) = Server::start(true).await;
    let engine = open(&url, ModelConfig::default()).await;
    let error = |code: &str, message: &str| json!({"error": {"code": code, "message": message}});
    let unavailable = |fault: EngineFault| match fault {
        EngineFault::Unavailable { retry_after_ms, .. } => retry_after_ms,
        other => panic!("expected Unavailable, found {other:?}"),
    };

    server.answers(
        429,
        &[("retry-after", "3")],
        error("rate_limit_exceeded", "slow down"),
    );
    assert_eq!(
        unavailable(engine.generate(request(0.0)).await.unwrap_err()),
        Some(3000)
    );
    server.answers(
        503,
        &[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")],
        json!({}),
    );
    assert_eq!(
        unavailable(engine.generate(request(0.0)).await.unwrap_err()),
        Some(0)
    );
    server.answers(500, &[], json!("oops"));
    assert_eq!(
        unavailable(engine.generate(request(0.0)).await.unwrap_err()),
        None
    );

    server.answers(
        401,
        &[],
        error("invalid_api_key", "Incorrect API key provided"),
    );
    let fault = engine.generate(request(0.0)).await.unwrap_err();
    assert!(
        matches!(&fault, EngineFault::Unservable(why) if why.contains("401") && why.contains("Incorrect API key")),
        "{fault}"
    );

    let long = "This model's maximum context length is 4096 tokens. However, your messages resulted in 5000 tokens.";
    server.answers(400, &[], error("context_length_exceeded", long));
    let expected = EngineFault::ContextTooLong {
        model: "served".to_owned(),
        prompt_tokens: 5000,
        context_tokens: 4096,
    };
    assert_eq!(engine.generate(request(0.0)).await.unwrap_err(), expected);
    server.answers(400, &[], error("context_length_exceeded", "too long"));
    let fault = engine.generate(request(0.0)).await.unwrap_err();
    assert!(
        matches!(fault, EngineFault::Unservable(_)),
        "without numbers it cannot be told: {fault:?}"
    );

    for body in [json!({"choices": []}), json!({"nothing": 1}), json!([])] {
        server.answers(200, &[], body);
        let fault = engine.generate(request(0.0)).await.unwrap_err();
        assert!(matches!(fault, EngineFault::Crashed(_)), "{fault:?}");
    }
    assert!(engine.is_ready(), "the server can be reached all the time");
}

#[tokio::test]
async fn no_more_are_in_flight_than_the_batch_and_no_more_wait_than_may() {
    let (server, url) = Server::start(true).await;
    server.gate.forget_permits(1000);
    let config = ModelConfig {
        batch_max: 2,
        ..ModelConfig::default()
    };
    let engine = open(&url, config).await;
    let accepted: Vec<_> = (0..10).map(|_| engine.generate(request(0.0))).collect();
    let refused = engine.generate(request(0.0)).await.unwrap_err();
    assert!(
        matches!(refused, EngineFault::Unavailable { .. }),
        "{refused:?}"
    );
    while server.in_flight.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    server.gate.add_permits(10);
    for answer in join_all(accepted).await {
        answer.unwrap();
    }
    assert_eq!(server.in_flight_most.load(Ordering::SeqCst), 2);
    server.gate.add_permits(1);
    engine.generate(request(0.0)).await.unwrap();
}

#[tokio::test]
async fn a_lost_server_is_noticed_and_found_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let url = format!("http://{address}");
    let nameless = ModelConfig {
        model: Some(url.clone()),
        ..ModelConfig::default()
    };
    let fault = engine::open(Tier::Large, &nameless)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        fault.contains("cannot be reached") && !fault.contains('\n'),
        "{fault}"
    );

    let named = ModelConfig {
        name: Some("served".to_owned()),
        ..ModelConfig::default()
    };
    let engine = open(&url, named).await;
    assert!(!engine.is_ready());
    let fault = engine.generate(request(0.0)).await.unwrap_err();
    assert!(
        matches!(fault, EngineFault::Unavailable { .. }),
        "{fault:?}"
    );

    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async {
        axum::serve(listener, Router::new().route("/v1/models", get(models))).await
    });
    let back = async {
        while !engine.is_ready() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), back)
        .await
        .expect("the server is found again");
}
