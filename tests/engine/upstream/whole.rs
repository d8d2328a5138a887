//! What is asked, what is made of an answer, and what of a refusal.

use promptyard::{
    config::{ModelConfig, Secret},
    engine::EngineError,
    job::FinishReason,
};
use serde_json::json;

use crate::upstream::server::{Reply, Server, completion, open, refusal, request, whole};

#[tokio::test]
async fn maps_request_and_answer() {
    let (server, url) = Server::new().start().await;
    let config = ModelConfig {
        api_key: Some(Secret::new("sk-test")),
        ..ModelConfig::default()
    };
    let engine = open(&format!("{url}/v1/"), config).await;
    assert_eq!(engine.info().model, "served");
    assert_eq!(engine.info().context_tokens, Some(2048));
    let generation = engine.generate(request(0.0)).await.unwrap();
    assert_eq!(
        generation.first_token_at, None,
        "a whole answer does not tell"
    );
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
        "stream": true, "stream_options": {"include_usage": true},
        "messages": [{"role": "user", "content": "What is the capital of France?"}]
    });
    assert_eq!(body, expected);
    assert_eq!(
        seen[1].1["seed"],
        json!(i64::MAX),
        "sampling is repeatable, and the seed is a signed number"
    );
}

/// A request field that a server refuses by name is sent once; the answer arrives all
/// the same.
#[tokio::test]
async fn refused_request_fields_are_dropped_and_remembered() {
    for refuses in [
        vec!["logprobs"],
        vec!["stream_options"],
        vec!["stream"],
        vec!["stream_options", "logprobs", "stream"],
    ] {
        let server = Server {
            refuses: refuses.clone(),
            ..Server::new()
        };
        let (server, url) = server.start().await;
        let engine = open(&url, ModelConfig::default()).await;
        for _ in 0..2 {
            let generation = engine.generate(request(0.0)).await.unwrap();
            assert_eq!(generation.answer.text, "Paris");
        }
        let bodies = server.bodies();
        assert_eq!(bodies.len(), refuses.len() + 2, "{refuses:?}");
        let last = bodies.last().unwrap();
        assert!(refuses.iter().all(|field| last.get(field).is_none()));
        assert_eq!(
            last.get("logprobs").is_some(),
            !refuses.contains(&"logprobs"),
            "nothing else is given up"
        );
    }
}

#[tokio::test]
async fn streaming_is_tried_once_on_a_server_without_it() {
    let (server, url) = Server::new().start().await;
    let engine = open(&url, ModelConfig::default()).await;
    for _ in 0..3 {
        engine.generate(request(0.0)).await.unwrap();
    }
    let asked = server.bodies();
    let asked = asked.iter().map(|body| body.get("stream").is_some());
    assert_eq!(asked.collect::<Vec<_>>(), [true, false, false]);
}

#[tokio::test]
async fn errors_map_to_the_next_step() {
    let (server, url) = Server::new().start().await;
    let engine = open(&url, ModelConfig::default()).await;
    let unavailable = |error: EngineError| match error {
        EngineError::Unavailable { retry_after_ms, .. } => retry_after_ms,
        other => panic!("expected Unavailable, found {other:?}"),
    };
    server.replies(Reply::Whole(500, Vec::new(), json!("oops")));
    assert_eq!(
        unavailable(engine.generate(request(0.0)).await.unwrap_err()),
        None
    );

    let wrong_key = refusal(401, &[], "invalid_api_key", "Incorrect API key provided");
    server.replies(wrong_key);
    let error = engine.generate(request(0.0)).await.unwrap_err();
    assert!(
        matches!(&error, EngineError::Unservable(why) if why.contains("401") && why.contains("Incorrect API key")),
        "{error}"
    );

    let long = "This model's maximum context length is 4096 tokens. However, your messages resulted in 5000 tokens.";
    server.replies(refusal(400, &[], "context_length_exceeded", long));
    let expected = EngineError::ContextTooLong {
        model: "served".to_owned(),
        prompt_tokens: 5000,
        context_tokens: 4096,
    };
    assert_eq!(engine.generate(request(0.0)).await.unwrap_err(), expected);
    server.replies(refusal(400, &[], "context_length_exceeded", "too long"));
    let error = engine.generate(request(0.0)).await.unwrap_err();
    assert!(
        matches!(error, EngineError::Unservable(_)),
        "without numbers it cannot be told: {error:?}"
    );

    for body in [json!({"choices": []}), json!({"nothing": 1}), json!([])] {
        server.replies(whole(body));
        let error = engine.generate(request(0.0)).await.unwrap_err();
        assert!(matches!(error, EngineError::Crashed(_)), "{error:?}");
    }
    assert!(engine.is_ready(), "the server can be reached all the time");
}

