//! Tests the CUDA kernels, compiled for the CPU, against the reference: random inputs, scattered
//! blocks, arenas filled with NaN where nothing was written.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use candle_core::DType;
use half::bf16;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use tempfile::TempDir;

use crate::{
    batching::{BLOCK_TOKENS, BlockId},
    engine::local::{
        forward::{Chunk, LogitRows},
        shape::HeadWidths,
    },
};

use super::{
    reference::{self, Element, HeadRotation},
    step::Step,
};

const EPSILON: f32 = 1e-6;

/// Converts numbers to and from the program's binary format.
trait BinaryValue: Sized {
    fn push(&self, to: &mut Vec<u8>);
    fn read(bytes: &[u8]) -> Vec<Self>;
}

macro_rules! bytes {
    ($($number:ty),*) => {$(
        impl BinaryValue for $number {
            fn push(&self, to: &mut Vec<u8>) {
                to.extend(self.to_le_bytes());
            }

            fn read(bytes: &[u8]) -> Vec<Self> {
                let (numbers, _) = bytes.as_chunks();
                numbers.iter().map(|bytes| Self::from_le_bytes(*bytes)).collect()
            }
        }
    )*};
}

bytes!(f32, bf16, u32);

/// Element type of tensors.
trait TestElement: BinaryValue + Element {
    const DTYPE: DType;
    /// Largest difference from the reference; relative to values above 1.
    const TOLERANCE: f32;
}

impl TestElement for f32 {
    const DTYPE: DType = DType::F32;
    const TOLERANCE: f32 = 1e-5;
}

impl TestElement for bf16 {
    const DTYPE: DType = DType::BF16;
    /// One unit in the last place.
    const TOLERANCE: f32 = 1.0 / 128.0;
}

/// Input of one kernel.
struct KernelInput(Vec<u8>);

impl KernelInput {
    fn new(kernel: &str) -> Self {
        let mut name = kernel.as_bytes().to_vec();
        name.resize(8, 0);
        Self(name)
    }

    fn number(mut self, number: impl BinaryValue) -> Self {
        number.push(&mut self.0);
        self
    }

    fn array<E: BinaryValue>(mut self, values: &[E]) -> Self {
        let mut bytes = Vec::new();
        values.iter().for_each(|value| value.push(&mut bytes));
        self.0.extend((bytes.len() as u32).to_le_bytes());
        self.0.extend(bytes);
        self
    }
}

/// The kernels compiled for one shape.
struct KernelProgram {
    path: PathBuf,
    _folder: TempDir,
}

