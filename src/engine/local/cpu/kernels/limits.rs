//! What this machine could do at best, for benchmarks to be measured against.

use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::{
    isa::Isa,
    matrix::Precision,
    pack::Packed,
    rows::Ready,
    tile::{PANEL, multiply},
};

/// The machine's limits, all threads together.
#[derive(Clone, Copy, Debug)]
pub struct MachineLimits {
    /// Bytes read from memory in a second.
    pub bytes_per_second: f64,
    /// Multiplications and additions of f32 in a second.
    pub f32_flops: f64,
    /// The same of bf16 pairs; of f32 where the CPU has no such instruction.
    pub bf16_flops: f64,
    /// The same of bytes, with their scales.
    pub q8_flops: f64,
}

/// Length of one measurement.
const SPAN: Duration = Duration::from_millis(60);
/// Floats that a thread reads: far beyond its share of any cache.
const FLOATS: usize = 32 << 20;
/// Inputs of the panel in the arithmetic's measurement, which stays in the first-level cache.
const INPUTS: usize = 256;
const ROWS: usize = 12;

impl MachineLimits {
    /// Measures them; takes a fraction of a second and 128 MiB for each thread.
    pub fn measure() -> Self {
        Self {
            bytes_per_second: bandwidth(),
            f32_flops: arithmetic(Precision::F32),
            bf16_flops: arithmetic(Precision::Bf16),
            q8_flops: arithmetic(Precision::Q8),
        }
    }
}

/// Runs `work` on every thread for [`SPAN`] and adds up what each did in a second.
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
    // Written by the threads, so that the pages are there.
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
    let mut ready = Ready::default();
    let rows = packed.ready(isa, &rows, INPUTS, &mut ready);
    on_all_threads(|| {
        let mut sums = [[0.0; PANEL]; ROWS];
        multiply(isa, packed.panel(0, INPUTS), rows, INPUTS, &mut sums);
        std::hint::black_box(sums);
        (2 * ROWS * INPUTS * PANEL) as f64
    })
}