/// Prompts and key go to the configured server and to no other.
#[tokio::test]
async fn redirects_are_followed_within_the_server_only() {
    let (elsewhere, elsewhere_url) = Server::new().start().await;
    let (server, url) = Server::new().start().await;
    let config = ModelConfig {
        api_key: Some(Secret::new("sk-test")),
        ..ModelConfig::default()
    };
    let engine = open(&url, config).await;
    let moved = |to: String| Reply::Whole(307, vec![("location", to)], json!({}));
    server.replies_once(moved(format!("{elsewhere_url}/v1/chat/completions")));
    let error = engine.generate(request(0.0)).await.unwrap_err();
    assert!(
        matches!(&error, EngineError::Unservable(why) if why.contains("307")),
        "{error}"
    );
    assert_eq!(elsewhere.bodies().len(), 0);
    server.replies_once(moved("/moved".to_owned()));
    engine.generate(request(0.0)).await.unwrap();
    let seen = server.requests.lock().unwrap();
    assert_eq!(seen.len(), 3);
    assert_eq!(seen[2].0["authorization"], "Bearer sk-test");
}

/// Neither key nor prompt nor answer shows in what is logged, formatted or told as an error.
#[tokio::test]
async fn secrets_and_prompts_are_not_logged() {
    let log = crate::upstream::log::Log::default();
    let _guard = log.install();
    let (server, url) = Server::new().start().await;
    let with_password = url.replace("http://", "http://user:sk-password@");
    let config = ModelConfig {
        api_key: Some(Secret::new("sk-test")),
        ..ModelConfig::default()
    };
    let engine = open(&with_password, config).await;
    let mut told = format!("{engine:?}");
    let echo = "the key sk-test is wrong";
    for reply in [
        refusal(401, &[], "invalid_api_key", echo),
        refusal(500, &[], "server_error", echo),
        whole(json!({"choices": [{"message": {"content": 7, "odd": "What is the capital"}}]})),
        whole(json!({"choices": [{"message": {"content": "Paris"}}]})),
        refusal(400, &[], "unsupported", "logprobs are not supported"),
    ] {
        server.replies_once(reply);
        if let Err(error) = engine.generate(request(0.0)).await {
            told += &format!("{error} {error:?}");
        }
    }
    server.replies(whole(completion()));
    engine.generate(request(0.0)).await.unwrap();
    let nowhere = ModelConfig {
        model: Some("http://user:sk-password@127.0.0.1:1/v1".to_owned()),
        ..ModelConfig::default()
    };
    let error = promptyard::engine::open(promptyard::job::Tier::Large, &nowhere).await;
    told += &error.unwrap_err().to_string();
    told += &log.text();
    for expected in [
        "401",
        "cannot parse",
        "rejects some parameters",
        "reports no token counts",
    ] {
        assert!(told.contains(expected), "{expected} in {told}");
    }
    for hidden in ["sk-test", "sk-password", "capital", "Paris"] {
        assert!(!told.contains(hidden), "{hidden} in {told}");
    }
}
