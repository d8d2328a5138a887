//! `bench engine`: the in-process engine's steps against the machine's limits.

use std::{process::ExitCode, time::Instant};

use anyhow::anyhow;
use serde_json::{Value, json};

use crate::{
    batching::BLOCK_TOKENS,
    config::WeightKind,
    engine::local::{CpuModel, MachineLimits, Profile, StepPhase, open_device},
};

use super::{
    device::bench_device,
    load::open_model,
    report::{print, table},
    statistics::median,
    timing::{EngineBenchArgs, Speed},
};

/// One round's figures of one combination.
struct EngineRound {
    /// Prompt tokens per second, one prompt after the other.
    prefill: f64,
    /// Generated tokens per second, all sequences together.
    decode: f64,
    /// Seconds of a decode step over the least that the machine's limits allow.
    over_limit: f64,
    profile: Profile,
}

/// A combination of weights and concurrency.
struct EngineCase<'a> {
    kind: WeightKind,
    model: &'a CpuModel,
    sequences: usize,
    rounds: Vec<EngineRound>,
}

/// Runs `bench engine`.
pub(super) fn bench_engine(args: &EngineBenchArgs) -> anyhow::Result<ExitCode> {
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
    let mut cases: Vec<EngineCase<'_>> = Vec::new();
    for (kind, model, _) in &models {
        cases.extend(args.concurrency.iter().map(|sequences| EngineCase {
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
        bytes_per_second: median(limits.iter().map(|l| l.bytes_per_second)),
        f32_flops: median(limits.iter().map(|l| l.f32_flops)),
        bf16_flops: median(limits.iter().map(|l| l.bf16_flops)),
        q8_flops: median(limits.iter().map(|l| l.q8_flops)),
    };
    print(
        args.json,
        || as_json(args, &models, &cases, &limit),
        || as_text(args, &models, &cases, &limit),
    )
}

fn measure(
    args: &EngineBenchArgs,
    case: &EngineCase<'_>,
    limit: &MachineLimits,
) -> Result<EngineRound, String> {
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
    Ok(EngineRound {
        prefill,
        decode: case.sequences as f64 / step_seconds,
        over_limit: step_seconds / best_seconds,
        profile,
    })
}

/// The median of a figure over all rounds.
fn median_of(case: &EngineCase<'_>, figure: impl Fn(&EngineRound) -> f64) -> f64 {
    median(case.rounds.iter().map(figure))
}

/// Shares of a decode step's time.
fn shares(case: &EngineCase<'_>) -> Vec<(&'static str, f64)> {
    let spent = StepPhase::ALL.map(|(part, name)| {
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
    cases: &[EngineCase<'_>],
    limit: &MachineLimits,
) -> Value {
    let cases: Vec<Value> = cases
        .iter()
        .map(|case| {
            let mut line = json!({
                "weights": case.kind.to_string(),
                "concurrency": case.sequences,
                "prefill_tokens_per_second": median_of(case, |round| round.prefill),
                "decode_tokens_per_second": median_of(case, |round| round.decode),
                "step_over_limit": median_of(case, |round| round.over_limit),
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
    cases: &[EngineCase<'_>],
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
    let rows = cases.iter().map(|case| {
        [
            case.kind.to_string(),
            case.sequences.to_string(),
            format!("{:.0}", median_of(case, |round| round.prefill)),
            format!("{:.0}", median_of(case, |round| round.decode)),
            format!("{:.2}", median_of(case, |round| round.over_limit)),
        ]
    });
    lines.push(table(
        [
            "weights",
            "sequences",
            "prefill tokens/s",
            "decode tokens/s",
            "step / limit",
        ],
        rows,
    ));
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
