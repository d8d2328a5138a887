//! Streamed answers: put together, cut off, broken, silent, given up.

use std::{sync::atomic::Ordering, time::Duration};

use chrono::Utc;
use promptyard::{
    config::ModelConfig,
    engine::{EngineError, Generation},
    job::FinishReason,
};
use serde_json::json;

use crate::upstream::server::{
    Part, Reply, Server, completion, delta, done, event, finish, open, request, soon, streamed,
    usage, whole,
};

async fn ask(parts: Vec<Part>) -> Result<Generation, EngineError> {
    let (server, url) = Server::new().start().await;
    let engine = open(&url, ModelConfig::default()).await;
    server.replies_once(Reply::Stream(parts));
    let outcome = soon(engine.generate(request(0.0))).await;
    server.replies(whole(completion()));
    assert!(engine.is_ready());
    soon(engine.generate(request(0.0))).await.unwrap();
    outcome
}

/// A stream says what a whole response says, however its bytes are cut, and when its first token
/// came.
#[tokio::test]
async fn streamed_pieces_are_joined() {
    let expected = ask_whole().await;
    for size in [1, 7, 64, 4096] {
        let text: Vec<u8> = streamed()
            .into_iter()
            .flat_map(|part| match part {
                Part::Text(text) => text.into_bytes(),
                _ => Vec::new(),
            })
            .collect();
        let pieces = text
            .chunks(size)
            .map(|piece| Part::Text(String::from_utf8(piece.to_vec()).unwrap()));
        let generation = ask(pieces.collect()).await.unwrap();
        let revision = |generation: &Generation| {
            let revision = &generation.answer.revision;
            revision.split_once('-').unwrap().1.to_owned()
        };
        assert_eq!(revision(&generation), revision(&expected));
        assert_eq!(generation.answer.text, expected.answer.text);
        assert_eq!(generation.answer.finish_reason, FinishReason::Length);
        assert_eq!(generation.answer.usage, expected.answer.usage);
        assert_eq!(generation.signals, expected.signals);
        let first_token_at = generation.first_token_at.unwrap();
        assert!(generation.started_at <= first_token_at);
        assert!(first_token_at <= generation.finished_at);
    }
}

async fn ask_whole() -> Generation {
    let (_server, url) = Server::new().start().await;
    let engine = open(&url, ModelConfig::default()).await;
    engine.generate(request(0.0)).await.unwrap()
}

#[tokio::test]
async fn first_and_last_token_times_are_measured() {
    let (server, url) = Server::new().start().await;
    let engine = open(&url, ModelConfig::default()).await;
    server.gate.forget_permits(999);
    let mut parts = streamed();
    parts.insert(2, Part::Gate);
    server.replies(Reply::Stream(parts));
    let generation = tokio::spawn(engine.generate(request(0.0)));
    // Role, first token, gate.
    server.has_sent(3).await;
    let between = Utc::now();
    server.gate.add_permits(1);
    let generation = soon(generation).await.unwrap().unwrap();
    assert!(generation.first_token_at.unwrap() < between);
    assert!(between <= generation.finished_at);
}

/// An answer is whole once its end was announced in either way; one that is not is tried again.
#[tokio::test]
async fn a_truncated_stream_is_an_error() {
    let text = |generation: Result<Generation, EngineError>| generation.unwrap().answer.text;
    let cut = |mut parts: Vec<Part>| {
        parts.push(Part::Cut);
        parts
    };
    for parts in [
        vec![],
        vec![delta("Par", -0.5)],
        cut(vec![]),
        cut(vec![delta("Par", -0.5)]),
        vec![Part::Text("data: {\"choices\": [{\"del".to_owned())],
    ] {
        let error = ask(parts).await.unwrap_err();
        assert!(
            matches!(error, EngineError::Unavailable { .. }),
            "{error:?}"
        );
    }
    for parts in [
        vec![delta("Paris", -0.5), finish("stop")],
        vec![delta("Paris", -0.5), done()],
        cut(vec![delta("Paris", -0.5), finish("stop")]),
        vec![delta("Paris", -0.5), Part::Text("data: [DONE]".to_owned())],
    ] {
        assert_eq!(text(ask(parts).await), "Paris");
    }
    let uncounted = ask(vec![delta("Paris", -0.5), finish("stop"), done()]).await;
    let counted = uncounted.unwrap().answer.usage;
    assert_eq!(
        (counted.prompt_tokens, counted.completion_tokens),
        (8, 1),
        "as estimated of the prompt, as listed of the answer"
    );
}

