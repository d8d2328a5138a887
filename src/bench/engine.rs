//! `bench engine`: the in-process engine's steps beside what the machine could do at best.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use comfy_table::CellAlignment;
use serde_json::{Value, json};

use crate::{
    batching::{BLOCK_TOKENS, BlockId},
    config::{DeviceKind, WeightKind},
    console::options::say,
    console::table::table,
    engine::local::{Chunk, CpuModel, MachineLimits, ModelFiles, Part, Profile, Rows, open_device},
};

use super::{device::bench_device, median};

/// Arguments of `bench engine`.
#[derive(Debug, Args)]
pub struct EngineBenchArgs {
    /// Hugging Face directory of the model; with --random-weights its config.json is enough
    #[arg(long, value_name = "DIR")]
    pub(super) model: PathBuf,
    /// What products are computed in: f32, bf16, q8 (several: f32,bf16)
    #[arg(long, value_delimiter = ',', default_value = "f32")]
    pub(super) weights: Vec<WeightKind>,
    /// Sequences that decode side by side
    #[arg(long, value_delimiter = ',', default_value = "1,8,32", value_parser = positive)]
    pub(super) concurrency: Vec<usize>,
    /// Tokens of each prompt
    #[arg(long, default_value = "128", value_parser = positive)]
    pub(super) prompt_tokens: usize,
    /// Tokens generated for each prompt
    #[arg(long, default_value = "64", value_parser = positive)]
    pub(super) output_tokens: usize,
    /// Rounds; all combinations are measured in turn, and the medians reported
    #[arg(long, default_value = "5", value_parser = positive)]
    pub(super) rounds: usize,
    /// Weights by chance, for the speed of a shape without its weights
    #[arg(long)]
    pub(super) random_weights: bool,
    /// Where to compute: cpu, or cuda and metal in a binary built for them
    #[arg(long, default_value = "cpu")]
    pub(super) device: DeviceKind,
    /// Tell where a decoding step's time goes (on the CPU)
    #[arg(long)]
    profile: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("expected a whole number from 1".to_owned()),
    }
}

impl EngineBenchArgs {
    pub(super) fn steps(&self, sequences: usize, vocabulary: usize) -> Steps {
        Steps {
            sequences,
            prompt_tokens: self.prompt_tokens,
            output_tokens: self.output_tokens,
            vocabulary,
        }
    }
}

/// One round's figures of one combination.
struct Round {
    /// Prompt tokens in a second, one prompt after the other.
    prefill: f64,
    /// Generated tokens in a second, all sequences together.
    decode: f64,
    /// Seconds of a decoding step over the seconds that the machine's limits allow it.
    over_limit: f64,
    profile: Profile,
}

/// A combination of weights and concurrency.
struct Case<'a> {
    kind: WeightKind,
    model: &'a CpuModel,
    sequences: usize,
    rounds: Vec<Round>,
}

