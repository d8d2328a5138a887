//! What a request may ask of generation, through the engine's public face: penalties, biases,
//! log-probabilities, and answers of a given form.

use std::sync::Arc;

use futures::future::join_all;
use promptyard::{
    config::ModelConfig,
    engine::{self, Engine, EngineError, Generate},
    job::{
        Answer, FinishReason, Message, NamedSchema, ResponseFormat, Role, Sampling, Tier,
        TokenLogprob,
    },
};

use crate::support::models::model_folder;

const MODELS: [&str; 4] = ["tiny-llama", "tiny-mistral", "tiny-qwen2", "tiny-qwen3"];

async fn open(name: &str) -> Arc<dyn Engine> {
    let config = ModelConfig {
        model: Some(model_folder(name).display().to_string()),
        batch_max: 16,
        ..ModelConfig::default()
    };
    engine::open(Tier::Small, &config).await.unwrap()
}

fn request(content: &str, sampling: Sampling) -> Generate {
    Generate {
        messages: vec![Message {
            role: Role::User,
            content: content.to_owned(),
        }],
        sampling,
        seed_default: 7,
        context: Default::default(),
    }
}

fn greedy(tokens: u32) -> Sampling {
    Sampling {
        max_completion_tokens: tokens,
        ..Sampling::default()
    }
}

async fn answer(engine: &Arc<dyn Engine>, sampling: Sampling) -> Answer {
    let generation = engine.generate(request("Tell me a story.", sampling)).await;
    generation.unwrap().answer
}

fn told(answer: &Answer) -> &[TokenLogprob] {
    answer.logprobs.as_deref().unwrap()
}

/// How often the most frequent token of an answer stands in it.
fn most_repeated(answer: &Answer) -> usize {
    let tokens: Vec<_> = told(answer).iter().map(|t| &t.chosen.bytes).collect();
    let count = |token| tokens.iter().filter(|other| **other == token).count();
    tokens.iter().map(|token| count(*token)).max().unwrap()
}

#[tokio::test]
async fn log_probabilities_are_returned_on_request() {
    let engine = open("tiny-qwen2").await;
    let plain = answer(&engine, greedy(20)).await;
    assert_eq!(plain.logprobs, None);
    let asked = Sampling {
        logprobs: Some(5),
        ..greedy(20)
    };
    let told_answer = answer(&engine, asked).await;
    assert_eq!(told_answer.text, plain.text);
    let content = told(&told_answer);
    assert_eq!(content.len(), 20);
    let bytes: Vec<u8> = content
        .iter()
        .flat_map(|token| token.chosen.bytes.clone().unwrap())
        .collect();
    assert_eq!(String::from_utf8_lossy(&bytes), plain.text);
    let mean = content.iter().map(|t| t.chosen.logprob).sum::<f32>() / 20.0;
    assert!((mean - plain.mean_logprob.unwrap()).abs() < 1e-4);
    for token in content {
        // Greedy: the chosen one is the likeliest, and the others follow.
        assert_eq!(token.top_logprobs.len(), 5);
        assert_eq!(token.top_logprobs[0], token.chosen);
        assert!(
            token
                .top_logprobs
                .is_sorted_by(|a, b| a.logprob >= b.logprob)
        );
    }
}

#[tokio::test]
async fn penalties_and_biases_change_what_is_chosen() {
    let engine = open("tiny-llama").await;
    // Among so few tokens some are chosen again and again.
    let asked = Sampling {
        logprobs: Some(0),
        logit_bias: (100..180).map(|token| (token, 100.0)).collect(),
        ..greedy(60)
    };
    let plain = answer(&engine, asked.clone()).await;
    let penalties: [fn(&mut Sampling); 3] = [
        |s| s.frequency_penalty = 2.0,
        |s| s.presence_penalty = 2.0,
        |s| s.repetition_penalty = 10.0,
    ];
    for change in penalties {
        let mut sampling = asked.clone();
        change(&mut sampling);
        let penalised = answer(&engine, sampling).await;
        let (fewer, more) = (most_repeated(&penalised), most_repeated(&plain));
        assert!(fewer < more, "{fewer} times instead of {more}");
    }
    // Every token but two is out of the question.
    let mut sampling = asked.clone();
    sampling.logit_bias = [(100, 100.0), (101, 100.0)].into();
    let biased = answer(&engine, sampling).await;
    let distinct: std::collections::BTreeSet<_> = told(&biased)
        .iter()
        .map(|token| &token.chosen.token)
        .collect();
    assert!(distinct.len() <= 2);
    // What is reported is what the model holds of it, not what the bias made of it.
    assert!(
        told(&biased)
            .iter()
            .all(|token| token.chosen.logprob < -0.5)
    );
    let mut sampling = asked;
    sampling.logit_bias = [(384, 1.0)].into();
    let error = engine.generate(request("x", sampling)).await.unwrap_err();
    let EngineError::Unservable(why) = error else {
        panic!("{error:?}");
    };
    assert_eq!(
        why,
        "logit_bias names token 384; tiny-llama has tokens 0 to 383"
    );
}

