//! The paged KV cache through the engine's public face: what it saves, and that it changes nothing.

use std::sync::Arc;

use futures::future::join_all;
use promptyard::{
    config::{ModelConfig, PrefixSharing},
    engine::{self, Engine, Generate, RequestContext},
    job::{Answer, Message, Role, Sampling, Tier},
};

use crate::support::models::model_folder;

fn config(name: &str) -> ModelConfig {
    ModelConfig {
        model: Some(model_folder(name).display().to_string()),
        ..ModelConfig::default()
    }
}

async fn open(config: &ModelConfig) -> Arc<dyn Engine> {
    engine::open(Tier::Small, config).await.unwrap()
}

fn message(role: Role, content: String) -> Message {
    Message { role, content }
}

fn request(tenant: &str, messages: Vec<Message>, tokens: u32) -> Generate {
    Generate {
        messages,
        sampling: Sampling {
            max_completion_tokens: tokens,
            ..Sampling::default()
        },
        seed_default: 3,
        context: RequestContext {
            tenant: tenant.to_owned().try_into().unwrap(),
            ..RequestContext::default()
        },
    }
}

async fn answer(engine: &Arc<dyn Engine>, request: Generate) -> Answer {
    engine.generate(request).await.unwrap().answer
}

/// A question under instructions that all questions share.
fn question(tenant: &str, question: &str) -> Generate {
    let rules = "You sort wagons into trains. Answer in one word, please. ".repeat(6);
    let messages = vec![
        message(Role::System, rules),
        message(Role::User, question.to_owned()),
    ];
    request(tenant, messages, 12)
}

#[tokio::test]
async fn a_shared_prefix_is_computed_once() {
    for name in ["tiny-qwen2", "tiny-qwen3"] {
        for (sharing, first_saves, other_tenant_saves) in [
            (PrefixSharing::Off, false, false),
            (PrefixSharing::Tenant, true, false),
            (PrefixSharing::All, true, true),
        ] {
            let plain = open(&ModelConfig {
                prefix_cache: PrefixSharing::Off,
                ..config(name)
            })
            .await;
            let engine = open(&ModelConfig {
                prefix_cache: sharing,
                ..config(name)
            })
            .await;
            let first = answer(&engine, question("a", "Which one?")).await;
            assert_eq!(
                first.usage.prompt_tokens_computed,
                first.usage.prompt_tokens
            );
            for (tenant, saves) in [("a", first_saves), ("b", other_tenant_saves)] {
                let asked = question(tenant, "How many are there?");
                let found = answer(&engine, asked.clone()).await;
                let computed = found.usage.prompt_tokens_computed;
                let most = if saves { 64 } else { found.usage.prompt_tokens };
                assert!(
                    computed <= most && (saves || computed == most),
                    "{sharing:?}, {tenant}: {computed}"
                );
                let expected = answer(&plain, asked).await;
                assert_eq!(
                    (found.text, found.mean_logprob),
                    (expected.text, expected.mean_logprob)
                );
            }
        }
    }
}

#[tokio::test]
async fn the_next_turn_reuses_the_previous_answer() {
    let engine = open(&config("tiny-qwen2")).await;
    let asked = "What is the capital of France? ".repeat(3);
    let mut turns = vec![message(Role::User, asked)];
    let first = answer(&engine, request("a", turns.clone(), 70)).await;
    // Whole characters only, so that the text becomes the same tokens again.
    turns.push(message(Role::Assistant, first.text.clone()));
    turns.push(message(Role::User, "And of Germany?".to_owned()));
    let second = answer(&engine, request("a", turns, 4)).await;
    let usage = second.usage;
    assert!(
        usage.prompt_tokens_computed < usage.prompt_tokens - first.usage.prompt_tokens / 2,
        "{usage:?}"
    );
}

/// Room for one whole context only: sequences lose their blocks to others and are computed again.
#[tokio::test(flavor = "multi_thread")]
async fn preempted_sequences_give_the_same_answers() {
    for name in ["tiny-llama", "tiny-mistral"] {
        let wide = ModelConfig {
            context_tokens_max: 256,
            ..config(name)
        };
        let tight = ModelConfig {
            kv_bytes_max: 0,
            batch_max: 8,
            ..wide.clone()
        };
        let ask = |at: usize| {
            let content = format!(
                "{at} {}",
                "Explain why the sky is blue. ".repeat(1 + at % 3)
            );
            let mut request = request("a", vec![message(Role::User, content)], 90);
            if at % 2 == 1 {
                request.sampling.temperature = 0.8;
            }
            request
        };
        let engine = open(&wide).await;
        let mut expected = Vec::new();
        for at in 0..10 {
            expected.push(answer(&engine, ask(at)).await);
        }
        let engine = open(&tight).await;
        let found = join_all((0..10).map(|at| answer(&engine, ask(at)))).await;
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found.text, expected.text, "{name}");
            assert_eq!(found.mean_logprob, expected.mean_logprob, "{name}");
            assert_eq!(
                found.usage.completion_tokens,
                expected.usage.completion_tokens
            );
            assert!(found.usage.prompt_tokens_computed <= found.usage.prompt_tokens);
        }
    }
}