impl KernelProgram {
    fn build<E: TestElement>(widths: HeadWidths) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("kernels");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/cuda-kernel-check");
        let output = Command::new(script)
            .arg("build")
            .arg(&path)
            .arg(format!("HEAD={}", widths.head))
            .arg(format!("GROUP={}", widths.group()))
            .arg(format!("ROWS={}", widths.tile_rows()))
            .arg(format!("BF16={}", u8::from(E::DTYPE == DType::BF16)))
            .output()
            .expect("bash runs the script");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "the kernels do not compile: {stderr}"
        );
        Self {
            path,
            _folder: folder,
        }
    }

    fn run<E: BinaryValue>(&self, input: &KernelInput) -> Vec<E> {
        let mut child = Command::new(&self.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut stdin = child.stdin.take().expect("its input is a pipe");
        // It reads all of its input before it writes.
        let written = stdin.write_all(&input.0);
        drop(stdin);
        let output = child.wait_with_output().expect("the program ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "the kernel failed: {stderr}");
        written.expect("the program reads its input");
        E::read(&output.stdout)
    }
}

/// A layer whose sequences have various lengths.
struct TestLayer<E> {
    widths: HeadWidths,
    cosines: Vec<f32>,
    sines: Vec<f32>,
    norm: Option<Vec<f32>>,
    window: usize,
    arena: Vec<E>,
    /// Block tables.
    tables: Vec<Vec<BlockId>>,
    rng: StdRng,
}

const POSITIONS: usize = 320;

impl<E: TestElement> TestLayer<E> {
    /// Sequences of the given lengths, with blocks in random order.
    fn new(widths: HeadWidths, has_norm: bool, window: usize, tokens: &[usize]) -> Self {
        let mut rng = StdRng::seed_from_u64(7);
        let angles: Vec<f32> = numbers(&mut rng, POSITIONS * widths.head / 2);
        let blocks: usize = tokens
            .iter()
            .map(|tokens| tokens.div_ceil(BLOCK_TOKENS))
            .sum();
        let mut free: Vec<BlockId> = (0..blocks as u32 + 3).map(BlockId).collect();
        free.shuffle(&mut rng);
        let tables = tokens
            .iter()
            .map(|tokens| free.split_off(free.len() - tokens.div_ceil(BLOCK_TOKENS)))
            .collect();
        let values = (blocks + 3) * 2 * widths.kv_heads * BLOCK_TOKENS * widths.head;
        Self {
            widths,
            cosines: angles.iter().map(|angle| angle.cos()).collect(),
            sines: angles.iter().map(|angle| angle.sin()).collect(),
            norm: has_norm.then(|| numbers(&mut rng, widths.head)),
            window,
            arena: vec![E::narrow(f32::NAN); values],
            tables,
            rng,
        }
    }

    fn rotation(&self) -> HeadRotation<'_> {
        HeadRotation {
            cosines: &self.cosines,
            sines: &self.sines,
            norm: self.norm.as_deref(),
            epsilon: EPSILON,
        }
    }

    /// A step for these positions, with random projections.
    fn step(&mut self, parts: &[(usize, std::ops::Range<usize>)]) -> (Step, Vec<E>) {
        let tokens = [0; POSITIONS];
        let chunks: Vec<Chunk<'_>> = parts
            .iter()
            .map(|(sequence, positions)| Chunk {
                tokens: &tokens[..positions.len()],
                from: positions.start,
                blocks: &self.tables[*sequence],
                rows: LogitRows::None,
            })
            .collect();
        let step = Step::new(&chunks, self.widths);
        let count = step.sections.tokens.len() * self.widths.row();
        let qkv = numbers(&mut self.rng, count);
        (step, qkv.into_iter().map(E::narrow).collect())
    }

    fn write_kv(&mut self, step: &Step, qkv: &[E]) {
        let mut arena = std::mem::take(&mut self.arena);
        let at = (
            step.words(&step.sections.slots),
            step.words(&step.sections.positions),
        );
        reference::write_kv(self.widths, self.rotation(), at, qkv, &mut arena);
        self.arena = arena;
    }

    fn attend(&self, step: &Step, qkv: &[E]) -> Vec<E> {
        let chunks = (step.spans.as_slice(), step.words(&step.sections.tables));
        let rotation = self.rotation();
        reference::attend(self.widths, rotation, self.window, chunks, qkv, &self.arena)
    }

    fn input(&self, input: KernelInput) -> KernelInput {
        let norm = self.norm.as_deref().unwrap_or_default();
        input.array(&self.cosines).array(&self.sines).array(norm)
    }

    fn write_kv_input(&self, step: &Step, qkv: &[E]) -> KernelInput {
        let input = KernelInput::new("write_kv")
            .number(EPSILON)
            .number(self.widths.kv_heads as u32)
            .array(&self.arena)
            .array(qkv)
            .array(step.words(&step.sections.slots))
            .array(step.words(&step.sections.positions));
        self.input(input)
    }

    fn attend_input(&self, step: &Step, qkv: &[E]) -> KernelInput {
        let input = KernelInput::new("attend")
            .number(EPSILON)
            .number(1.0 / (self.widths.head as f32).sqrt())
            .number(self.window as u32)
            .number(self.widths.kv_heads as u32)
            .array(qkv)
            .array(&self.arena)
            .array(step.words(&step.sections.tasks))
            .array(step.words(&step.sections.spans))
            .array(step.words(&step.sections.tables));
        self.input(input)
    }
}

fn numbers(rng: &mut StdRng, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-2.0..2.0)).collect()
}

/// Compares values within the tolerance; NaN equals NaN, since unwritten values stay NaN.
fn assert_near<E: TestElement>(found: &[E], expected: &[E], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let (found, expected) = (found.widen(), expected.widen());
        let is_near = (found - expected).abs() <= E::TOLERANCE * expected.abs().max(1.0);
        assert!(
            is_near || found.is_nan() && expected.is_nan(),
            "{what}: value {at} is {found}, expected {expected}"
        );
    }
}

