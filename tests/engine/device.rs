//! The decoder on candle's devices against Hugging Face transformers': on the CPU always, on a CUDA
//! device by `cargo test --features cuda --test engine device -- --ignored`.
#![expect(
    clippy::print_stdout,
    reason = "the differences found are figures of the documentation"
)]

use candle_core::Device;
use promptyard::{
    batching::BlockId,
    config::{DeviceKind, WeightKind},
    engine::local::{Chunk, GpuModel, LogitRows, ModelFiles, open_device},
};

use crate::support::models::{Case, argmax, cases, model_folder};

const MODELS: [&str; 4] = ["tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-mistral"];
/// Largest difference of a logit; logits reach 20, and both sides compute in f32.
const TOLERANCE: f32 = 1e-4;
/// The same where all that is stored between two operations keeps 8 bits.
const BF16_TOLERANCE: f32 = 0.5;
/// Enough for every prompt at once.
const KV_BYTES: usize = 8 << 20;

fn model(name: &str, kind: WeightKind, device: &Device) -> GpuModel {
    let files = ModelFiles::Directory(model_folder(name));
    GpuModel::read(&files, 0, kind, device, KV_BYTES).unwrap()
}

/// Blocks that are free, handed out from all over the arena.
struct Pool(Vec<BlockId>);

impl Pool {
    fn new(model: &GpuModel) -> Self {
        let count = model.kv_blocks();
        // A step that shares no factor with the count visits every block once.
        let step = (count / 2..).find(|step| gcd(*step, count) == 1).unwrap();
        Self(
            (0..count)
                .map(|at| BlockId((at * step % count) as u32))
                .collect(),
        )
    }

    fn take(&mut self, tokens: usize) -> Vec<BlockId> {
        let blocks = tokens.div_ceil(32);
        self.0.split_off(self.0.len().checked_sub(blocks).unwrap())
    }

