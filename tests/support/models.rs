//! The tiny checkpoints of `tests/fixtures`, and what transformers computes with them.

use std::{collections::HashMap, path::PathBuf};

use candle_core::{Device, Tensor};

pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The folder of a checkpoint.
pub fn model_folder(name: &str) -> PathBuf {
    fixtures().join("models").join(name)
}

/// What transformers computes for one prompt.
pub struct Case {
    pub prompt: Vec<u32>,
    /// Positions of the prompt for which `logits` has a row each.
    pub rows: Vec<usize>,
    pub logits: Vec<Vec<f32>>,
    pub greedy: Vec<u32>,
}

pub fn cases(name: &str) -> Vec<Case> {
    let path = fixtures()
        .join("expected")
        .join(format!("{name}.safetensors"));
    let tensors: HashMap<String, Tensor> =
        candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let integers = |key: String| -> Vec<u32> {
        let values = tensors[&key].to_vec1::<i64>().unwrap();
        values
            .into_iter()
            .map(|value| u32::try_from(value).unwrap())
            .collect()
    };
    (0..tensors.len() / 4)
        .map(|at| Case {
            prompt: integers(format!("prompt.{at}")),
            rows: integers(format!("rows.{at}"))
                .into_iter()
                .map(|row| row as usize)
                .collect(),
            logits: tensors[&format!("logits.{at}")].to_vec2().unwrap(),
            greedy: integers(format!("greedy.{at}")),
        })
        .collect()
}

/// The token of the largest logit, the first of several.
pub fn argmax(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]).then(b.cmp(a)));
    best.unwrap() as u32
}
