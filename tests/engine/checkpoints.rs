//! Checkpoints of every make are read, and what is wrong with one is said in one line at start.

use std::{fs, path::Path};

use promptyard::{
    config::ModelConfig,
    engine::{
        self,
        local::{ModelFamily, ModelShape, Rope},
    },
    job::Tier,
};
use serde_json::{Value, json};

use crate::support::models::model_folder;

fn config_json(name: &str) -> Value {
    let path = model_folder(name).join("config.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn shape_of(config: &Value) -> Result<ModelShape, String> {
    ModelShape::from_json(config.to_string().as_bytes(), None)
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

/// Replaces the first occurrence of some bytes, which must be there.
fn edit(path: &Path, from: &str, to: &str) {
    let mut content = fs::read(path).unwrap();
    let at = content
        .windows(from.len())
        .position(|window| window == from.as_bytes())
        .unwrap_or_else(|| panic!("{} has no {from}", path.display()));
    content.splice(at..at + from.len(), to.bytes());
    fs::write(path, content).unwrap();
}

async fn open_fault(model: &str) -> String {
    let config = ModelConfig {
        model: Some(model.to_owned()),
        ..ModelConfig::default()
    };
    let error = engine::open(Tier::Small, &config)
        .await
        .unwrap_err()
        .to_string();
    assert!(!error.contains('\n'), "one line: {error}");
    error
}

async fn assert_refused(folder: &Path, expected: &[&str]) {
    let error = open_fault(&folder.display().to_string()).await;
    for part in expected {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

/// The numerics' checkpoints differ in all that published ones do: so those tests cover it.
#[test]
fn the_fixtures_cover_every_family() {
    let llama = config_json("tiny-llama");
    assert!(llama.get("rope_parameters").is_none(), "the old spelling");
    assert_eq!(llama["rope_scaling"]["rope_type"], "llama3");
    assert!(
        model_folder("tiny-llama/model-00002-of-00002.safetensors").is_file(),
        "two shards"
    );
    let smollm2 = config_json("tiny-smollm2");
    assert!(smollm2.get("rope_theta").is_none(), "the new spelling");
    assert_eq!(smollm2["rope_parameters"]["rope_theta"], 100_000.0);
    let shape = |name| shape_of(&config_json(name)).unwrap();
    let smollm2 = shape("tiny-smollm2");
    assert_eq!((smollm2.heads, smollm2.kv_heads), (3, 1));
    assert_eq!((smollm2.tied, smollm2.rope_theta), (Some(true), 100_000.0));
    assert!(matches!(shape("tiny-llama").rope, Rope::Llama3 { .. }));
    let qwen2 = shape("tiny-qwen2");
    assert!(qwen2.qkv_bias && qwen2.windows == [None, None]);
    let qwen3 = shape("tiny-qwen3");
    assert_eq!(
        (qwen3.family, qwen3.tied),
        (ModelFamily::Qwen3, Some(false))
    );
    assert_ne!(qwen3.head * qwen3.heads, qwen3.hidden, "a width of its own");
    assert_eq!(shape("tiny-mistral").windows, [Some(16), Some(16)]);
}

#[test]
fn both_spellings_of_rope_mean_the_same() {
    let older = config_json("tiny-llama");
    let mut newer = older.clone();
    let mut parameters = newer["rope_scaling"].take();
    parameters["rope_theta"] = newer["rope_theta"].take();
    newer["rope_parameters"] = parameters;
    assert_eq!(shape_of(&older), shape_of(&newer));
    let newer = config_json("tiny-smollm2");
    let mut older = newer.clone();
    older["rope_parameters"].take();
    older["rope_theta"] = json!(100_000.0);
    older["rope_scaling"] = Value::Null;
    assert_eq!(shape_of(&older), shape_of(&newer));
    older["rope_theta"] = json!(50_000.0);
    assert_ne!(shape_of(&older), shape_of(&newer));
}

#[test]
fn unknown_rope_types_are_refused() {
    let cases = [
        (
            json!({"rope_type": "yarn", "factor": 4.0}),
            "RoPE type is \"yarn\"; expected default",
        ),
        (
            json!({"type": "dynamic", "factor": 2.0}),
            "RoPE type is \"dynamic\"",
        ),
        (json!({"rope_type": 3}), "RoPE type is 3; expected"),
        (json!({"rope_type": "linear"}), "\"linear\" needs factor"),
        (
            json!({"rope_type": "linear", "factor": 0.0}),
            "factor of RoPE is 0; expected more than 0",
        ),
        (
            json!({"rope_type": "llama3", "factor": 8.0}),
            "\"llama3\" needs low_freq_factor",
        ),
        (
            json!({"rope_type": "default", "rope_theta": 0.0}),
            "rope_theta is 0; expected more than 0",
        ),
        (
            json!({"rope_type": "default", "partial_rotary_factor": 0.5}),
            "partial_rotary_factor is 0.5; expected 1",
        ),
        (
            json!({"full_attention": {"rope_type": "default", "rope_theta": 1e6}}),
            "differs by layer type (full_attention)",
        ),
    ];
    for spelling in ["rope_parameters", "rope_scaling"] {
        for (parameters, expected) in &cases {
            let mut config = config_json("tiny-smollm2");
            config["rope_parameters"].take();
            config[spelling] = parameters.clone();
            let error = shape_of(&config).unwrap_err();
            assert!(error.contains(expected), "{expected} is not in: {error}");
        }
    }
}

#[test]
fn absurd_sizes_are_refused() {
    for (field, size) in [
        ("num_hidden_layers", 1_u64 << 62),
        ("hidden_size", 1 << 62),
        ("max_position_embeddings", u64::MAX),
        ("num_attention_heads", 1 << 24),
        ("head_dim", 1 << 23),
        ("head_dim", 0),
    ] {
        let mut config = config_json("tiny-llama");
        config[field] = json!(size);
        let error = shape_of(&config).unwrap_err();
        assert!(error.contains("expected"), "{field} {size}: {error}");
    }
    let mut config = config_json("tiny-llama");
    config["head_dim"].take();
    config["num_attention_heads"] = json!(128);
    let error = shape_of(&config).unwrap_err();
    assert!(error.contains("128 heads of width 0"), "{error}");
}

#[tokio::test]
async fn bad_config_json_is_refused_with_a_reason() {
    let edits: [(&str, &str, &str, &[&str]); 12] = [
        (
            "config.json",
            "Qwen2ForCausalLM",
            "GemmaForCausalLM",
            &["GemmaForCausalLM", "LlamaForCausalLM"],
        ),
        (
            "config.json",
            "\"architectures\"",
            "\"model_type\": \"gemma\", \"_\"",
            &["config.json", "duplicate field `model_type`"],
        ),
        (
            "config.json",
            "\"hidden_size\": 64",
            "\"hidden_size\": 32",
            &["embed_tokens", "[384, 64]", "[384, 32]"],
        ),
        (
            "config.json",
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 3",
            &["layers.2", "missing"],
        ),
        (
            "config.json",
            "\"num_key_value_heads\": 2",
            "\"num_key_value_heads\": 3",
            &["4 attention heads", "3 key-value heads"],
        ),
        (
            "config.json",
            "\"num_key_value_heads\": 2",
            "\"num_key_value_heads\": 1",
            &["k_proj", "[32, 64]", "[16, 64]"],
        ),
        (
            "config.json",
            "\"rope_scaling\": null",
            "\"rope_scaling\": {\"type\": \"yarn\"}",
            &["yarn", "llama3"],
        ),
        ("config.json", "\"silu\"", "\"gelu\"", &["gelu", "silu"]),
        (
            "config.json",
            "\"vocab_size\": 384",
            "\"vocab_size\": \"many\"",
            &["config.json", "many"],
        ),
        (
            "config.json",
            "\"use_cache\"",
            "\"quantization_config\": {\"quant_method\": \"awq\"}, \"use_cache\"",
            &["awq"],
        ),
        (
            "tokenizer.json",
            "{",
            "[",
            &["tokenizer.json cannot be parsed"],
        ),
        (
            "tokenizer_config.json",
            "{%- for",
            "{%- fur",
            &["chat template cannot be parsed"],
        ),
    ];
    for (file, from, to, expected) in edits {
        let copy = copy_of("tiny-qwen2");
        edit(&copy.path().join(file), from, to);
        assert_refused(copy.path(), expected).await;
    }
    let mut nameless = config_json("tiny-qwen2");
    nameless["architectures"].take();
    nameless["model_type"] = json!("gemma");
    let error = shape_of(&nameless).unwrap_err();
    assert!(error.contains("model_type \"gemma\""), "{error}");
}

#[tokio::test]
async fn bad_weights_are_refused_with_a_reason() {
    let edits: [(&str, &str, &[&str]); 3] = [
        (
            "\"model.norm.weight\"",
            "\"model.nurm.weight\"",
            &["model.norm.weight is missing", "[64]"],
        ),
        (
            "\"model.embed_tokens.weight\":{\"dtype\":\"F32\",\"shape\":[384,64]",
            "\"model.embed_tokens.weight\":{\"dtype\":\"F32\",\"shape\":[64,384]",
            &[
                "embed_tokens.weight has shape [64, 384]",
                "expected [384, 64]",
            ],
        ),
        (
            "\"model.embed_tokens.weight\":{\"dtype\":\"F32\"",
            "\"model.embed_tokens.weight\":{\"dtype\":\"I32\"",
            &["embed_tokens.weight has type I32", "bf16"],
        ),
    ];
    for (from, to, expected) in edits {
        let copy = copy_of("tiny-qwen2");
        edit(&copy.path().join("model.safetensors"), from, to);
        assert_refused(copy.path(), expected).await;
    }
    let copy = copy_of("tiny-qwen2");
    fs::write(copy.path().join("model.safetensors"), b"not tensors").unwrap();
    assert_refused(
        copy.path(),
        &["cannot parse the weights", "model.safetensors"],
    )
    .await;
}

#[tokio::test]
async fn a_truncated_weights_file_is_named() {
    for (name, file) in [
        ("tiny-qwen2", "model.safetensors"),
        ("tiny-llama", "model-00002-of-00002.safetensors"),
    ] {
        let whole = fs::read(model_folder(name).join(file)).unwrap();
        // Within the data, within the header and within the header's length.
        for kept in [whole.len() - 1, whole.len() / 2, 100, 3, 0] {
            let copy = copy_of(name);
            fs::write(copy.path().join(file), &whole[..kept]).unwrap();
            let found = format!("found {kept} bytes");
            assert_refused(copy.path(), &[file, "is truncated", &found]).await;
        }
    }
}

#[tokio::test]
async fn a_missing_file_is_named() {
    for (file, expected) in [
        ("config.json", "config.json is missing"),
        ("tokenizer.json", "tokenizer.json is missing"),
        ("model.safetensors", "neither model.safetensors nor"),
    ] {
        let copy = copy_of("tiny-qwen2");
        fs::remove_file(copy.path().join(file)).unwrap();
        assert_refused(copy.path(), &[expected]).await;
    }
    let shard = "model-00002-of-00002.safetensors";
    let copy = copy_of("tiny-llama");
    fs::remove_file(copy.path().join(shard)).unwrap();
    assert_refused(copy.path(), &["index.json names", shard, "missing"]).await;
    let copy = copy_of("tiny-llama");
    let index = copy.path().join("model.safetensors.index.json");
    edit(&index, shard, "../elsewhere.safetensors");
    assert_refused(copy.path(), &["elsewhere", "expected a plain file name"]).await;
}

#[tokio::test]
async fn paths_without_a_model_are_refused_with_a_reason() {
    let error = open_fault("/no/such/folder").await;
    assert!(
        error.contains("cannot open the small model /no/such/folder")
            && error.contains("no such directory"),
        "{error}"
    );
    let file = model_folder("tiny-llama/config.json");
    assert_refused(&file, &["this is a file"]).await;
}
