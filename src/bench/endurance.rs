//! `bench endurance`: resident memory of an engine while many sequences pass through it.

use std::{fs, path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context, bail};
use clap::Args;
use futures::{StreamExt as _, stream};
use serde_json::json;

use crate::{
    config::{ModelConfig, WeightKind},
    engine::{self, Generate},
    job::Tier,
};

use super::{
    load::{self, positive},
    report::print,
};

/// Arguments of `bench endurance`.
#[derive(Debug, Args)]
pub struct EnduranceBenchArgs {
    /// Hugging Face directory of the model [default: the bundled small model]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Weight format to compute in
    #[arg(long, default_value = "bf16")]
    weights: WeightKind,
    /// Number of sequences
    #[arg(long, default_value = "100000", value_parser = positive)]
    sequences: usize,
    /// Most tokens to generate per sequence
    #[arg(long, default_value = "4", value_parser = positive)]
    output_tokens: usize,
    /// Size limit of the KV cache in bytes
    #[arg(long, default_value = "67108864", value_parser = positive)]
    kv_bytes_max: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Memory samples.
const SAMPLES: usize = 10;

/// Runs `bench endurance`.
pub(super) async fn bench_endurance(args: &EnduranceBenchArgs) -> anyhow::Result<ExitCode> {
    let before = resident_bytes()?;
    let begun = Instant::now();
    let config = ModelConfig {
        model: args
            .model
            .as_ref()
            .map(|folder| folder.display().to_string()),
        weights: args.weights,
        kv_bytes_max: args.kv_bytes_max,
        batch_max: 32,
        ..ModelConfig::default()
    };
    let engine = engine::open(Tier::Small, &config).await?;
    let load_seconds = begun.elapsed().as_secs_f64();
    let loaded = resident_bytes()?;
    let begun = Instant::now();
    let mut samples = Vec::new();
    for sample in 0..SAMPLES {
        let ids = args.sequences * sample / SAMPLES..args.sequences * (sample + 1) / SAMPLES;
        let answers = stream::iter(ids).map(|id| engine.generate(request(id, args.output_tokens)));
        let failed = answers
            .buffer_unordered(engine.info().batch_max)
            .filter(|answer| std::future::ready(answer.is_err()))
            .count()
            .await;
        if failed > 0 {
            bail!("{failed} sequences failed");
        }
        samples.push(resident_bytes()?);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let growth = samples[SAMPLES - 1] as f64 - samples[0] as f64;
    let json = || {
        json!({
            "sequences": args.sequences,
            "seconds": seconds,
            "load_seconds": load_seconds,
            "kv_bytes_max": args.kv_bytes_max,
            "resident_bytes_before": before,
            "resident_bytes_loaded": loaded,
            "resident_bytes": samples,
        })
    };
    let text = || {
        let megabytes = |bytes: f64| bytes / 1e6;
        let series: Vec<String> = samples
            .iter()
            .map(|sample| format!("{:.0}", megabytes(*sample as f64)))
            .collect();
        format!(
            "loaded in {load_seconds:.2} s; resident {:.0} MB before and {:.0} MB after, KV cache at most {:.0} MB\n\
             {} sequences in {seconds:.1} s; resident after each tenth: {} MB\n\
             growth from the first tenth to the last: {:+.1} MB",
            megabytes(before as f64),
            megabytes(loaded as f64),
            megabytes(args.kv_bytes_max as f64),
            args.sequences,
            series.join(", "),
            megabytes(growth),
        )
    };
    print(args.json, json, text)
}

/// Distinct prompts of several lengths.
fn request(id: usize, output_tokens: usize) -> Generate {
    let content = format!("{id}: {}", "and so on ".repeat(id % 5));
    load::request(content, output_tokens)
}

/// Resident memory of this process in bytes.
fn resident_bytes() -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")
        .context("cannot read resident memory; this needs Linux")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| {
        line.trim()
            .trim_end_matches("kB")
            .trim()
            .parse::<u64>()
            .ok()
    });
    Ok(1024 * kilobytes.context("/proc/self/status has no VmRSS in kB")?)
}
