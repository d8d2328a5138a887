//! `bench prefix`: the prefix cache's hit rate on a trace, against a plain least-recently-used cache,
//! and the time to first token that a cached prefix saves.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};

use anyhow::{anyhow, bail};
use clap::Args;
use serde_json::json;

use crate::{
    batching::BLOCK_TOKENS,
    config::WeightKind,
    engine::local::{Chunk, CpuModel, LogitRows},
};

use super::{
    affinity,
    load::{open_model, positive},
    report::{percent, print, table},
    statistics::{median, median_ratio},
    steps::tables,
    trace::{ReplayCache, TRACE_BLOCK, TraceRequest, read_trace},
};

/// Arguments of `bench prefix`.
#[derive(Debug, Args)]
pub struct PrefixBenchArgs {
    /// Trace of requests in Mooncake's format: JSON lines with input_length and hash_ids, one id per
    /// 512 tokens
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Capacities of the cache, in blocks of 512 tokens
    #[arg(long, value_delimiter = ',', default_value = "1000,10000", value_parser = positive)]
    blocks: Vec<usize>,
    /// Also replay the trace on this many workers, each with its own cache
    #[arg(long, default_value_t = 0)]
    workers: usize,
    /// Hugging Face directory of a model to measure the time to first token on; --random-weights needs
    /// only its config.json
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Weight format to compute in
    #[arg(long, default_value = "bf16")]
    weights: WeightKind,
    /// Use random weights, to measure a model's shape without its weights
    #[arg(long)]
    random_weights: bool,
    /// Tokens of the prompt whose prefix is cached
    #[arg(long, default_value = "640", value_parser = positive)]
    prompt_tokens: usize,
    /// Share of the prompt that is cached
    #[arg(long, default_value = "0.9")]
    shared: f64,
    /// Rounds, each measuring both; medians are reported
    #[arg(long, default_value = "5", value_parser = positive)]
    rounds: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Shares of all prompt tokens that were found.
struct HitRates {
    blocks: usize,
    ours: f64,
    plain: f64,
}

/// Runs `bench prefix`.
pub(super) fn bench_prefix(args: &PrefixBenchArgs) -> anyhow::Result<ExitCode> {
    if args.trace.is_none() && args.model.is_none() {
        bail!("name a --trace, a --model or both");
    }
    let trace = args.trace.as_deref().map(read_trace).transpose()?;
    let found = trace
        .as_deref()
        .map_or_else(Vec::new, |trace| replay(trace, &args.blocks));
    let shared = match (&trace, args.workers) {
        (Some(trace), 2..) => affinity::replay(trace, args.workers, &args.blocks),
        _ => Vec::new(),
    };
    let first_token = match &args.model {
        Some(folder) => {
            let model = open_model(
                folder,
                args.weights,
                args.random_weights,
                args.prompt_tokens,
            )?;
            Some(first_token(args, &model).map_err(|error| anyhow!(error))?)
        }
        None => None,
    };
    print(
        args.json,
        || {
            let rows: Vec<_> = found
                .iter()
                .map(|row| json!({"blocks": row.blocks, "found": row.ours, "found_by_plain_lru": row.plain}))
                .collect();
            let first_token = first_token.map(|(without, with, ratio)| {
                json!({
                    "without_ms": 1e3 * without,
                    "with_ms": 1e3 * with,
                    "with_over_without": ratio,
                    "prompt_tokens": args.prompt_tokens,
                    "shared": args.shared,
                })
            });
            let shared: Vec<_> = shared.iter().map(affinity::Sharing::to_json).collect();
            json!({"trace": rows, "workers": shared, "first_token": first_token})
        },
        || to_text(args, &found, &shared, first_token),
    )
}

fn to_text(
    args: &PrefixBenchArgs,
    found: &[HitRates],
    shared: &[affinity::Sharing],
    first_token: Option<(f64, f64, f64)>,
) -> String {
    let mut lines = Vec::new();
    if !found.is_empty() {
        let rows = found.iter().map(|row| {
            [
                row.blocks.to_string(),
                percent(row.ours),
                percent(row.plain),
            ]
        });
        lines.push(table(["blocks of 512", "tokens found", "plain LRU"], rows));
    }
    if !shared.is_empty() {
        lines.push(affinity::to_text(shared));
    }
    if let Some((without, with, ratio)) = first_token {
        lines.push(format!(
            "first token of {} prompt tokens: {:.1} ms, with {:.0} % found {:.1} ms, ratio {ratio:.3}",
            args.prompt_tokens,
            1e3 * without,
            100.0 * args.shared,
            1e3 * with,
        ));
    }
    lines.join("\n")
}

fn replay(requests: &[TraceRequest], capacities: &[usize]) -> Vec<HitRates> {
    let total: usize = requests.iter().map(|request| request.input_length).sum();
    let share = |tokens: usize| tokens as f64 / total.max(1) as f64;
    capacities
        .iter()
        .map(|blocks| HitRates {
            blocks: *blocks,
            ours: share(found_by_pool(requests, *blocks)),
            plain: share(found_by_plain_lru(requests, *blocks)),
        })
        .collect()
}

/// Replays the requests in order through the engine's block pool.
fn found_by_pool(requests: &[TraceRequest], blocks: usize) -> usize {
    let mut cache = ReplayCache::new(blocks);
    requests.iter().map(|request| cache.run(request)).sum()
}

/// Replays the requests through an LRU list of trace blocks; only blocks from the start of the prompt
/// count.
fn found_by_plain_lru(requests: &[TraceRequest], blocks: usize) -> usize {
    let mut last_use: HashMap<u64, u64> = HashMap::new();
    let mut by_use: BTreeMap<u64, u64> = BTreeMap::new();
    let (mut clock, mut found) = (0, 0);
    for request in requests {
        let hits = request
            .hash_ids
            .iter()
            .take_while(|id| last_use.contains_key(id))
            .count();
        found += (hits * TRACE_BLOCK).min(request.input_length);
        for id in &request.hash_ids {
            clock += 1;
            if let Some(before) = last_use.insert(*id, clock) {
                by_use.remove(&before);
            }
            by_use.insert(clock, *id);
            if last_use.len() > blocks
                && let Some((_, oldest)) = by_use.pop_first()
            {
                last_use.remove(&oldest);
            }
        }
    }
    found
}

/// Seconds to the first token without and with a cached prefix, and the median of their ratios.
fn first_token(args: &PrefixBenchArgs, model: &CpuModel) -> Result<(f64, f64, f64), String> {
    let vocabulary = model.shape().vocabulary as u32;
    let tokens: Vec<u32> = (0..args.prompt_tokens as u32)
        .map(|at| at * 7_919 % vocabulary)
        .collect();
    let blocks = tables(1, tokens.len()).remove(0);
    let mut workspace = model.workspace(blocks.len());
    let shared = (args.shared.clamp(0.0, 1.0) * tokens.len() as f64) as usize;
    let found = shared.min(tokens.len() - 1) / BLOCK_TOKENS * BLOCK_TOKENS;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        for (from, times) in [(0, &mut without), (found, &mut with)] {
            let chunk = Chunk {
                tokens: &tokens[from..],
                from,
                blocks: &blocks,
                rows: LogitRows::Last,
            };
            let begun = Instant::now();
            model.forward(&mut workspace, &[chunk])?;
            times.push(begun.elapsed().as_secs_f64());
        }
    }
    let ratio = median_ratio(&with, &without);
    Ok((median(without), median(with), ratio))
}