    fn give_back(&mut self, blocks: Vec<BlockId>) {
        self.0.extend(blocks);
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// A sequence that decodes greedily; it keeps every row of logits that a token was chosen from.
struct Sequence {
    blocks: Vec<BlockId>,
    tokens: Vec<u32>,
    computed: usize,
    prompt_tokens: usize,
    rows: Vec<Vec<f32>>,
    wanted: usize,
}

impl Sequence {
    fn new(case: &Case, pool: &mut Pool) -> Self {
        Self {
            blocks: pool.take(case.prompt.len() + case.greedy.len()),
            tokens: case.prompt.clone(),
            computed: 0,
            prompt_tokens: case.prompt.len(),
            rows: Vec::new(),
            wanted: case.greedy.len(),
        }
    }

    fn is_done(&self) -> bool {
        self.rows.len() == self.wanted
    }

    fn generated(&self) -> &[u32] {
        &self.tokens[self.prompt_tokens..]
    }
}

/// How many tokens a sequence may compute in a step: of the step and the sequence.
type Cut = fn(usize, usize) -> usize;

const CUTS: [(&str, Cut); 4] = [
    ("all at once", |_, _| usize::MAX),
    ("chunks of seven", |_, _| 7),
    ("uneven chunks", |step, at| (step * 5 + at * 3) % 11),
    ("latecomers", |step, at| if step < at * 4 { 0 } else { 33 }),
];

fn run(model: &mut GpuModel, cases: &[Case], pool: &mut Pool, cut: Cut) -> Vec<Sequence> {
    let mut sequences: Vec<Sequence> = cases.iter().map(|case| Sequence::new(case, pool)).collect();
    for step in 0.. {
        if sequences.iter().all(Sequence::is_done) {
            break;
        }
        let mut chunks = Vec::new();
        let mut computed = Vec::new();
        for (at, sequence) in sequences.iter().enumerate() {
            let known = sequence.tokens.len() - sequence.computed;
            let tokens = cut(step, at).min(known);
            if sequence.is_done() || tokens == 0 {
                continue;
            }
            let yields = tokens == known;
            computed.push((at, tokens, yields));
            chunks.push(Chunk {
                tokens: &sequence.tokens[sequence.computed..][..tokens],
                from: sequence.computed,
                blocks: &sequence.blocks,
                rows: if yields {
                    LogitRows::Last
                } else {
                    LogitRows::None
                },
            });
        }
        let logits = model.forward(&chunks).unwrap();
        let mut rows = logits.rows();
        for (at, tokens, yields) in computed {
            sequences[at].computed += tokens;
            if yields {
                let row = rows.next().unwrap().to_vec();
                sequences[at].tokens.push(argmax(&row));
                sequences[at].rows.push(row);
            }
        }
        assert_eq!(rows.len(), 0);
    }
    for sequence in &mut sequences {
        pool.give_back(std::mem::take(&mut sequence.blocks));
    }
    sequences
}

/// All prompts in one step, every row.
fn logits(model: &mut GpuModel, cases: &[Case]) -> Vec<Vec<Vec<f32>>> {
    let mut pool = Pool::new(model);
    let blocks: Vec<Vec<BlockId>> = cases
        .iter()
        .map(|case| pool.take(case.prompt.len()))
        .collect();
    let chunks: Vec<Chunk<'_>> = cases
        .iter()
        .zip(&blocks)
        .map(|(case, blocks)| Chunk {
            tokens: &case.prompt,
            from: 0,
            blocks,
            rows: LogitRows::All,
        })
        .collect();
    let logits = model.forward(&chunks).unwrap();
    let mut rows = logits.rows();
    let of_case = |case: &Case| {
        rows.by_ref()
            .take(case.prompt.len())
            .map(<[f32]>::to_vec)
            .collect()
    };
    cases.iter().map(of_case).collect()
}

fn difference(found: &[f32], expected: &[f32]) -> f32 {
    let pairs = found.iter().zip(expected);
    pairs
        .map(|(ours, theirs)| (ours - theirs).abs())
        .fold(0.0, f32::max)
}

fn logits_are_those_of_transformers(kind: WeightKind, device: &Device, tolerance: f32) {
    for name in MODELS {
        let (mut model, cases) = (model(name, kind, device), cases(name));
        let mut worst = 0.0f32;
        for (case, rows) in cases.iter().zip(logits(&mut model, &cases)) {
            for (row, expected) in case.rows.iter().zip(&case.logits) {
                worst = worst.max(difference(&rows[*row], expected));
            }
        }
        println!("{name}, {kind}: logits differ by at most {worst}");
        assert!(
            worst < tolerance,
            "{name}, {kind}: a logit differs by {worst}"
        );
    }
}

/// In any company and however the prompts are cut, in blocks that others used before.
fn greedy_tokens_are_those_of_transformers(device: &Device) {
    for name in MODELS {
        let (mut model, cases) = (model(name, WeightKind::F32, device), cases(name));
        let mut pool = Pool::new(&model);
        let mut first: Option<Vec<Sequence>> = None;
        for (cut, chunk) in CUTS {
            let sequences = run(&mut model, &cases, &mut pool, chunk);
            for (at, (sequence, case)) in sequences.iter().zip(&cases).enumerate() {
                let what = format!("{name}, {cut}, prompt of {}", case.prompt.len());
                assert_eq!(sequence.generated(), case.greedy, "{what}");
                let Some(first) = &first else { continue };
                for (row, other) in sequence.rows.iter().zip(&first[at].rows) {
                    let worst = difference(row, other);
                    assert!(worst < TOLERANCE, "{what}: a logit differs by {worst}");
                }
            }
            first.get_or_insert(sequences);
        }
    }
}

#[test]
fn logits_on_the_cpu() {
    logits_are_those_of_transformers(WeightKind::F32, &Device::Cpu, TOLERANCE);
}

#[test]
fn greedy_tokens_on_the_cpu() {
    greedy_tokens_are_those_of_transformers(&Device::Cpu);
}

#[test]
fn impossible_inputs_are_refused() {
    let mut model = model("tiny-llama", WeightKind::F32, &Device::Cpu);
    let mut error = |tokens: &[u32], from: usize, blocks: &[BlockId]| {
        let chunk = Chunk {
            tokens,
            from,
            blocks,
            rows: LogitRows::Last,
        };
        model.forward(&[chunk]).unwrap_err()
    };
    let block = [BlockId(0)];
    let told = error(&[5, 384], 0, &block);
    assert!(
        told.contains("384") && told.contains("vocabulary"),
        "{told}"
    );
    let told = error(&[5], 1024, &[BlockId(0); 33]);
    assert!(told.contains("1025") && told.contains("1024"), "{told}");
    let told = error(&[5], 32, &block);
    assert!(told.contains("33 tokens"), "{told}");
    let told = error(&[5], 0, &[BlockId(u32::MAX)]);
    assert!(told.contains("table of 1 blocks"), "{told}");
    error(&[], 0, &block);
    assert_eq!(model.forward(&[]).unwrap().rows().len(), 0);
}

fn cuda() -> Device {
    open_device(DeviceKind::Cuda).unwrap().unwrap()
}

#[test]
#[ignore = "needs the feature `cuda` and a CUDA device"]
fn logits_on_cuda() {
    let device = cuda();
    logits_are_those_of_transformers(WeightKind::F32, &device, 10.0 * TOLERANCE);
    logits_are_those_of_transformers(WeightKind::Bf16, &device, BF16_TOLERANCE);
}

#[test]
#[ignore = "needs the feature `cuda` and a CUDA device"]
fn greedy_tokens_on_cuda() {
    greedy_tokens_are_those_of_transformers(&cuda());
}