/// Runs `bench engine`.
pub fn bench_engine(args: &EngineBenchArgs) -> anyhow::Result<ExitCode> {
    let device = open_device(args.device).map_err(|error| anyhow!(error))?;
    if let Some(device) = device {
        return bench_device(args, &device);
    }
    let mut models = Vec::new();
    for kind in &args.weights {
        let begun = Instant::now();
        let wanted = args.prompt_tokens + args.output_tokens;
        let model = open_model(&args.model, *kind, args.random_weights, wanted)?;
        models.push((*kind, model, begun.elapsed().as_secs_f64()));
    }
    let mut cases: Vec<Case<'_>> = Vec::new();
    for (kind, model, _) in &models {
        cases.extend(args.concurrency.iter().map(|sequences| Case {
            kind: *kind,
            model,
            sequences: *sequences,
            rounds: Vec::new(),
        }));
    }
    let mut limits = Vec::new();
    for _ in 0..args.rounds {
        let limit = MachineLimits::measure();
        for case in &mut cases {
            let round = measure(args, case, &limit).map_err(|error| anyhow!(error))?;
            case.rounds.push(round);
        }
        limits.push(limit);
    }
    let limit = MachineLimits {
        bytes_per_second: median(limits.iter().map(|l| l.bytes_per_second).collect()),
        f32_flops: median(limits.iter().map(|l| l.f32_flops).collect()),
        bf16_flops: median(limits.iter().map(|l| l.bf16_flops).collect()),
        q8_flops: median(limits.iter().map(|l| l.q8_flops).collect()),
    };
    if args.json {
        say(&as_json(args, &models, &cases, &limit).to_string())?;
    } else {
        say(&as_text(args, &models, &cases, &limit))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Opens a model, or makes one by chance of the shape that its config.json tells, for contexts of up
/// to `tokens`.
pub(super) fn open_model(
    folder: &Path,
    kind: WeightKind,
    is_random: bool,
    tokens: usize,
) -> anyhow::Result<CpuModel> {
    let model = if is_random {
        let path = folder.join("config.json");
        let config = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        CpuModel::random(&config, kind)
    } else {
        CpuModel::read(&ModelFiles::ModelRegistry(folder.to_owned()), 0, kind)
    };
    let model = model.map_err(|error| anyhow!("cannot open {}: {error}", folder.display()))?;
    let most = model.context_tokens();
    if tokens > most {
        bail!("prompt and output have up to {tokens} tokens together; the model takes {most}");
    }
    Ok(model)
}

/// What a round of steps took.
pub(super) struct Speed {
    /// Prompt tokens in a second, one prompt after the other.
    pub(super) prefill: f64,
    /// Seconds of a step in which every sequence decodes.
    pub(super) step_seconds: f64,
}

/// Which steps are timed.
pub(super) struct Steps {
    pub(super) sequences: usize,
    pub(super) prompt_tokens: usize,
    pub(super) output_tokens: usize,
    pub(super) vocabulary: usize,
}

impl Steps {
    /// Blocks of KV cache that each sequence needs.
    pub(super) fn blocks_each(&self) -> usize {
        (self.prompt_tokens + self.output_tokens).div_ceil(BLOCK_TOKENS)
    }

    /// Prompts one after the other, then all sequences decoding side by side; `forward` computes a
    /// step and is told whether it is one of the latter.
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
                rows: Rows::Last,
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
                    rows: Rows::Last,
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

fn measure(
    args: &EngineBenchArgs,
    case: &Case<'_>,
    limit: &MachineLimits,
) -> Result<Round, String> {
    let model = case.model;
    let steps = args.steps(case.sequences, model.shape().vocabulary);
    let mut workspace = model.workspace(case.sequences * steps.blocks_each());
    let mut profile = Profile::default();
    let Speed {
        prefill,
        step_seconds,
    } = steps.time(|chunks, decodes| {
        let profile = (args.profile && decodes).then_some(&mut profile);
        model.forward_profiled(&mut workspace, chunks, profile)?;
        Ok(())
    })?;
    let context = args.prompt_tokens + args.output_tokens / 2;
    let flops = (case.sequences * model.flops_per_token(context)) as f64;
    let peak = match case.kind {
        WeightKind::F32 => limit.f32_flops,
        WeightKind::Bf16 => limit.bf16_flops,
        WeightKind::Q8 => limit.q8_flops,
    };
    let kv = case.sequences * context * model.kv_bytes_per_block() / BLOCK_TOKENS;
    let read = model.product_bytes() + kv;
    let best_seconds = (flops / peak).max(read as f64 / limit.bytes_per_second);
    Ok(Round {
        prefill,
        decode: case.sequences as f64 / step_seconds,
        over_limit: step_seconds / best_seconds,
        profile,
    })
}

fn middle(case: &Case<'_>, figure: impl Fn(&Round) -> f64) -> f64 {
    median(case.rounds.iter().map(figure).collect())
}

/// Shares of a decoding step's time.
fn shares(case: &Case<'_>) -> Vec<(&'static str, f64)> {
    let spent = Part::ALL.map(|(part, name)| {
        let seconds = case
            .rounds
            .iter()
            .map(|round| round.profile.spent(part).as_secs_f64());
        (name, seconds.sum::<f64>())
    });
    let whole: f64 = spent.iter().map(|(_, seconds)| seconds).sum();
    spent
        .map(|(name, seconds)| (name, seconds / whole))
        .to_vec()
}

fn as_json(
    args: &EngineBenchArgs,
    models: &[(WeightKind, CpuModel, f64)],
    cases: &[Case<'_>],
    limit: &MachineLimits,
) -> Value {
    let cases: Vec<Value> = cases
        .iter()
        .map(|case| {
            let mut line = json!({
                "weights": case.kind.to_string(),
                "concurrency": case.sequences,
                "prefill_tokens_per_second": middle(case, |round| round.prefill),
                "decode_tokens_per_second": middle(case, |round| round.decode),
                "step_over_limit": middle(case, |round| round.over_limit),
            });
            if args.profile {
                line["profile"] = shares(case).into_iter().collect();
            }
            line
        })
        .collect();
    let models: Vec<Value> = models
        .iter()
        .map(|(kind, model, seconds)| {
            json!({
                "weights": kind.to_string(),
                "weight_bytes": model.weight_bytes(),
                "kv_bytes_per_token": model.kv_bytes_per_block() / BLOCK_TOKENS,
                "flops_per_token": model.flops_per_token(0),
                "load_seconds": seconds,
            })
        })
        .collect();
    json!({
        "model": args.model.display().to_string(),
        "threads": rayon::current_num_threads(),
        "prompt_tokens": args.prompt_tokens,
        "output_tokens": args.output_tokens,
        "rounds": args.rounds,
        "limits": {
            "bytes_per_second": limit.bytes_per_second,
            "f32_flops": limit.f32_flops,
            "bf16_flops": limit.bf16_flops,
            "q8_flops": limit.q8_flops,
        },
        "models": models,
        "cases": cases,
    })
}

fn as_text(
    args: &EngineBenchArgs,
    models: &[(WeightKind, CpuModel, f64)],
    cases: &[Case<'_>],
    limit: &MachineLimits,
) -> String {
    let mut lines = vec![format!(
        "{} threads; memory {:.1} GB/s, f32 {:.0} GFLOP/s, bf16 {:.0} GFLOP/s, q8 {:.0} Gop/s",
        rayon::current_num_threads(),
        limit.bytes_per_second / 1e9,
        limit.f32_flops / 1e9,
        limit.bf16_flops / 1e9,
        limit.q8_flops / 1e9,
    )];
    lines.extend(models.iter().map(|(kind, model, seconds)| {
        format!(
            "{kind}: {:.1} MB of weights, ready after {seconds:.2} s",
            model.weight_bytes() as f64 / 1e6
        )
    }));
    let mut table = table(&[
        "weights",
        "sequences",
        "prefill tokens/s",
        "decode tokens/s",
        "step / limit",
    ]);
    for case in cases {
        table.add_row([
            case.kind.to_string(),
            case.sequences.to_string(),
            format!("{:.0}", middle(case, |round| round.prefill)),
            format!("{:.0}", middle(case, |round| round.decode)),
            format!("{:.2}", middle(case, |round| round.over_limit)),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    lines.push(table.trim_fmt());
    if args.profile {
        for case in cases {
            let parts: Vec<String> = shares(case)
                .into_iter()
                .map(|(name, share)| format!("{name} {:.0} %", 100.0 * share))
                .collect();
            lines.push(format!(
                "{} × {}: {}",
                case.kind,
                case.sequences,
                parts.join(", ")
            ));
        }
    }
    lines.join("\n")
}
