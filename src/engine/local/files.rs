//! Where a checkpoint's files lie: in a directory, or inside this binary.

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

/// A checkpoint in the layout of Hugging Face.
#[derive(Clone, Debug)]
pub enum ModelFiles {
    /// A directory.
    ModelRegistry(PathBuf),
    /// Names and contents bundled with the binary.
    Bundled(&'static [(&'static str, &'static [u8])]),
}

/// The tensors of a checkpoint.
pub(in crate::engine) enum Weights {
    Mapped(MmapedSafetensors),
    Bundled(Vec<SliceSafetensors<'static>>),
    /// Any tensor that is asked for but a separate LM head, with small random values in bf16.
    Random,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl ModelFiles {
    const INDEX: &'static str = "model.safetensors.index.json";
    const SINGLE: &'static str = "model.safetensors";
    /// All that changes what the model answers, besides the weights.
    const DESCRIPTIONS: [&'static str; 5] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ];

    /// The content of a file; `None` when there is no such file.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>, String> {
        match self {
            Self::ModelRegistry(folder) => match fs::read(folder.join(name)) {
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

    /// The content of a file that must be there.
    ///
    /// # Errors
    /// When it is missing or cannot be read.
    pub fn require(&self, name: &str) -> Result<Cow<'static, [u8]>, String> {
        self.read(name)?.ok_or_else(|| {
            format!("{name} is missing; a Hugging Face checkpoint with safetensors is expected")
        })
    }

    /// Names of the files that hold weights, in order: those of the index, or the single one.
    ///
    /// # Errors
    /// When there is neither, or the index is not understood or names a missing file.
    pub fn weight_files(&self) -> Result<Vec<String>, String> {
        let Some(index) = self.read(Self::INDEX)? else {
            if self.contains(Self::SINGLE) {
                return Ok(vec![Self::SINGLE.to_owned()]);
            }
            return Err(format!(
                "neither {} nor {} is there",
                Self::SINGLE,
                Self::INDEX
            ));
        };
        let index: Index = serde_json::from_slice(&index)
            .map_err(|error| format!("{} is not understood: {error}", Self::INDEX))?;
        let names: BTreeSet<String> = index.weight_map.into_values().collect();
        for name in &names {
            // The index comes with the checkpoint; it must not point elsewhere.
            if Path::new(name)
                .file_name()
                .is_none_or(|plain| plain != name.as_str())
            {
                return Err(format!("{}: {name:?} is no plain file name", Self::INDEX));
            }
            if !self.contains(name) {
                return Err(format!("{} names {name}, which is missing", Self::INDEX));
            }
        }
        Ok(names.into_iter().collect())
    }

    fn contains(&self, name: &str) -> bool {
        match self {
            Self::ModelRegistry(folder) => folder.join(name).is_file(),
            Self::Bundled(files) => files.iter().any(|(known, _)| *known == name),
        }
    }

    /// Opens the weights; from a directory they are mapped, not read.
    ///
    /// # Errors
    /// When a file is missing, cut off or no safetensors file.
    pub(in crate::engine) fn weights(&self) -> Result<Weights, String> {
        let names = self.weight_files()?;
        match self {
            Self::ModelRegistry(folder) => {
                let paths: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
                paths.iter().try_for_each(|path| check_length(path))?;
                map(&paths).map(Weights::Mapped)
            }
            Self::Bundled(files) => files
                .iter()
                .filter(|(name, _)| names.iter().any(|wanted| wanted == name))
                .map(|(name, content)| {
                    SliceSafetensors::new(content).map_err(|error| format!("{name}: {error}"))
                })
                .collect::<Result<_, _>>()
                .map(Weights::Bundled),
        }
    }

    /// A digest of everything that decides the model's answers.
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
                // Weights may be larger than memory: stream them.
                Self::ModelRegistry(folder) => fs::File::open(folder.join(&name))
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

/// Longest header that safetensors itself accepts.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// What a header says of a tensor that matters here.
#[derive(Deserialize)]
struct Extent {
    /// First byte and the one after the last, counted from the end of the header.
    #[serde(default)]
    data_offsets: (u64, u64),
}

/// Says how much of a weights file is there when it ends too early, as a broken download leaves it.
/// Whatever else is wrong with it is left to the library that reads it.
fn check_length(path: &Path) -> Result<(), String> {
    let error = |error: io::Error| format!("cannot read {}: {error}", path.display());
    let mut file = fs::File::open(path).map_err(error)?;
    let found = file.metadata().map_err(error)?.len();
    let cut_off = |expected: u64| {
        Err(format!(
            "{} is cut off: {found} bytes are there, at least {expected} are expected; fetch it again",
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
    let Ok(tensors) = serde_json::from_slice::<BTreeMap<String, Extent>>(&header) else {
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
    reason = "mapping is what lets several processes share one copy of the weights"
)]
fn map(paths: &[PathBuf]) -> Result<MmapedSafetensors, String> {
    // SAFETY: the files must not change while they are mapped. Checkpoints are written once and
    // replaced as a whole; whoever truncates one under a running worker stops that worker.
    unsafe { MmapedSafetensors::multi(paths) }
        .map_err(|error| format!("the weights are not understood: {error}"))
}

impl Weights {
    /// True when there is such a tensor.
    pub(in crate::engine) fn has(&self, name: &str) -> bool {
        match self {
            Self::Mapped(files) => files.get(name).is_ok(),
            Self::Bundled(files) => files.iter().any(|file| file.get(name).is_ok()),
            Self::Random => name != "lm_head.weight",
        }
    }

    /// A tensor widened to f32.
    ///
    /// # Errors
    /// When it is missing, or its shape or type is not the expected one.
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
                "tensor {name} is missing; config.json makes it {expected:?}"
            ));
        };
        if view.shape() != expected {
            return Err(format!(
                "tensor {name} is {:?}; config.json makes it {expected:?}",
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

    /// A matrix, `[rows][columns]`, widened to f32.
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

    /// A vector widened to f32.
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