#[tokio::test]
async fn an_error_within_a_stream_maps_like_a_status() {
    let failing = |error| vec![delta("Par", -0.5), event(&error), done()];
    let error = ask(failing(json!({"error": {"code": 500, "message": "m"}}))).await;
    assert!(matches!(error, Err(EngineError::Unavailable { .. })));
    let error = ask(failing(json!({"error": "m", "error_type": "validation"}))).await;
    assert!(matches!(error, Err(EngineError::Unservable(_))));
    let long = "the maximum context length is 10 tokens, yours has 12";
    let error = ask(failing(
        json!({"object": "error", "type": "BadRequestError", "code": 400, "message": long}),
    ))
    .await;
    assert!(matches!(
        error,
        Err(EngineError::ContextTooLong {
            prompt_tokens: 12,
            ..
        })
    ));
    let throttled = ask(failing(json!({"error": {"code": "rate_limit_exceeded"}}))).await;
    assert_eq!(throttled.unwrap().answer.text, "Paris", "it is asked again");
    let named = Part::Text("error: {\"code\": 400, \"message\": \"odd\"}\n\n".to_owned());
    let error = ask(vec![named]).await;
    assert!(matches!(&error, Err(EngineError::Unservable(why)) if why.contains("odd")));
    let error = ask(vec![Part::Text("data: no JSON\n\n".to_owned())]).await;
    assert!(matches!(error, Err(EngineError::Crashed(_))));
}

#[tokio::test]
async fn a_silent_stream_times_out() {
    let (server, url) = Server::new().start().await;
    let engine = open(&url, ModelConfig::default()).await;
    server.replies(Reply::Stream(vec![delta("Par", -0.5), Part::Silence]));
    let generation = tokio::spawn(engine.generate(request(0.0)));
    server.has_sent(2).await;
    let began = tokio::time::Instant::now();
    // From here on the clock runs on by itself whenever everybody waits.
    tokio::time::pause();
    let error = generation.await.unwrap().unwrap_err();
    tokio::time::resume();
    let waited = began.elapsed();
    assert!(
        matches!(error, EngineError::Unavailable { .. }),
        "{error:?}"
    );
    assert!(
        waited > Duration::from_secs(30) && waited < Duration::from_secs(300),
        "sooner than an answer may take: {waited:?}"
    );
    soon(server.given_up.notified()).await;
}

/// A request that is dropped stops the server at once, before its answer and amid it.
#[tokio::test]
async fn a_dropped_request_closes_its_connection() {
    let (server, url) = Server::new().start().await;
    let engine = open(&url, ModelConfig::default()).await;
    server.gate.forget_permits(1000);
    for begins in [false, true] {
        server.replies(Reply::Stream(vec![
            delta("Par", -0.5),
            Part::Silence,
            usage(),
        ]));
        let generation = tokio::spawn(engine.generate(request(0.0)));
        let seen = async {
            while server.in_flight.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
        };
        soon(seen).await;
        if begins {
            server.gate.add_permits(1);
            server.has_sent(2).await;
        }
        generation.abort();
        soon(server.given_up.notified()).await;
        assert_eq!(server.in_flight.load(Ordering::SeqCst), 0);
    }
    server.gate.add_permits(1);
    server.replies(whole(completion()));
    soon(engine.generate(request(0.0))).await.unwrap();
}
