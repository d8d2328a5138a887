//! Timing of prefill and decode steps, on any device.

use std::{path::PathBuf, time::Instant};

use clap::Args;

use crate::{
    batching::{BLOCK_TOKENS, BlockId},
    config::{DeviceKind, WeightKind},
    engine::local::{Chunk, LogitRows},
};

use super::load::positive;

/// Arguments of `bench engine`.
#[derive(Debug, Args)]
pub struct EngineBenchArgs {
    /// Hugging Face directory of the model; --random-weights needs only its config.json
    #[arg(long, value_name = "DIR")]
    pub(super) model: PathBuf,
    /// Weight formats to compute in: f32, bf16, q8
    #[arg(long, value_delimiter = ',', default_value = "f32")]
    pub(super) weights: Vec<WeightKind>,
    /// Numbers of sequences that decode together
    #[arg(long, value_delimiter = ',', default_value = "1,8,32", value_parser = positive)]
    pub(super) concurrency: Vec<usize>,
    /// Tokens per prompt
    #[arg(long, default_value = "128", value_parser = positive)]
    pub(super) prompt_tokens: usize,
    /// Tokens to generate per prompt
    #[arg(long, default_value = "64", value_parser = positive)]
    pub(super) output_tokens: usize,
    /// Rounds over all combinations; medians are reported
    #[arg(long, default_value = "5", value_parser = positive)]
    pub(super) rounds: usize,
    /// Use random weights, to measure a model's shape without its weights
    #[arg(long)]
    pub(super) random_weights: bool,
    /// Device: cpu, or cuda or metal if the binary is built for it
    #[arg(long, default_value = "cpu")]
    pub(super) device: DeviceKind,
    /// Show how the time of a decode step divides (CPU only)
    #[arg(long)]
    pub(super) profile: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl EngineBenchArgs {
    /// The steps for a number of sequences.
    pub(super) fn steps(&self, sequences: usize, vocabulary: usize) -> StepPlan {
        StepPlan {
            sequences,
            prompt_tokens: self.prompt_tokens,
            output_tokens: self.output_tokens,
            vocabulary,
        }
    }
}

/// The speed of one round of steps.
pub(super) struct Speed {
    /// Prompt tokens per second, one prompt after the other.
    pub(super) prefill: f64,
    /// Seconds per step in which every sequence decodes one token.
    pub(super) step_seconds: f64,
}

/// The steps to time.
pub(super) struct StepPlan {
    pub(super) sequences: usize,
    pub(super) prompt_tokens: usize,
    pub(super) output_tokens: usize,
    pub(super) vocabulary: usize,
}

impl StepPlan {
    /// KV cache blocks per sequence.
    pub(super) fn blocks_each(&self) -> usize {
        (self.prompt_tokens + self.output_tokens).div_ceil(BLOCK_TOKENS)
    }

    /// Computes the prompts one after the other, then decodes all sequences together. `forward`
    /// computes one step; its flag says whether it is a decode step.
    pub(super) fn time(
        &self,
        mut forward: impl FnMut(&[Chunk<'_>], bool) -> Result<(), String>,
    ) -> Result<Speed, String> {
        let token = |at: usize| ((at * 7_919 + 13) % self.vocabulary) as u32;
        let table: Vec<BlockId> = (0..(self.sequences * self.blocks_each()) as u32)
            .map(BlockId)
            .collect();
        let tables = || table.chunks(self.blocks_each());
        let begun = Instant::now();
        for (sequence, blocks) in tables().enumerate() {
            let tokens: Vec<u32> = (0..self.prompt_tokens)
                .map(|at| token(sequence * self.prompt_tokens + at))
                .collect();
            let chunk = Chunk {
                tokens: &tokens,
                from: 0,
                blocks,
                rows: LogitRows::Last,
            };
            forward(&[chunk], false)?;
        }
        let prompts = (self.sequences * self.prompt_tokens) as f64;
        let prefill = prompts / begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        for step in 0..self.output_tokens {
            let tokens: Vec<u32> = (0..self.sequences)
                .map(|at| token(step + 31 * at))
                .collect();
            let chunks: Vec<Chunk<'_>> = tables()
                .zip(tokens.chunks(1))
                .map(|(blocks, tokens)| Chunk {
                    tokens,
                    from: self.prompt_tokens + step,
                    blocks,
                    rows: LogitRows::Last,
                })
                .collect();
            forward(&chunks, true)?;
        }
        Ok(Speed {
            prefill,
            step_seconds: begun.elapsed().as_secs_f64() / self.output_tokens as f64,
        })
    }
}
