//! Downloads checkpoints by their name on the hub into the cache that Hugging Face's tools share.
//!
//! `HF_HOME`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` mean what they mean for those tools: the cache
//! belongs to the machine, not to this program's configuration.

use std::path::{Path, PathBuf};

use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{ApiBuilder, ApiRepo},
};

use super::files::ModelFiles;

/// True for the files of a repository to download; weights in other formats are skipped.
fn is_wanted(name: &str) -> bool {
    let weights = name.starts_with("model")
        && (name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json"));
    !name.contains('/') && (ModelFiles::DESCRIPTIONS.contains(&name) || weights)
}

/// Finds a checkpoint in the cache, or downloads it there.
///
/// # Errors
/// One line: why it is not available and what to do.
pub(super) fn fetch(model: &str) -> Result<ModelFiles, String> {
    fetch_with(model, &Cache::from_env(), is_offline())
}

fn fetch_with(model: &str, cache: &Cache, is_offline: bool) -> Result<ModelFiles, String> {
    let (name, revision) = model.split_once('@').unwrap_or((model, "main"));
    let repo = Repo::with_revision(name.to_owned(), RepoType::Model, revision.to_owned());
    let cached = cache.repo(repo.clone()).get("config.json");
    if let Some(files) = cached.as_deref().and_then(Path::parent).and_then(complete) {
        return Ok(files);
    }
    if is_offline {
        return Err(format!(
            "it is not in {} and HF_HUB_OFFLINE is set; download it first or name a directory",
            cache.path().display()
        ));
    }
    let api = ApiBuilder::from_env()
        .with_cache_dir(cache.path().clone())
        .with_progress(false)
        .build();
    let api = api.map_err(|error| error.to_string())?.repo(repo);
    let folder = download(&api).map_err(|error| {
        format!(
            "it is not in {} and cannot be downloaded ({error}); name a directory, or check the connection to the hub",
            cache.path().display()
        )
    })?;
    complete(&folder).ok_or_else(|| {
        "its hub repository has no safetensors weights with a tokenizer.json".to_owned()
    })
}

fn download(api: &ApiRepo) -> Result<PathBuf, String> {
    let short = |error: hf_hub::api::sync::ApiError| {
        // These errors quote whole responses; keep the start of the first line.
        let text = error.to_string();
        text.lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(160)
            .collect::<String>()
    };
    let siblings = api.info().map_err(short)?.siblings;
    let mut folder = None;
    for file in siblings.iter().filter(|file| is_wanted(&file.rfilename)) {
        let path = api.get(&file.rfilename).map_err(short)?;
        folder = path.parent().map(Path::to_owned);
    }
    folder.ok_or_else(|| "its hub repository has no model files".to_owned())
}

/// The directory as a checkpoint, unless a required file is missing.
fn complete(folder: &Path) -> Option<ModelFiles> {
    let files = ModelFiles::Directory(folder.to_owned());
    let described = folder.join("tokenizer.json").is_file();
    (described && files.weight_files().is_ok()).then_some(files)
}

/// Reads the variable as `huggingface_hub` does.
fn is_offline() -> bool {
    let value = std::env::var("HF_HUB_OFFLINE").unwrap_or_default();
    ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::engine::local::hub::*;

    #[test]
    fn offline_only_complete_checkpoints_in_the_cache_are_found() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let cache = Cache::new(folder.path().to_owned());
        let error = fetch_with("owner/name", &cache, true).expect_err("nothing is cached");
        assert!(
            error.contains("HF_HUB_OFFLINE") && !error.contains('\n'),
            "{error}"
        );

        let repo = folder.path().join("models--owner--name");
        let snapshot = repo.join("snapshots/0123");
        fs::create_dir_all(&snapshot).expect("folders");
        fs::create_dir_all(repo.join("refs")).expect("folders");
        fs::write(repo.join("refs/main"), "0123").expect("a reference");
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/tiny-qwen2");
        for name in ["config.json", "tokenizer.json"] {
            fs::copy(from.join(name), snapshot.join(name)).expect("copied");
        }
        fetch_with("owner/name", &cache, true).expect_err("the weights are still missing");
        fs::copy(
            from.join("model.safetensors"),
            snapshot.join("model.safetensors"),
        )
        .expect("copied");
        let files = fetch_with("owner/name", &cache, true).expect("all is there");
        assert!(matches!(files, ModelFiles::Directory(found) if found == snapshot));
    }

    #[test]
    fn only_needed_files_are_downloaded() {
        for name in [
            "config.json",
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "chat_template.jinja",
        ] {
            assert!(is_wanted(name), "{name}");
        }
        for name in [
            "pytorch_model.bin",
            "original/config.json",
            "consolidated.safetensors",
            "README.md",
        ] {
            assert!(!is_wanted(name), "{name}");
        }
    }
}
