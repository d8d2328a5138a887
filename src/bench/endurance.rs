//! `bench endurance`: resident memory of an engine while very many sequences pass through it.

use std::{fs, path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context, bail};
use clap::Args;
use futures::{StreamExt as _, stream};
use serde_json::json;

use crate::{
    config::{ModelConfig, WeightKind},
    console::options::say,
    engine::{self, Generate},
    job::{Message, Role, Sampling, Tier},
};

use super::engine::positive;

/// Arguments of `bench endurance`.
#[derive(Debug, Args)]
pub struct EnduranceBenchArgs {
    /// Hugging Face directory of the model; without one the bundled small model
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// What products are computed in
    #[arg(long, default_value = "bf16")]
    weights: WeightKind,
    /// Sequences in all
    #[arg(long, default_value = "100000", value_parser = positive)]
    sequences: usize,
    /// Tokens that each generates, at most
    #[arg(long, default_value = "4", value_parser = positive)]
    output_tokens: usize,
    /// Bytes that the KV cache may take; it is full, and so no longer growing, after as many tokens as fit
    #[arg(long, default_value = "67108864", value_parser = positive)]
    kv_bytes_max: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Looks at memory.
const LOOKS: usize = 10;

/// Runs `bench endurance`.
pub async fn bench_endurance(args: &EnduranceBenchArgs) -> anyhow::Result<ExitCode> {
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
    let mut looks = Vec::new();
    for look in 0..LOOKS {
        let ids = args.sequences * look / LOOKS..args.sequences * (look + 1) / LOOKS;
        let answers = stream::iter(ids).map(|id| engine.generate(request(id, args.output_tokens)));
        let failed = answers
            .buffer_unordered(engine.info().batch_max)
            .filter(|answer| std::future::ready(answer.is_err()))
            .count()
            .await;
        if failed > 0 {
            bail!("{failed} sequences failed");
        }
        looks.push(resident_bytes()?);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let growth = looks[LOOKS - 1] as f64 - looks[0] as f64;
    say(&if args.json {
        json!({
            "sequences": args.sequences,
            "seconds": seconds,
            "load_seconds": load_seconds,
            "kv_bytes_max": args.kv_bytes_max,
            "resident_bytes_before": before,
            "resident_bytes_loaded": loaded,
            "resident_bytes": looks,
        })
        .to_string()
    } else {
        let megabytes = |bytes: f64| bytes / 1e6;
        let series: Vec<String> = looks
            .iter()
            .map(|look| format!("{:.0}", megabytes(*look as f64)))
            .collect();
        format!(
            "loaded in {load_seconds:.2} s; resident {:.0} MB before and {:.0} MB after, KV cache at most {:.0} MB\n\
             {} sequences in {seconds:.1} s; resident after each tenth: {} MB\n\
             from the first tenth to the last: {:+.1} MB",
            megabytes(before as f64),
            megabytes(loaded as f64),
            megabytes(args.kv_bytes_max as f64),
            args.sequences,
            series.join(", "),
            megabytes(growth),
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Prompts of several lengths, no two alike.
fn request(id: usize, output_tokens: usize) -> Generate {
    let content = format!("{id}: {}", "and so on ".repeat(id % 5));
    Generate {
        messages: vec![Message {
            role: Role::User,
            content,
        }],
        sampling: Sampling {
            max_completion_tokens: output_tokens as u32,
            ..Sampling::default()
        },
        seed_default: 0,
        terms: Default::default(),
    }
}

/// What the system counts as this process's memory.
fn resident_bytes() -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")
        .context("resident memory is told by /proc, which only Linux has")?;
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
