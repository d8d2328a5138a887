//! A small server that answers as real ones do, and remembers what it saw.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::{StreamExt, stream};
use promptyard::{
    config::ModelConfig,
    engine::{self, Engine, Generate},
    job::{Message, Role, Sampling, Tier},
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Notify, Semaphore},
    time::Instant,
};

/// A piece of a streamed answer.
#[derive(Clone)]
pub enum Part {
    Text(String),
    /// Waits for a permit of the gate.
    Gate,
    /// Breaks the connection.
    Cut,
    /// Says nothing more.
    Silence,
}

#[derive(Clone)]
pub enum Reply {
    Whole(u16, Vec<(&'static str, String)>, Value),
    Stream(Vec<Part>),
}

pub struct Server {
    /// Given once each, first to last; then `reply`.
    pub script: Mutex<Vec<Reply>>,
    pub reply: Mutex<Reply>,
    pub requests: Mutex<Vec<(HeaderMap, Value)>>,
    /// Fields that it calls invalid.
    pub refuses: Vec<&'static str>,
    /// Lets answers go.
    pub gate: Semaphore,
    pub in_flight: AtomicUsize,
    pub in_flight_most: AtomicUsize,
    /// More at once are refused.
    pub capacity: usize,
    pub refused: AtomicUsize,
    /// Microseconds spent on answers, summed over all.
    pub busy_us: AtomicUsize,
    pub takes: Duration,
    /// Told when a client goes before its answer's end.
    pub given_up: Notify,
    /// Parts of streams that were asked for: all but the last of them are on their way.
    pub parts: AtomicUsize,
}

pub fn completion() -> Value {
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

pub fn whole(value: Value) -> Reply {
    Reply::Whole(200, Vec::new(), value)
}

pub fn refusal(status: u16, headers: &[(&'static str, &str)], code: &str, message: &str) -> Reply {
    let headers = headers
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()));
    let body = json!({"error": {"code": code, "message": message}});
    Reply::Whole(status, headers.collect(), body)
}

pub fn event(value: &Value) -> Part {
    Part::Text(format!("data: {value}\n\n"))
}

pub fn done() -> Part {
    Part::Text("data: [DONE]\n\n".to_owned())
}

/// A delta with a token's text and log-probability.
pub fn delta(text: &str, logprob: f64) -> Part {
    event(&json!({
        "object": "chat.completion.chunk", "system_fingerprint": "fp_1",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null,
            "logprobs": {"content": [{"token": text, "logprob": logprob, "top_logprobs": []}]}}]
    }))
}

pub fn finish(reason: &str) -> Part {
    event(&json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}))
}

pub fn usage() -> Part {
    event(&json!({"choices": [], "usage": completion()["usage"]}))
}

/// What [`completion`] says, as a stream.
pub fn streamed() -> Vec<Part> {
    let role = event(&json!({"choices": [{"delta": {"role": "assistant", "content": ""}}]}));
    let comment = Part::Text(": ping\r\n\r\n".to_owned());
    vec![
        role,
        delta("Par", -0.5),
        comment,
        delta("is", -0.1),
        finish("length"),
        usage(),
        done(),
    ]
}

/// A request in flight; tells when it is dropped before its end.
struct Flight(Arc<Server>, bool);

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
        if !self.1 {
            self.0.given_up.notify_one();
        }
    }
}