/// Requests of every kind; what one asks must not be felt by another.
fn mixed() -> Vec<Generate> {
    let mut requests = Vec::new();
    for at in 0..12_u64 {
        let mut sampling = greedy(12 + at as u32);
        if at % 2 == 1 {
            sampling.temperature = 1.3;
            sampling.seed = Some(at);
            sampling.min_p = 0.02;
        }
        match at % 4 {
            0 => sampling.repetition_penalty = 1.4,
            1 => (sampling.presence_penalty, sampling.frequency_penalty) = (0.7, 0.3),
            2 => sampling.logit_bias = [(at as u32 + 90, 3.0)].into(),
            _ => sampling.logprobs = Some(3),
        }
        #[cfg(feature = "structured")]
        if at % 3 == 0 {
            sampling.response_format = structured::format(structured::FINITE[0]);
            sampling.max_completion_tokens = 200;
        }
        requests.push(request(&format!("{at} and more"), sampling));
    }
    requests
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_gives_the_same_answer_in_any_batch() {
    for name in ["tiny-llama", "tiny-qwen3"] {
        let engine = open(name).await;
        // How much of a prompt others had computed before depends on the company.
        let answer = async |request| {
            let mut answer = engine.generate(request).await.unwrap().answer;
            answer.usage.prompt_tokens_computed = 0;
            answer
        };
        let mut alone = Vec::new();
        for request in mixed() {
            alone.push(answer(request).await);
        }
        let together = join_all(mixed().into_iter().map(answer)).await;
        assert_eq!(together, alone, "{name}");
    }
}

#[cfg(not(feature = "structured"))]
#[tokio::test]
async fn schemas_are_refused_without_the_feature() {
    let engine = open("tiny-llama").await;
    let mut sampling = greedy(5);
    sampling.response_format = ResponseFormat::JsonObject;
    let error = engine.generate(request("x", sampling)).await.unwrap_err();
    assert!(matches!(error, EngineError::Unservable(why) if why.contains("`structured`")));
    let _ = NamedSchema::NAME_BYTES_MAX;
}

#[cfg(feature = "structured")]
mod structured {
    use serde_json::{Value, json};

    use super::*;

    /// Schemas whose documents are bounded, so that any model ends within the limit.
    pub(super) const FINITE: [&str; 6] = [
        r#"{"type":"object","properties":{"sure":{"type":"boolean"},"mood":{"enum":["good","bad","so-so"]}},
            "required":["sure","mood"],"additionalProperties":false}"#,
        r#"{"type":"array","items":{"type":"integer","minimum":0,"maximum":99},"minItems":2,"maxItems":4}"#,
        r#"{"enum":["red","green","日本","\"quoted\""]}"#,
        r#"{"type":"object","properties":{"name":{"type":"string","minLength":1,"maxLength":6},
            "age":{"type":["integer","null"],"minimum":0,"maximum":130}},
            "required":["name","age"],"additionalProperties":false}"#,
        r##"{"$defs":{"leaf":{"type":"object","properties":{"ok":{"type":"boolean"}},"required":["ok"],
            "additionalProperties":false}},"type":"object","properties":{"left":{"$ref":"#/$defs/leaf"},
            "right":{"$ref":"#/$defs/leaf"}},"required":["left","right"],"additionalProperties":false}"##,
        r#"{"anyOf":[{"const":1},{"type":"string","pattern":"^[ab]{2}$"}]}"#,
    ];

    pub(super) fn format(schema: &str) -> ResponseFormat {
        ResponseFormat::JsonSchema {
            json_schema: NamedSchema {
                name: "test".to_owned(),
                schema: serde_json::from_str(schema).unwrap(),
                strict: None,
            },
        }
    }

    /// What the schemas above say, written out.
    fn is_valid(nth: usize, value: &Value) -> bool {
        let keys = |value: &Value, expected: &[&str]| {
            let object = value.as_object();
            object.is_some_and(|object| object.keys().eq(expected))
        };
        let within = |value: &Value, most: u64| value.as_u64().is_some_and(|n| n <= most);
        match nth {
            0 => {
                keys(value, &["sure", "mood"])
                    && value["sure"].is_boolean()
                    && ["good", "bad", "so-so"].contains(&value["mood"].as_str().unwrap_or(""))
            }
            1 => value.as_array().is_some_and(|list| {
                (2..=4).contains(&list.len()) && list.iter().all(|n| within(n, 99))
            }),
            2 => ["red", "green", "日本", "\"quoted\""].contains(&value.as_str().unwrap_or("")),
            3 => {
                let name = value["name"]
                    .as_str()
                    .map_or(0, |name| name.chars().count());
                keys(value, &["name", "age"])
                    && (1..=6).contains(&name)
                    && (value["age"].is_null() || within(&value["age"], 130))
            }
            4 => {
                let leaf = |leaf: &Value| keys(leaf, &["ok"]) && leaf["ok"].is_boolean();
                keys(value, &["left", "right"]) && leaf(&value["left"]) && leaf(&value["right"])
            }
            _ => {
                let text = value.as_str().unwrap_or("");
                value == 1 || (text.len() == 2 && text.bytes().all(|b| b"ab".contains(&b)))
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn answers_of_a_schema_always_parse_and_obey_it() {
        for name in MODELS {
            let engine = open(name).await;
            let mut asked = Vec::new();
            for (nth, schema) in FINITE.iter().enumerate() {
                for seed in 0..6_u64 {
                    let mut sampling = greedy(400);
                    sampling.response_format = format(schema);
                    if seed > 0 {
                        sampling.temperature = 0.5 * seed as f32 / 2.0;
                        sampling.seed = Some(seed);
                    }
                    if seed == 5 {
                        sampling.repetition_penalty = 1.2;
                        sampling.top_p = 0.9;
                    }
                    asked.push((nth, engine.generate(request("Answer.", sampling))));
                }
            }
            for (nth, generation) in asked {
                let answer = generation.await.unwrap().answer;
                let value: Value = serde_json::from_str(&answer.text)
                    .unwrap_or_else(|error| panic!("{name}: {error}: {}", answer.text));
                assert!(is_valid(nth, &value), "{name}: {}", answer.text);
                assert_eq!(answer.finish_reason, FinishReason::Stop, "{}", answer.text);
            }
        }
    }

    #[tokio::test]
    async fn incomplete_json_at_the_limit_finishes_with_length() {
        let engine = open("tiny-qwen2").await;
        let mut sampling = greedy(8);
        sampling.response_format = format(r#"{"type":"string","minLength":50}"#);
        let begun = answer(&engine, sampling.clone()).await;
        assert!(begun.text.starts_with('"'), "{}", begun.text);
        assert_eq!(begun.finish_reason, FinishReason::Length);
        assert_eq!(begun.usage.completion_tokens, 8);
        sampling.response_format = ResponseFormat::JsonObject;
        // A seed that ends by itself within the limit ends in a whole object.
        sampling.max_completion_tokens = 300;
        sampling.temperature = 1.5;
        for seed in 0..10 {
            sampling.seed = Some(seed);
            let answer = answer(&engine, sampling.clone()).await;
            let parsed: Result<Value, _> = serde_json::from_str(&answer.text);
            let is_whole = answer.finish_reason == FinishReason::Stop;
            assert_eq!(parsed.is_ok_and(|value| value.is_object()), is_whole);
        }
    }

    #[tokio::test]
    async fn unsupported_schemas_are_refused_and_other_requests_succeed() {
        let engine = open("tiny-mistral").await;
        for (schema, expected) in [
            (r#"{"type":"objekt"}"#, "objekt"),
            (r#"{"type":"string","pattern":"("}"#, ""),
            (r##"{"$ref":"#/$defs/none"}"##, ""),
            (r#"{"allOf":[{"type":"string"},{"type":"integer"}]}"#, ""),
            (r#"{"minimum":5,"maximum":1,"type":"integer"}"#, ""),
        ] {
            let mut sampling = greedy(20);
            sampling.response_format = format(schema);
            let error = engine.generate(request("x", sampling)).await.unwrap_err();
            let EngineError::Unservable(why) = error else {
                panic!("{schema}: {error:?}");
            };
            assert!(
                why.starts_with("response_format: ") && why.contains(expected),
                "{why}"
            );
            assert!(!why.contains('\n'), "{why}");
        }
        assert_eq!(answer(&engine, greedy(5)).await.usage.completion_tokens, 5);
    }

    #[tokio::test]
    async fn logit_bias_cannot_break_a_schema() {
        let engine = open("tiny-llama").await;
        let mut sampling = greedy(200);
        sampling.response_format = format(FINITE[0]);
        // Even the end of the answer, at once, is no way out.
        sampling.logit_bias = (0..100).map(|token| (token, 100.0)).collect();
        let answer = answer(&engine, sampling).await;
        let value: Value = serde_json::from_str(&answer.text).unwrap();
        assert!(is_valid(0, &value), "{value}");
        assert_ne!(value, json!({}));
    }
}
