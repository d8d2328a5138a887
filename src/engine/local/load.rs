//! Finds a checkpoint and reads it for the CPU or a GPU.

use std::path::Path;

use candle_core::Device;

use crate::{
    batching::BLOCK_TOKENS,
    config::{ModelConfig, WeightKind},
    job::Tier,
    prompt::{ChatTemplate, Vocabulary},
};

#[cfg(feature = "hub")]
use super::hub;
use super::{
    bundled::bundled,
    cpu::model::{CpuBackend, CpuModel},
    files::ModelFiles,
    gpu::GpuModel,
    runner::TextCodec,
    shape::ModelShape,
};

/// Names the arithmetic in the model's revision: must change whenever the same checkpoint may
/// answer differently.
fn arithmetic(kind: WeightKind, device: Option<&Device>) -> String {
    match device {
        None => format!("promptyard candle {kind} 3"),
        Some(device) if device.is_cuda() => format!("promptyard candle {kind} cuda 1"),
        Some(_) => format!("promptyard candle {kind} metal 1"),
    }
}

/// A model that was read, and what the engine needs to know about it.
pub(super) struct LoadedModel<M> {
    pub(super) model: M,
    pub(super) shape: ModelShape,
    pub(super) context_tokens: usize,
    pub(super) kv_blocks: usize,
    /// Part of the revision; see [`arithmetic`].
    pub(super) arithmetic: String,
}

impl LoadedModel<CpuBackend> {
    /// # Errors
    /// One line: what was found and what was expected.
    pub(super) fn on_cpu(files: &ModelFiles, config: &ModelConfig) -> Result<Self, String> {
        let model = CpuModel::read(files, config.context_tokens_max, config.weights)?;
        let context_tokens = model.context_tokens();
        let fit = config.kv_bytes_max / model.kv_bytes_per_block();
        // One full context must fit, whatever the limit.
        let kv_blocks = fit.max(context_tokens.div_ceil(BLOCK_TOKENS));
        let workspace = model.workspace(kv_blocks);
        Ok(Self {
            shape: model.shape().clone(),
            model: CpuBackend { model, workspace },
            context_tokens,
            kv_blocks,
            arithmetic: arithmetic(config.weights, None),
        })
    }
}

impl LoadedModel<GpuModel> {
    /// # Errors
    /// One line: what was found and what was expected.
    pub(super) fn on_device(
        files: &ModelFiles,
        config: &ModelConfig,
        device: &Device,
    ) -> Result<Self, String> {
        let (context, kv_bytes) = (config.context_tokens_max, config.kv_bytes_max);
        let model = GpuModel::read(files, context, config.weights, device, kv_bytes)?;
        Ok(Self {
            shape: model.shape().clone(),
            context_tokens: model.context_tokens(),
            kv_blocks: model.kv_blocks(),
            arithmetic: arithmetic(config.weights, Some(device)),
            model,
        })
    }
}

/// Finds the name and the files of a tier's model.
pub(super) fn locate(tier: Tier, model: Option<&str>) -> Result<(String, ModelFiles), String> {
    let Some(model) = model else {
        let (name, files) = bundled(tier);
        return Ok((name.to_owned(), files));
    };
    locate_named(model)
}

/// Finds the name and the files of a directory or hub name.
pub(in crate::engine) fn locate_named(model: &str) -> Result<(String, ModelFiles), String> {
    let folder = Path::new(model);
    if folder.is_dir() {
        // `.` and `..` have no name until they are resolved.
        let whole = folder.canonicalize().map_err(|error| error.to_string())?;
        let name = whole
            .file_name()
            .map_or(model.into(), |name| name.to_string_lossy());
        return Ok((name.into_owned(), ModelFiles::Directory(whole.clone())));
    }
    if folder.exists() {
        return Err(
            "this is a file; expected a directory with config.json and safetensors files"
                .to_owned(),
        );
    }
    if !is_hub_name(model) {
        return Err("there is no such directory, and it is not a hub name (OWNER/NAME)".to_owned());
    }
    #[cfg(feature = "hub")]
    return hub::fetch(model).map(|files| (model.to_owned(), files));
    #[cfg(not(feature = "hub"))]
    Err(
        "there is no such directory, and this binary was built without the feature `hub`"
            .to_owned(),
    )
}

/// Checks for `OWNER/NAME` with an optional `@REVISION`.
fn is_hub_name(model: &str) -> bool {
    let allowed = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    let (name, revision) = model.split_once('@').unwrap_or((model, "main"));
    let revision_allowed = revision.split('/').all(allowed);
    name.split_once('/')
        .is_some_and(|(owner, name)| allowed(owner) && allowed(name) && revision_allowed)
}

pub(super) fn read_codec(files: &ModelFiles, shape: &ModelShape) -> Result<TextCodec, String> {
    let template = ChatTemplate::from_files(
        files.read("tokenizer_config.json")?.as_deref(),
        files.read("chat_template.jinja")?.as_deref(),
    );
    let vocabulary = Vocabulary::from_json(&files.require("tokenizer.json")?);
    let vocabulary = vocabulary.map_err(|error| error.to_string())?;
    // Models round the size of their vocabulary up, so it may exceed the tokenizer's.
    let (tokens, rows) = (vocabulary.len(), shape.vocabulary);
    if tokens > rows {
        return Err(format!(
            "tokenizer.json has {tokens} tokens; the model has {rows}"
        ));
    }
    Ok(TextCodec {
        template: template.map_err(|error| error.to_string())?,
        vocabulary,
        eos: shape.eos.clone(),
    })
}
