//! What benchmarks load: models, requests, names of their own.

use std::{fs, path::Path};

use anyhow::{Context, anyhow, bail};

use crate::{
    config::WeightKind,
    engine::{
        Generate,
        local::{CpuModel, ModelFiles},
    },
    job::{JobId, Message, Role, Sampling},
};

/// Parses an argument that must be a whole number above 0.
pub(super) fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("expected a whole number from 1".to_owned()),
    }
}

/// Opens a model, or makes one with random weights from its config.json, for contexts of up to
/// `tokens`.
pub(super) fn open_model(
    folder: &Path,
    kind: WeightKind,
    is_random: bool,
    tokens: usize,
) -> anyhow::Result<CpuModel> {
    let model = if is_random {
        let path = folder.join("config.json");
        let config = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        CpuModel::random(&config, kind)
    } else {
        CpuModel::read(&ModelFiles::Directory(folder.to_owned()), 0, kind)
    };
    let model = model.map_err(|error| anyhow!("cannot open {}: {error}", folder.display()))?;
    let most = model.context_tokens();
    if tokens > most {
        bail!("prompt and output have up to {tokens} tokens together; the model takes {most}");
    }
    Ok(model)
}

/// A request of one user message.
pub(super) fn request(content: String, output_tokens: usize) -> Generate {
    Generate {
        messages: vec![Message {
            role: Role::User,
            content,
        }],
        sampling: Sampling {
            max_completion_tokens: output_tokens as u32,
            ..Sampling::default()
        },
        seed_default: 0,
        context: Default::default(),
    }
}

/// A new name for queues and tables, so that a benchmark meets nobody else's.
pub(super) fn scratch_name() -> String {
    let id = JobId::now().to_string().replace('-', "");
    format!("bench_{}", &id[id.len() - 12..])
}
