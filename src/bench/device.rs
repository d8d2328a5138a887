//! `bench engine --device`: the decoder on a GPU, against that GPU's memory bandwidth.

use std::{fs, process::ExitCode, time::Instant};

use anyhow::{Context, anyhow};
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use crate::{
    batching::BLOCK_TOKENS,
    config::WeightKind,
    engine::local::{GpuModel, ModelFiles},
};

use super::{
    report::{print, table},
    statistics::median,
    timing::{EngineBenchArgs, Speed},
};

/// Floats in the tensor copied to measure bandwidth; larger than any cache.
const FLOATS: usize = 64 << 20;
/// Copies per measurement.
const COPIES: usize = 8;

/// One combination's figures, one per round.
struct DeviceCase {
    kind: WeightKind,
    sequences: usize,
    prefill: Vec<f64>,
    decode: Vec<f64>,
    /// Share of the bandwidth at which weights, keys and values are read.
    of_bandwidth: Vec<f64>,
}

/// Measures every combination on an open device.
pub(super) fn bench_device(args: &EngineBenchArgs, device: &Device) -> anyhow::Result<ExitCode> {
    let (mut cases, mut bandwidths) = (Vec::new(), Vec::new());
    for kind in &args.weights {
        // One model at a time: the GPU's memory may not hold two.
        let mut model = open(args, *kind, device).map_err(|error| anyhow!(error))?;
        let mut own: Vec<DeviceCase> = args
            .concurrency
            .iter()
            .map(|sequences| DeviceCase {
                kind: *kind,
                sequences: *sequences,
                prefill: Vec::new(),
                decode: Vec::new(),
                of_bandwidth: Vec::new(),
            })
            .collect();
        for _ in 0..args.rounds {
            let bandwidth =
                bandwidth(device, FLOATS).context("cannot measure the memory bandwidth")?;
            for case in &mut own {
                measure(args, case, &mut model, bandwidth).map_err(|error| anyhow!(error))?;
            }
            bandwidths.push(bandwidth);
        }
        cases.extend(own);
    }
    let bandwidth = median(bandwidths);
    print(
        args.json,
        || as_json(args, &cases, bandwidth),
        || as_text(args, &cases, bandwidth),
    )
}

fn open(args: &EngineBenchArgs, kind: WeightKind, device: &Device) -> Result<GpuModel, String> {
    let most = args.concurrency.iter().max().copied().unwrap_or(1);
    // Open with the smallest cache first, to learn how many bytes a block takes.
    let blocks = most * args.steps(most, 1).blocks_each();
    let files = ModelFiles::Directory(args.model.clone());
    let opened = |kv_bytes_max| {
        if args.random_weights {
            let config = fs::read(args.model.join("config.json"))
                .map_err(|error| format!("cannot read config.json: {error}"))?;
            GpuModel::random(&config, kind, device, kv_bytes_max)
        } else {
            GpuModel::read(&files, 0, kind, device, kv_bytes_max)
        }
    };
    let model = opened(0)?;
    if model.kv_blocks() >= blocks {
        return Ok(model);
    }
    let bytes = blocks * model.kv_bytes_per_block();
    drop(model);
    opened(bytes)
}

fn measure(
    args: &EngineBenchArgs,
    case: &mut DeviceCase,
    model: &mut GpuModel,
    bandwidth: f64,
) -> Result<(), String> {
    let steps = args.steps(case.sequences, model.shape().vocabulary);
    // `forward` copies the logits to the host, so the step has finished when it returns.
    let Speed {
        prefill,
        step_seconds,
    } = steps.time(|chunks, _| model.forward(chunks).map(|_| ()))?;
    let context = args.prompt_tokens + args.output_tokens / 2;
    let kv = case.sequences * context * model.kv_bytes_per_block() / BLOCK_TOKENS;
    let bytes_per_weight = match case.kind {
        WeightKind::F32 => 4,
        WeightKind::Bf16 => 2,
        WeightKind::Q8 => 1,
    };
    let read = model.shape().parameters() * bytes_per_weight + kv as u64;
    case.prefill.push(prefill);
    case.decode.push(case.sequences as f64 / step_seconds);
    case.of_bandwidth
        .push(read as f64 / step_seconds / bandwidth);
    Ok(())
}

/// Bytes read and written per second by a plain copy.
fn bandwidth(device: &Device, floats: usize) -> candle_core::Result<f64> {
    let from = Tensor::zeros(floats, DType::F32, device)?;
    // The first call may load a kernel.
    from.affine(1.0, 0.0)?;
    device.synchronize()?;
    let begun = Instant::now();
    for _ in 0..COPIES {
        from.affine(1.0, 0.0)?;
    }
    device.synchronize()?;
    let bytes = COPIES * 2 * floats * size_of::<f32>();
    Ok(bytes as f64 / begun.elapsed().as_secs_f64())
}

fn median_of(figures: &[f64]) -> f64 {
    median(figures.iter().copied())
}

fn as_json(args: &EngineBenchArgs, cases: &[DeviceCase], bandwidth: f64) -> Value {
    let cases: Vec<Value> = cases
        .iter()
        .map(|case| {
            json!({
                "weights": case.kind.to_string(),
                "concurrency": case.sequences,
                "prefill_tokens_per_second": median_of(&case.prefill),
                "decode_tokens_per_second": median_of(&case.decode),
                "share_of_bandwidth": median_of(&case.of_bandwidth),
            })
        })
        .collect();
    json!({
        "model": args.model.display().to_string(),
        "device": args.device.to_string(),
        "prompt_tokens": args.prompt_tokens,
        "output_tokens": args.output_tokens,
        "rounds": args.rounds,
        "limits": {"bytes_per_second": bandwidth},
        "cases": cases,
    })
}

fn as_text(args: &EngineBenchArgs, cases: &[DeviceCase], bandwidth: f64) -> String {
    let rows = cases.iter().map(|case| {
        [
            case.kind.to_string(),
            case.sequences.to_string(),
            format!("{:.0}", median_of(&case.prefill)),
            format!("{:.0}", median_of(&case.decode)),
            format!("{:.0} %", 100.0 * median_of(&case.of_bandwidth)),
        ]
    });
    let header = [
        "weights",
        "sequences",
        "prefill tokens/s",
        "decode tokens/s",
        "of bandwidth",
    ];
    format!(
        "{}; memory {:.0} GB/s\n{}",
        args.device,
        bandwidth / 1e9,
        table(header, rows)
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::bench::device::*;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        args: EngineBenchArgs,
    }

    /// Runs the GPU code on candle's CPU device; every figure is a positive number.
    #[test]
    fn measures_every_combination_on_a_device() {
        let model = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/fixtures/models/tiny-llama"
        );
        let words =
            "bench --concurrency 1,3 --prompt-tokens 33 --output-tokens 2 --rounds 1 --model";
        let args = Alone::parse_from(words.split(' ').chain([model])).args;
        let mut opened =
            open(&args, WeightKind::F32, &Device::Cpu).expect("the fixture is a model");
        let bandwidth = bandwidth(&Device::Cpu, 1 << 16).expect("a copy");
        for sequences in [1, 3] {
            let mut case = DeviceCase {
                kind: WeightKind::F32,
                sequences,
                prefill: Vec::new(),
                decode: Vec::new(),
                of_bandwidth: Vec::new(),
            };
            measure(&args, &mut case, &mut opened, bandwidth).expect("computed");
            let figures = [&case.prefill, &case.decode, &case.of_bandwidth];
            assert!(
                figures
                    .iter()
                    .all(|figure| figure[0] > 0.0 && figure[0].is_finite())
            );
        }
    }
}
