//! Our arithmetic against Hugging Face transformers', and against itself in every batch.
#![expect(
    clippy::print_stdout,
    reason = "the differences found are figures of the documentation"
)]

use promptyard::{
    batching::{BLOCK_TOKENS, BlockId},
    config::WeightKind,
    engine::local::{Chunk, CpuModel, LogitRows, ModelFiles, Workspace},
};

use crate::support::models::{Case, argmax, cases, model_folder};

const MODELS: [&str; 5] = [
    "tiny-llama",
    "tiny-qwen2",
    "tiny-qwen3",
    "tiny-mistral",
    "tiny-smollm2",
];
/// Largest difference of a logit; logits reach 20, and both sides compute in f32.
const TOLERANCE: f32 = 1e-4;
/// The same where weights and the inputs of products are rounded to bf16, which keeps 8 bits.
const BF16_TOLERANCE: f32 = 0.25;
/// The same in steps of 8 bits.
const Q8_TOLERANCE: f32 = 1.5;

fn model(name: &str) -> CpuModel {
    model_in(name, WeightKind::F32)
}

fn model_in(name: &str, kind: WeightKind) -> CpuModel {
    let files = ModelFiles::Directory(model_folder(name));
    CpuModel::read(&files, 0, kind).unwrap()
}

/// A sequence that decodes greedily; it keeps every row of logits that a token was chosen from.
struct Sequence {
    computed: usize,
    blocks: Vec<BlockId>,
    tokens: Vec<u32>,
    prompt_tokens: usize,
    rows: Vec<Vec<f32>>,
    wanted: usize,
}

impl Sequence {
    fn new(case: &Case) -> Self {
        Self {
            computed: 0,
            blocks: Vec::new(),
            tokens: case.prompt.clone(),
            prompt_tokens: case.prompt.len(),
            rows: Vec::new(),
            wanted: case.greedy.len(),
        }
    }

    fn several(cases: &[Case]) -> Vec<Self> {
        let mut sequences: Vec<Self> = cases.iter().map(Self::new).collect();
        give_blocks(&mut sequences);
        sequences
    }

    fn is_done(&self) -> bool {
        self.rows.len() == self.wanted
    }

    fn generated(&self) -> &[u32] {
        &self.tokens[self.prompt_tokens..]
    }
}

/// Scatters the sequences' blocks over the cache, in no order.
fn give_blocks(sequences: &mut [Sequence]) {
    let mut next = 0;
    for round in 0..8 {
        for sequence in sequences.iter_mut() {
            let most = sequence.prompt_tokens + sequence.wanted;
            if round * BLOCK_TOKENS < most {
                sequence.blocks.push(BlockId((next * 7 + 3) % BLOCKS));
                next += 1;
            }
        }
    }
    assert!(
        next < BLOCKS,
        "each block is given once: 7 and the number of blocks have no common factor"
    );
}

/// Blocks of the tests' caches.
const BLOCKS: u32 = 64;

/// Runs all sequences together; `chunk` says how many prompt tokens each may compute in a step.
fn run(
    model: &CpuModel,
    workspace: &mut Workspace,
    sequences: &mut [Sequence],
    mut chunk: impl FnMut(usize, usize) -> usize,
) {
    for step in 0.. {
        if sequences.iter().all(Sequence::is_done) {
            return;
        }
        let mut chunks = Vec::new();
        let mut yielding = Vec::new();
        for (at, sequence) in sequences.iter_mut().enumerate() {
            let from = sequence.computed;
            let known = sequence.tokens.len() - from;
            let tokens = chunk(step, at).min(known);
            if sequence.is_done() || tokens == 0 {
                continue;
            }
            let yields = tokens == known;
            if yields {
                yielding.push(at);
            }
            sequence.computed += tokens;
            chunks.push(Chunk {
                tokens: &sequence.tokens[from..from + tokens],
                from,
                blocks: &sequence.blocks,
                rows: if yields {
                    LogitRows::Last
                } else {
                    LogitRows::None
                },
            });
        }
        let logits = model.forward(workspace, &chunks).unwrap();
        assert_eq!(logits.rows().len(), yielding.len());
        let rows: Vec<Vec<f32>> = logits.rows().map(<[f32]>::to_vec).collect();
        for (at, row) in yielding.into_iter().zip(rows) {
            sequences[at].tokens.push(argmax(&row));
            sequences[at].rows.push(row);
        }
    }
}

fn run_alone(model: &CpuModel, case: &Case) -> Sequence {
    let mut alone = [Sequence::new(case)];
    give_blocks(&mut alone);
    run(
        model,
        &mut model.workspace(BLOCKS as usize),
        &mut alone,
        |_, _| usize::MAX,
    );
    let [alone] = alone;
    alone
}