async fn complete(
    State(server): State<Arc<Server>>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    let now = server.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
    let mut flight = Flight(server.clone(), false);
    server.in_flight_most.fetch_max(now, Ordering::SeqCst);
    let refused = server
        .refuses
        .iter()
        .find(|field| body.get(field).is_some());
    server
        .requests
        .lock()
        .unwrap()
        .push((headers, body.clone()));
    let reply = if now > server.capacity {
        server.refused.fetch_add(1, Ordering::SeqCst);
        refusal(429, &[], "rate_limit_exceeded", "slow down")
    } else if let Some(field) = refused {
        refusal(
            400,
            &[],
            "unsupported",
            &format!("{field} is not supported"),
        )
    } else {
        let began = Instant::now();
        tokio::time::sleep(server.takes).await;
        let busy_us = began.elapsed().as_micros() as usize;
        server.busy_us.fetch_add(busy_us, Ordering::SeqCst);
        server.gate.acquire().await.unwrap().forget();
        let mut script = server.script.lock().unwrap();
        if script.is_empty() {
            server.reply.lock().unwrap().clone()
        } else {
            script.remove(0)
        }
    };
    match reply {
        Reply::Whole(status, told, body) => {
            flight.1 = true;
            let mut headers = HeaderMap::new();
            for (name, value) in told {
                headers.insert(name, value.parse().unwrap());
            }
            (StatusCode::from_u16(status).unwrap(), headers, Json(body)).into_response()
        }
        Reply::Stream(parts) => {
            let body = stream::iter(parts)
                .chain(stream::once(async { Part::Text(String::new()) }))
                .then(move |part| {
                    let server = flight.0.clone();
                    // The last, empty part: all was sent.
                    flight.1 |= matches!(&part, Part::Text(text) if text.is_empty());
                    async move { send(&server, part).await }
                });
            let kind = [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")];
            (kind, Body::from_stream(body)).into_response()
        }
    }
}

async fn send(server: &Server, part: Part) -> Result<String, &'static str> {
    server.parts.fetch_add(1, Ordering::SeqCst);
    match part {
        Part::Text(text) => Ok(text),
        Part::Gate => {
            server.gate.acquire().await.unwrap().forget();
            Ok(":\n".to_owned())
        }
        Part::Cut => {
            settle().await;
            Err("cut")
        }
        Part::Silence => std::future::pending().await,
    }
}

pub async fn models() -> Json<Value> {
    Json(
        json!({"object": "list", "data": [{"id": "served", "max_model_len": 2048}, {"id": "other"}]}),
    )
}

impl Server {
    pub fn new() -> Self {
        Self {
            script: Mutex::default(),
            reply: Mutex::new(whole(completion())),
            requests: Mutex::default(),
            refuses: Vec::new(),
            gate: Semaphore::new(1000),
            in_flight: AtomicUsize::new(0),
            in_flight_most: AtomicUsize::new(0),
            capacity: usize::MAX,
            refused: AtomicUsize::new(0),
            busy_us: AtomicUsize::new(0),
            takes: Duration::ZERO,
            given_up: Notify::new(),
            parts: AtomicUsize::new(0),
        }
    }

    /// Listens on a free port and gives its root.
    pub async fn start(self) -> (Arc<Self>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        (self.listen(listener), url)
    }

    pub fn listen(self, listener: TcpListener) -> Arc<Self> {
        let server = Arc::new(self);
        let router = Router::new()
            .route("/v1/models", get(models))
            .route("/v1/chat/completions", post(complete))
            .route("/moved", post(complete))
            .with_state(server.clone());
        tokio::spawn(async { axum::serve(listener, router).await });
        server
    }

    pub fn replies(&self, reply: Reply) {
        *self.reply.lock().unwrap() = reply;
    }

    pub fn replies_once(&self, reply: Reply) {
        self.script.lock().unwrap().push(reply);
    }

    /// Waits until as many parts of streams were asked for, and all that can be read is.
    pub async fn has_sent(&self, parts: usize) {
        let sent = async {
            while self.parts.load(Ordering::SeqCst) < parts {
                tokio::task::yield_now().await;
            }
        };
        soon(sent).await;
        settle().await;
    }

    /// The bodies of the requests so far.
    pub fn bodies(&self) -> Vec<Value> {
        let requests = self.requests.lock().unwrap();
        requests.iter().map(|(_, body)| body.clone()).collect()
    }
}

pub async fn open(url: &str, config: ModelConfig) -> Arc<dyn Engine> {
    let config = ModelConfig {
        model: Some(url.to_owned()),
        ..config
    };
    engine::open(Tier::Large, &config).await.unwrap()
}

pub fn request(temperature: f32) -> Generate {
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
        context: Default::default(),
    }
}

/// Runs all ready tasks.
pub async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// Fails a test that waits for what never comes.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what)
        .await
        .expect("within 20 seconds")
}