/// A step with all kinds of chunks: a whole prompt, later chunks of prompts, and decoded tokens on both
/// sides of a block boundary.
fn compare<E: TestElement>(widths: HeadWidths, has_norm: bool, window: usize) {
    let program = KernelProgram::build::<E>(widths);
    let parts = [
        (0, 0..70),
        (1, 299..300),
        (2, 31..32),
        (3, 32..33),
        (4, 90..101),
        (5, 0..1),
    ];
    let lengths = parts.clone().map(|(_, positions)| positions.end);
    let mut layer = TestLayer::<E>::new(widths, has_norm, window, &lengths);
    let before: Vec<_> = parts
        .iter()
        .filter(|(_, positions)| positions.start > 0)
        .map(|(sequence, positions)| (*sequence, 0..positions.start))
        .collect();
    let (step, qkv) = layer.step(&before);
    layer.write_kv(&step, &qkv);
    let (step, qkv) = layer.step(&parts);
    let written: Vec<E> = program.run(&layer.write_kv_input(&step, &qkv));
    layer.write_kv(&step, &qkv);
    assert_near(&written, &layer.arena, "write_kv");
    let attended: Vec<E> = program.run(&layer.attend_input(&step, &qkv));
    let expected = layer.attend(&step, &qkv);
    assert!(expected.iter().all(|value| value.widen().is_finite()));
    assert_near(&attended, &expected, "attend");
    let width = 37;
    let rows = &qkv[..qkv.len() / (2 * width) * 2 * width];
    let input = KernelInput::new("swiglu").number(width as u32).array(rows);
    assert_near(
        &program.run::<E>(&input),
        &reference::swiglu(width, rows),
        "swiglu",
    );
}

fn widths(head: usize, kv_heads: usize, group: usize) -> HeadWidths {
    HeadWidths {
        heads: kv_heads * group,
        kv_heads,
        head,
    }
}

#[test]
fn bf16_heads_of_64_as_in_small_models() {
    compare::<bf16>(widths(64, 2, 3), false, 0);
}

#[test]
fn bf16_heads_of_128_with_norms_and_a_window() {
    compare::<bf16>(widths(128, 1, 4), true, 40);
}

#[test]
fn f32_heads_that_are_no_multiple_of_a_vector() {
    compare::<f32>(widths(6, 2, 1), true, 0);
}

#[test]
fn f32_more_heads_in_a_group_than_rows_in_a_tile() {
    compare::<f32>(widths(80, 1, 15), false, 5);
}

#[test]
fn f32_the_widest_heads() {
    compare::<f32>(widths(256, 1, 2), false, 33);
}

/// Attention is bit-identical however a prompt is chunked and whatever else is in the step.
#[test]
fn chunking_and_batching_change_no_bit() {
    let widths = widths(64, 1, 3);
    let program = KernelProgram::build::<f32>(widths);
    for window in [0, 50] {
        let mut layer = TestLayer::<f32>::new(widths, false, window, &[130, 45]);
        let (step, qkv) = layer.step(&[(0, 0..130), (1, 0..45)]);
        layer.write_kv(&step, &qkv);
        let whole: Vec<f32> = program.run(&layer.attend_input(&step, &qkv));
        let row = widths.row();
        let cuts = [
            vec![(0, 0..130)],
            vec![
                (0, 0..7),
                (0, 7..61),
                (1, 40..45),
                (0, 61..62),
                (0, 62..130),
            ],
            (0..130).map(|at| (0, at..at + 1)).collect(),
        ];
        for cut in cuts {
            let (step, _) = layer.step(&cut);
            let rows = cut.iter().flat_map(|(sequence, positions)| {
                let first = sequence * 130;
                &qkv[(first + positions.start) * row..(first + positions.end) * row]
            });
            let rows: Vec<f32> = rows.copied().collect();
            let found: Vec<f32> = program.run(&layer.attend_input(&step, &rows));
            let owners = cut
                .iter()
                .flat_map(|(sequence, positions)| vec![*sequence; positions.len()]);
            let width = widths.heads * widths.head;
            let own = found.chunks_exact(width).zip(owners);
            let own: Vec<f32> = own
                .filter(|(_, sequence)| *sequence == 0)
                .flat_map(|(row, _)| row.iter().copied())
                .collect();
            assert!(
                own == whole[..130 * width],
                "chunking changed bits; window {window}, {} chunks",
                cut.len()
            );
        }
    }
}
