//! The in-process engine through its public face, on the tiny checkpoints.

use std::{fs, path::Path, sync::Arc};

use futures::future::join_all;
use promptyard::{
    config::ModelConfig,
    engine::{self, Engine, EngineError, Generate, local::is_bundled},
    job::{Answer, FinishReason, Message, Role, Sampling, Signals, Tier},
    scoring::confidence::Confidence,
};

use crate::support::models::model_folder;

fn config(model: &Path) -> ModelConfig {
    ModelConfig {
        model: Some(model.display().to_string()),
        ..ModelConfig::default()
    }
}

async fn open(config: &ModelConfig) -> Arc<dyn Engine> {
    engine::open(Tier::Small, config).await.unwrap()
}

fn request(content: &str, tokens: u32) -> Generate {
    Generate {
        messages: vec![Message {
            role: Role::User,
            content: content.to_owned(),
        }],
        sampling: Sampling {
            max_completion_tokens: tokens,
            ..Sampling::default()
        },
        seed_default: 11,
        context: Default::default(),
    }
}

fn sampled(content: &str, tokens: u32, seed: Option<u64>) -> Generate {
    let mut request = request(content, tokens);
    request.sampling.temperature = 0.9;
    request.sampling.top_p = 0.95;
    request.sampling.top_k = 50;
    request.sampling.seed = seed;
    request
}

async fn answer(engine: &Arc<dyn Engine>, request: Generate) -> Answer {
    answer_and_signals(engine, request).await.0
}

async fn answer_and_signals(engine: &Arc<dyn Engine>, request: Generate) -> (Answer, Signals) {
    let generation = engine.generate(request).await.unwrap();
    assert!(generation.started_at <= generation.first_token_at.unwrap());
    assert!(generation.first_token_at.unwrap() <= generation.finished_at);
    let signals = generation.signals.unwrap();
    assert_eq!(signals.tokens, generation.answer.usage.completion_tokens);
    assert_eq!(Some(signals.mean_logprob), generation.answer.mean_logprob);
    assert!(signals.min_logprob <= signals.p10_logprob && signals.p50_logprob <= 0.0);
    assert_eq!(
        signals.truncated,
        generation.answer.finish_reason == FinishReason::Length
    );
    let spread = signals.distribution.unwrap();
    assert!(spread.mean_entropy <= spread.max_entropy && spread.min_margin >= 0.0);
    (generation.answer, signals)
}

