//! The checkpoints embedded in the binary, for use without choosing a model.
//!
//! They answer questions to a small shop's support desk and nothing else; `models/README.md`
//! describes their training and accuracy.

use crate::job::Tier;

use super::files::ModelFiles;

macro_rules! bundle {
    ($folder:literal: $($file:literal)+) => {
        &[$(($file, include_bytes!(concat!("../../../models/", $folder, "/", $file)))),+]
    };
}

const SMALL: &[(&str, &[u8])] = bundle!("small":
    "config.json" "generation_config.json" "tokenizer.json" "tokenizer_config.json" "model.safetensors");

const LARGE: &[(&str, &[u8])] = bundle!("large":
    "config.json" "generation_config.json" "tokenizer.json" "tokenizer_config.json" "model.safetensors");

/// Name and files of a tier's bundled checkpoint.
pub fn bundled(tier: Tier) -> (&'static str, ModelFiles) {
    match tier {
        Tier::Small => ("support-small", ModelFiles::Bundled(SMALL)),
        Tier::Large => ("support-large", ModelFiles::Bundled(LARGE)),
    }
}
