//! A checkpoint's files, in a directory or embedded in this binary, and its tensors.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use candle_core::{
    DType, Device, Tensor,
    safetensors::{Load as _, MmapedSafetensors, SliceSafetensors},
};
use serde::Deserialize;

/// A checkpoint in Hugging Face's layout.
#[derive(Clone, Debug)]
pub enum ModelFiles {
    /// A directory.
    Directory(PathBuf),
    /// Names and contents embedded in the binary.
    Bundled(&'static [(&'static str, &'static [u8])]),
}

/// A checkpoint's tensors.
pub(in crate::engine) enum CheckpointWeights {
    Mapped(MmapedSafetensors),
    Bundled(Vec<SliceSafetensors<'static>>),
    /// Small random bf16 values for any tensor except a separate LM head.
    Random,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl ModelFiles {
    const INDEX: &'static str = "model.safetensors.index.json";
    const SINGLE: &'static str = "model.safetensors";
    /// Files besides the weights that affect the model's answers.
    pub(super) const DESCRIPTIONS: [&'static str; 5] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ];

    /// Reads a file; `None` when it does not exist.
    ///
    /// # Errors
    /// When it exists but cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>, String> {
        match self {
            Self::Directory(folder) => match fs::read(folder.join(name)) {
                Ok(content) => Ok(Some(Cow::Owned(content))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(format!(
                    "cannot read {}: {error}",
                    folder.join(name).display()
                )),
            },
            Self::Bundled(files) => {
                let file = files.iter().find(|(known, _)| *known == name);
                Ok(file.map(|(_, content)| Cow::Borrowed(*content)))
            }
        }
    }

    /// Reads a required file.
    ///
    /// # Errors
    /// When it is missing or cannot be read.
    pub fn require(&self, name: &str) -> Result<Cow<'static, [u8]>, String> {
        self.read(name)?.ok_or_else(|| {
            format!(
                "{name} is missing; expected a Hugging Face checkpoint with safetensors weights"
            )
        })
    }

    /// Sorted names of the weight files: those of the index, or the single one.
    ///
    /// # Errors
    /// When both are missing, or the index is invalid or names a missing file.
    pub fn weight_files(&self) -> Result<Vec<String>, String> {
        let Some(index) = self.read(Self::INDEX)? else {
            if self.contains(Self::SINGLE) {
                return Ok(vec![Self::SINGLE.to_owned()]);
            }
            return Err(format!(
                "found neither {} nor {}",
                Self::SINGLE,
                Self::INDEX
            ));
        };
        let index: ShardIndex = serde_json::from_slice(&index)
            .map_err(|error| format!("cannot parse {}: {error}", Self::INDEX))?;
        let names: BTreeSet<String> = index.weight_map.into_values().collect();
        for name in &names {
            // The index comes with the checkpoint and must not reach outside its directory.
            if Path::new(name)
                .file_name()
                .is_none_or(|plain| plain != name.as_str())
            {
                return Err(format!(
                    "{}: expected a plain file name, found {name:?}",
                    Self::INDEX
                ));
            }
            if !self.contains(name) {
                return Err(format!("{} names {name}, which is missing", Self::INDEX));
            }
        }
        Ok(names.into_iter().collect())
    }

    fn contains(&self, name: &str) -> bool {
        match self {
            Self::Directory(folder) => folder.join(name).is_file(),
            Self::Bundled(files) => files.iter().any(|(known, _)| *known == name),
        }
    }

    /// Opens the weights; those in a directory are memory-mapped.
    ///
    /// # Errors
    /// When a file is missing, truncated or not in safetensors format.
    pub(in crate::engine) fn weights(&self) -> Result<CheckpointWeights, String> {
        let names = self.weight_files()?;
        match self {
            Self::Directory(folder) => {
                let paths: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
                paths.iter().try_for_each(|path| check_length(path))?;
                map(&paths).map(CheckpointWeights::Mapped)
            }
            Self::Bundled(files) => files
                .iter()
                .filter(|(name, _)| names.iter().any(|wanted| wanted == name))
                .map(|(name, content)| {
                    SliceSafetensors::new(content).map_err(|error| format!("{name}: {error}"))
                })
                .collect::<Result<_, _>>()
                .map(CheckpointWeights::Bundled),
        }
    }

    /// A digest of everything that affects the model's answers.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(in crate::engine) fn digest(&self) -> Result<blake3::Hasher, String> {
        let mut hasher = blake3::Hasher::new();
        for name in Self::DESCRIPTIONS {
            if let Some(content) = self.read(name)? {
                hash_part(&mut hasher, name, blake3::hash(&content));
            }
        }
        for name in self.weight_files()? {
            let content = match self {
                // Stream the weights: they may exceed memory.
                Self::Directory(folder) => fs::File::open(folder.join(&name))
                    .and_then(|file| {
                        let mut content = blake3::Hasher::new();
                        content.update_reader(file)?;
                        Ok(content.finalize())
                    })
                    .map_err(|error| format!("cannot read {name}: {error}"))?,
                Self::Bundled(_) => blake3::hash(&self.require(&name)?),
            };
            hash_part(&mut hasher, &name, content);
        }
        Ok(hasher)
    }
}

fn hash_part(hasher: &mut blake3::Hasher, name: &str, content: blake3::Hash) {
    hasher
        .update(name.as_bytes())
        .update(&[0])
        .update(content.as_bytes());
}

/// Longest header that the safetensors crate accepts.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// A header's entry for a tensor.
#[derive(Deserialize)]
struct TensorEntry {
    /// Offsets of the first byte and past the last, relative to the end of the header.
    #[serde(default)]
    data_offsets: (u64, u64),
}

/// Detects a truncated weights file, as an interrupted download leaves it, and reports its length.
/// All other defects are left to the safetensors crate.
fn check_length(path: &Path) -> Result<(), String> {
    let error = |error: io::Error| format!("cannot read {}: {error}", path.display());
    let mut file = fs::File::open(path).map_err(error)?;
    let found = file.metadata().map_err(error)?.len();
    let cut_off = |expected: u64| {
        Err(format!(
            "{} is truncated: found {found} bytes, expected at least {expected}; download it again",
            path.display()
        ))
    };
    let mut length = [0; 8];
    if found < 8 {
        return cut_off(8);
    }
    file.read_exact(&mut length).map_err(error)?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > HEADER_BYTES_MAX {
        return Ok(());
    }
    if found < 8 + header_bytes {
        return cut_off(8 + header_bytes);
    }
    let mut header = Vec::new();
    file.take(header_bytes)
        .read_to_end(&mut header)
        .map_err(error)?;
    let Ok(tensors) = serde_json::from_slice::<BTreeMap<String, TensorEntry>>(&header) else {
        return Ok(());
    };
    let data_bytes = tensors.values().map(|tensor| tensor.data_offsets.1).max();
    let expected = data_bytes.unwrap_or(0).saturating_add(8 + header_bytes);
    match found < expected {
        true => cut_off(expected),
        false => Ok(()),
    }
}

#[expect(
    unsafe_code,
    reason = "memory-mapping lets processes share one copy of the weights"
)]
fn map(paths: &[PathBuf]) -> Result<MmapedSafetensors, String> {
    // SAFETY: the files must not change while they are mapped. Checkpoints are written once and
    // replaced as a whole; truncating one under a running worker crashes that worker.
    unsafe { MmapedSafetensors::multi(paths) }
        .map_err(|error| format!("cannot parse the weights: {error}"))
}

