//! The checkpoints inside the binary, so that everything runs before a model is chosen.
//!
//! They answer questions about a small shop's support desk and nothing else; `models/README.md`
//! tells how they were trained and how right they are.

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

/// The name and the files of a tier's bundled checkpoint.
pub fn bundled(tier: Tier) -> (&'static str, ModelFiles) {
    match tier {
        Tier::Small => ("support-small", ModelFiles::Bundled(SMALL)),
        Tier::Large => ("support-large", ModelFiles::Bundled(LARGE)),
    }
}
