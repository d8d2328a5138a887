//! Measures the machine's peak rates, for benchmarks to compare with.

use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::{
    isa::Isa,
    pack::{Packed, Precision},
    panel::PANEL,
    rows::PreparedRows,
    tile::multiply,
};

/// The machine's peak rates, all threads together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MachineLimits {
    /// Bytes read from memory per second.
    pub(crate) bytes_per_second: f64,
    /// f32 operations per second; a multiplication and an addition count as two.
    pub(crate) f32_flops: f64,
    /// The same for bf16 pairs; for f32 where the CPU has no bf16 instruction.
    pub(crate) bf16_flops: f64,
    /// The same for 8-bit products with their scales.
    pub(crate) q8_flops: f64,
}

/// Duration of one measurement.
const SPAN: Duration = Duration::from_millis(60);
/// Floats read per thread: far more than its share of any cache.
const FLOATS: usize = 32 << 20;
/// Inputs of the measured panel, which stays in the first-level cache.
const INPUTS: usize = 256;
const ROWS: usize = 12;

impl MachineLimits {
    /// Measures them; takes a fraction of a second and 128 MiB per thread.
    pub(crate) fn measure() -> Self {
        Self {
            bytes_per_second: bandwidth(),
            f32_flops: arithmetic(Precision::F32),
            bf16_flops: arithmetic(Precision::Bf16),
            q8_flops: arithmetic(Precision::Q8),
        }
    }
}

/// Runs `work` on every thread for [`SPAN`] and adds up their rates per second.
fn on_all_threads(work: impl Fn() -> f64 + Sync) -> f64 {
    let rates = rayon::broadcast(|_| {
        let (begun, mut done) = (Instant::now(), 0.0);
        while begun.elapsed() < SPAN {
            done += work();
        }
        done / begun.elapsed().as_secs_f64()
    });
    rates.into_iter().sum()
}

fn bandwidth() -> f64 {
    let threads = rayon::current_num_threads();
    let mut memory = vec![0.0f32; threads * FLOATS];
    // Written by the threads, so that the pages are allocated.
    memory
        .par_chunks_mut(1 << 16)
        .for_each(|part| part.fill(1.0));
    let rates = rayon::broadcast(|thread| {
        let part = &memory[thread.index() * FLOATS..][..FLOATS];
        let begun = Instant::now();
        let mut sums = [0.0f32; 64];
        for values in part.chunks_exact(64) {
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += value;
            }
        }
        std::hint::black_box(sums);
        size_of_val(part) as f64 / begun.elapsed().as_secs_f64()
    });
    rates.into_iter().sum()
}

fn arithmetic(precision: Precision) -> f64 {
    let isa = Isa::best();
    let rows = vec![0.5; ROWS * INPUTS];
    let packed = Packed::new(isa, &[0.3; PANEL * INPUTS], PANEL, INPUTS, precision);
    let mut prepared = PreparedRows::default();
    let rows = packed.prepare(isa, &rows, INPUTS, &mut prepared);
    on_all_threads(|| {
        let mut sums = [[0.0; PANEL]; ROWS];
        multiply(isa, packed.panel(0, INPUTS), rows, INPUTS, &mut sums);
        std::hint::black_box(sums);
        (2 * ROWS * INPUTS * PANEL) as f64
    })
}