impl CheckpointWeights {
    /// True when the tensor exists.
    pub(in crate::engine) fn has(&self, name: &str) -> bool {
        match self {
            Self::Mapped(files) => files.get(name).is_ok(),
            Self::Bundled(files) => files.iter().any(|file| file.get(name).is_ok()),
            Self::Random => name != "lm_head.weight",
        }
    }

    /// Reads a tensor as f32.
    ///
    /// # Errors
    /// When it is missing, or its shape or type is unexpected.
    pub(in crate::engine) fn get(&self, name: &str, expected: &[usize]) -> Result<Tensor, String> {
        let view = match self {
            Self::Mapped(files) => files.get(name).ok(),
            Self::Bundled(files) => files.iter().find_map(|file| file.get(name).ok()),
            Self::Random => {
                return Tensor::randn(0.0f32, 0.02, expected, &Device::Cpu)
                    .and_then(|tensor| tensor.to_dtype(DType::BF16)?.to_dtype(DType::F32))
                    .map_err(|error| format!("tensor {name}: {error}"));
            }
        };
        let Some(view) = view else {
            return Err(format!(
                "tensor {name} is missing; expected shape {expected:?} from config.json"
            ));
        };
        if view.shape() != expected {
            return Err(format!(
                "tensor {name} has shape {:?}; expected {expected:?} from config.json",
                view.shape()
            ));
        }
        let tensor = view
            .load(&Device::Cpu)
            .map_err(|error| format!("tensor {name}: {error}"))?;
        match tensor.dtype() {
            DType::F32 | DType::F16 | DType::BF16 => tensor
                .to_dtype(DType::F32)
                .map_err(|error| format!("tensor {name}: {error}")),
            other => Err(format!(
                "tensor {name} has type {other:?}; expected f32, f16 or bf16"
            )),
        }
    }

    /// Reads a matrix, `[rows][columns]`, as f32.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(in crate::engine) fn matrix(
        &self,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> Result<Vec<f32>, String> {
        self.get(name, &[rows, columns])?
            .flatten_all()
            .and_then(|tensor| tensor.to_vec1())
            .map_err(|error| format!("tensor {name}: {error}"))
    }

    /// Reads a vector as f32.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(in crate::engine) fn vector(&self, name: &str, width: usize) -> Result<Vec<f32>, String> {
        let tensor = self.get(name, &[width])?;
        tensor
            .to_vec1()
            .map_err(|error| format!("tensor {name}: {error}"))
    }
}