/// Requests of very different length, greedy and sampled.
fn mixed() -> Vec<Generate> {
    let text = "What is the capital of France? Explain why the sky is blue. ";
    (0..12usize)
        .map(|at| {
            let content = format!("{at} {}", text.repeat(at * at % 7));
            let tokens = 5 + (at as u32 * 13) % 40;
            if at % 3 == 2 {
                sampled(&content, tokens, None)
            } else {
                request(&content, tokens)
            }
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_do_not_depend_on_batch_or_step_size() {
    for name in ["tiny-qwen2", "tiny-mistral"] {
        let engine = open(&config(&model_folder(name))).await;
        let mut alone = Vec::new();
        for request in mixed() {
            alone.push(answer_and_signals(&engine, request).await);
        }
        for (batch_max, step_tokens_max) in [(16, 512), (5, 16), (3, 50)] {
            let config = ModelConfig {
                batch_max,
                step_tokens_max,
                ..config(&model_folder(name))
            };
            let engine = open(&config).await;
            let together = join_all(
                mixed()
                    .into_iter()
                    .map(|request| answer_and_signals(&engine, request)),
            )
            .await;
            assert_eq!(together, alone, "{name} with {batch_max} sequences a step");
        }
    }
}

#[tokio::test]
async fn sampling_follows_its_seed() {
    let engine = open(&config(&model_folder("tiny-qwen3"))).await;
    let first = answer(&engine, sampled("hello", 30, Some(1))).await;
    assert_eq!(answer(&engine, sampled("hello", 30, Some(1))).await, first);
    assert_ne!(
        answer(&engine, sampled("hello", 30, Some(2))).await.text,
        first.text
    );
    let default = answer(&engine, sampled("hello", 30, None)).await;
    assert_eq!(
        answer(&engine, sampled("hello", 30, Some(11))).await,
        default
    );
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_before_it() {
    let engine = open(&config(&model_folder("tiny-qwen2"))).await;
    let whole = answer(&engine, request("Write a function.", 40)).await;
    assert_eq!(whole.usage.completion_tokens, 40);
    assert_eq!(whole.finish_reason, FinishReason::Length);
    assert!(whole.mean_logprob.unwrap() < 0.0);
    // A piece from the middle of the answer, which crosses the borders of tokens.
    let middle: Vec<char> = whole.text.chars().skip(12).take(5).collect();
    let stop: String = middle.into_iter().collect();
    let mut stopping = request("Write a function.", 40);
    stopping.sampling.stop = vec!["not in any answer".to_owned(), stop.clone()];
    let stopped = answer(&engine, stopping).await;
    let end = whole.text.find(&stop).unwrap();
    assert_eq!(stopped.text, whole.text[..end]);
    assert_eq!(stopped.finish_reason, FinishReason::Stop);
    assert!(stopped.usage.completion_tokens < 40);
}

#[tokio::test]
async fn an_end_token_ends_the_answer() {
    // The first token of the answer becomes an end token, in the list of generation_config.json.
    let engine = open(&config(&model_folder("tiny-qwen2"))).await;
    let whole = answer(&engine, request("Hello", 3)).await;
    let copy = copy_of("tiny-qwen2");
    let vocabulary = fs::read(copy.path().join("tokenizer.json")).unwrap();
    let vocabulary = promptyard::prompt::Vocabulary::from_json(&vocabulary).unwrap();
    let ends: Vec<u32> = (0..384)
        .filter(|token| {
            let text = vocabulary.decode(&[*token]).unwrap();
            !text.is_empty() && whole.text.starts_with(&text)
        })
        .collect();
    let generation = serde_json::json!({ "eos_token_id": ends });
    fs::write(
        copy.path().join("generation_config.json"),
        generation.to_string(),
    )
    .unwrap();
    let ended = answer(&open(&config(copy.path())).await, request("Hello", 50)).await;
    assert_eq!(
        (ended.text.as_str(), ended.finish_reason),
        ("", FinishReason::Stop)
    );
    assert_eq!(ended.usage.completion_tokens, 1);
}

#[tokio::test]
async fn the_context_bounds_prompt_and_answer() {
    let config = ModelConfig {
        context_tokens_max: 64,
        ..config(&model_folder("tiny-qwen2"))
    };
    let engine = open(&config).await;
    assert_eq!(engine.info().context_tokens, Some(64));
    let cut = answer(&engine, request("Hi", 500)).await;
    assert_eq!(cut.finish_reason, FinishReason::Length);
    assert_eq!(cut.usage.prompt_tokens + cut.usage.completion_tokens, 64);
    let long = engine.generate(request(&"word ".repeat(200), 5)).await;
    let Err(EngineError::ContextTooLong {
        model,
        prompt_tokens,
        context_tokens,
    }) = long
    else {
        panic!("expected a fault, found {long:?}");
    };
    assert_eq!((model.as_str(), context_tokens), ("tiny-qwen2", 64));
    assert!(prompt_tokens > 64);
}

#[tokio::test]
async fn a_full_queue_refuses_until_requests_are_dropped() {
    let config = ModelConfig {
        batch_max: 1,
        ..config(&model_folder("tiny-qwen2"))
    };
    let engine = open(&config).await;
    let mut waiting = Vec::new();
    // One runs, four wait in the engine and four in the channel; none ends soon.
    let refused = loop {
        let mut attempt = engine.generate(request("x", 900));
        match futures::poll!(&mut attempt) {
            std::task::Poll::Pending => waiting.push(attempt),
            std::task::Poll::Ready(outcome) => break outcome,
        }
        assert!(waiting.len() < 20, "the queue is bounded");
    };
    assert!(
        matches!(refused, Err(EngineError::Unavailable { .. })),
        "{refused:?}"
    );
    drop(waiting);
    let served = loop {
        match engine.generate(request("y", 3)).await {
            Err(EngineError::Unavailable { .. }) => tokio::task::yield_now().await,
            outcome => break outcome,
        }
    };
    assert_eq!(served.unwrap().answer.usage.completion_tokens, 3);
}

#[tokio::test]
async fn the_template_may_refuse() {
    let engine = open(&config(&model_folder("tiny-mistral"))).await;
    let mut twice = request("a", 5);
    twice.messages.push(twice.messages[0].clone());
    let Err(EngineError::Unservable(why)) = engine.generate(twice).await else {
        panic!("Mistral's template refuses two user turns in a row");
    };
    assert!(why.contains("roles must alternate"), "{why}");
}

#[tokio::test]
async fn without_a_model_the_bundled_checkpoints_answer() {
    let config = ModelConfig::default();
    assert!(is_bundled(&config));
    let mut revisions = Vec::new();
    for (tier, name) in [
        (Tier::Small, "support-small"),
        (Tier::Large, "support-large"),
    ] {
        let engine = engine::open(tier, &config).await.unwrap();
        assert_eq!(engine.info().model, name);
        assert!(engine.is_ready());
        let answer = answer(&engine, request("Hello", 8)).await;
        assert_eq!(answer.revision, engine.info().revision);
        revisions.push(answer.revision);
    }
    assert_ne!(revisions[0], revisions[1]);
    let same = engine::open(Tier::Small, &config).await.unwrap();
    assert_eq!(same.info().revision, revisions[0]);
    let calibration = Confidence::bundled().unwrap();
    assert_eq!(
        calibration.fitted_for(),
        Some(("support-small", revisions[0].as_str())),
        "the arithmetic or the checkpoint has changed: calibrate again (models/README.md)"
    );
}

/// A checkpoint of its own, to be spoiled.
fn copy_of(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in fs::read_dir(model_folder(name)).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    folder
}

#[tokio::test]
async fn the_revision_covers_every_file_that_changes_answers() {
    let original = open(&config(&model_folder("tiny-qwen2")))
        .await
        .info()
        .revision
        .clone();
    let copy = copy_of("tiny-qwen2");
    let same = open(&config(copy.path())).await;
    assert_eq!(
        same.info().revision,
        original,
        "the place of the files does not matter"
    );
    let path = copy.path().join("tokenizer_config.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        text.replace("You are a helpful", "You are an unhelpful"),
    )
    .unwrap();
    let changed = open(&config(copy.path())).await;
    assert_ne!(changed.info().revision, original);
}
