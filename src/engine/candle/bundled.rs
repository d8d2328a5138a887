//! The checkpoints inside the binary, so that everything runs before a model is chosen.
//!
//! They are random: they show that the yard works and answer gibberish.

use super::files::ModelFiles;
use crate::job::Tier;

macro_rules! bundle {
    ($folder:literal: $($file:literal)+) => {
        &[$(($file, include_bytes!(concat!("../../../tests/fixtures/models/", $folder, "/", $file)))),+]
    };
}

const SMALL: &[(&str, &[u8])] = bundle!("tiny-llama":
    "config.json" "generation_config.json" "tokenizer.json" "tokenizer_config.json"
    "model.safetensors.index.json" "model-00001-of-00002.safetensors" "model-00002-of-00002.safetensors");

const LARGE: &[(&str, &[u8])] = bundle!("tiny-qwen3":
    "config.json" "generation_config.json" "tokenizer.json" "tokenizer_config.json" "chat_template.jinja"
    "model.safetensors");

/// The name and the files of a tier's bundled checkpoint.
pub fn bundled(tier: Tier) -> (&'static str, ModelFiles) {
    match tier {
        Tier::Small => ("tiny-small", ModelFiles::Bundled(SMALL)),
        Tier::Large => ("tiny-large", ModelFiles::Bundled(LARGE)),
    }
}