#[test]
fn logits_are_those_of_transformers() {
    for name in MODELS {
        for (kind, tolerance) in [
            (WeightKind::F32, TOLERANCE),
            (WeightKind::Bf16, BF16_TOLERANCE),
            (WeightKind::Q8, Q8_TOLERANCE),
        ] {
            let model = model_in(name, kind);
            let mut worst = 0.0f32;
            for case in cases(name) {
                let logits = model.logits(&case.prompt).unwrap();
                let rows: Vec<&[f32]> = logits.rows().collect();
                assert_eq!(rows.len(), case.prompt.len());
                for (row, expected) in case.rows.iter().zip(&case.logits) {
                    for (ours, theirs) in rows[*row].iter().zip(expected) {
                        worst = worst.max((ours - theirs).abs());
                    }
                }
            }
            println!("{name}, {kind}: logits differ by at most {worst}");
            assert!(
                worst < tolerance,
                "{name}, {kind}: a logit differs by {worst}"
            );
        }
    }
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    for name in MODELS {
        let model = model(name);
        for case in cases(name) {
            let alone = run_alone(&model, &case);
            assert_eq!(
                alone.generated(),
                case.greedy,
                "{name}, {} tokens",
                case.prompt.len()
            );
        }
    }
}

/// Nobody's logits may depend, in any bit, on who shares the step or on how prompts are cut.
#[test]
fn batch_and_chunk_sizes_change_no_bit() {
    let kinds = [WeightKind::F32, WeightKind::Bf16, WeightKind::Q8];
    for (name, kind) in MODELS
        .into_iter()
        .flat_map(|name| kinds.map(|kind| (name, kind)))
    {
        let model = model_in(name, kind);
        let cases = cases(name);
        let alone: Vec<Sequence> = cases.iter().map(|case| run_alone(&model, case)).collect();
        type Cut = fn(usize, usize) -> usize;
        let cuts: [(&str, Cut); 5] = [
            ("all at once", |_, _| usize::MAX),
            ("single tokens", |_, _| 1),
            ("chunks of seven", |_, _| 7),
            ("uneven chunks", |step, at| (step * 5 + at * 3) % 11),
            ("latecomers", |step, at| if step < at * 4 { 0 } else { 13 }),
        ];
        // One after the other in the same blocks, which hold what was left there.
        let mut workspace = model.workspace(BLOCKS as usize);
        for (cut, chunk) in cuts {
            let mut together = Sequence::several(&cases);
            run(&model, &mut workspace, &mut together, chunk);
            for (together, alone) in together.iter().zip(&alone) {
                let what = format!("{name}, {kind}, {cut}, prompt of {}", alone.prompt_tokens);
                assert_eq!(together.generated(), alone.generated(), "{what}");
                assert!(together.rows == alone.rows, "{what}: logits differ");
            }
        }
    }
}

/// Blocks that another sequence computed for the same prefix give the same bits: after it, and within
/// the very step that computes it.
#[test]
fn blocks_of_another_sequence_change_no_bit() {
    for (name, kind) in MODELS
        .into_iter()
        .flat_map(|name| [WeightKind::F32, WeightKind::Bf16].map(|kind| (name, kind)))
    {
        let model = model_in(name, kind);
        let case = cases(name).pop().unwrap();
        assert!(
            case.prompt.len() > 2 * BLOCK_TOKENS,
            "two blocks are shared"
        );
        let alone = run_alone(&model, &case);
        for lead in [usize::MAX, 40] {
            let mut both = [Sequence::new(&case), Sequence::new(&case)];
            give_blocks(&mut both);
            let shared: Vec<BlockId> = both[0].blocks[..2].to_vec();
            both[1].blocks[..2].copy_from_slice(&shared);
            both[1].computed = 2 * BLOCK_TOKENS;
            let mut workspace = model.workspace(BLOCKS as usize);
            // The second begins with the step that completes the shared blocks.
            run(&model, &mut workspace, &mut both, |step, at| {
                match (at, step) {
                    (0, _) => lead,
                    (_, 0) if lead < 2 * BLOCK_TOKENS => 0,
                    _ => usize::MAX,
                }
            });
            for sequence in &both {
                assert_eq!(sequence.generated(), alone.generated(), "{name}, {kind}");
                assert!(sequence.rows == alone.rows, "{name}, {kind}: logits differ");
            }
        }
    }
}

#[test]
fn impossible_inputs_are_refused() {
    let model = model("tiny-llama");
    let error = model.logits(&[5, 384]).unwrap_err();
    assert!(
        error.contains("384") && error.contains("vocabulary"),
        "{error}"
    );
    let error = model.logits(&vec![5; 1025]).unwrap_err();
    assert!(error.contains("1025") && error.contains("1024"), "{error}");
    assert!(model.logits(&[]).is_err());
    let mut workspace = model.workspace(2);
    assert_eq!(model.forward(&mut workspace, &[]).unwrap().rows().len(), 0);
    for blocks in [vec![BlockId(0)], vec![BlockId(0), BlockId(2)]] {
        let chunk = Chunk {
            tokens: &[5; 33],
            from: 0,
            blocks: &blocks,
            rows: LogitRows::Last,
        };
        let error = model.forward(&mut workspace, &[chunk]).unwrap_err();
        assert!(error.contains("33") && error.contains("blocks"), "{error}");
    }
}
