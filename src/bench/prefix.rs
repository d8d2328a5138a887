//! `bench prefix`: what the prefix cache finds of a trace, beside a plain least-recently-used
//! cache, and what a found beginning saves until the first token.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use comfy_table::CellAlignment;
use serde::Deserialize;
use serde_json::json;

use crate::{
    batching::{BLOCK_TOKENS, BlockPool, PrefixHash},
    config::WeightKind,
    console::options::say,
    console::table::table,
    engine::local::{Chunk, CpuModel, Rows},
};

use super::{
    affinity,
    engine::{open_model, positive},
    median,
    steps::tables,
};

/// Arguments of `bench prefix`.
#[derive(Debug, Args)]
pub struct PrefixBenchArgs {
    /// Trace of requests as JSON lines with input_length and hash_ids, one id for each 512 tokens (Mooncake's format)
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Capacities of the cache, in blocks of 512 tokens
    #[arg(long, value_delimiter = ',', default_value = "1000,10000", value_parser = positive)]
    blocks: Vec<usize>,
    /// Share the trace out to so many workers as well, each with a cache of its own
    #[arg(long, default_value_t = 0)]
    workers: usize,
    /// Model to measure the time to the first token on; with --random-weights its config.json is enough
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// What products are computed in
    #[arg(long, default_value = "bf16")]
    weights: WeightKind,
    /// Weights by chance, for the speed of a shape without its weights
    #[arg(long)]
    random_weights: bool,
    /// Tokens of the prompt whose beginning is found
    #[arg(long, default_value = "640", value_parser = positive)]
    prompt_tokens: usize,
    /// Part of the prompt that is found
    #[arg(long, default_value = "0.9")]
    shared: f64,
    /// Rounds; both are measured in turn, and the medians reported
    #[arg(long, default_value = "5", value_parser = positive)]
    rounds: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A request of the trace.
#[derive(Deserialize)]
pub(super) struct Traced {
    /// When it came, in milliseconds.
    #[serde(default)]
    pub(super) timestamp: f64,
    pub(super) input_length: usize,
    pub(super) hash_ids: Vec<u64>,
}

/// Tokens that an id of the trace stands for.
pub(super) const TRACE_BLOCK: usize = 512;

/// Shares of tokens found, of all tokens asked for.
struct Found {
    blocks: usize,
    ours: f64,
    plain: f64,
}

/// Runs `bench prefix`.
pub fn bench_prefix(args: &PrefixBenchArgs) -> anyhow::Result<ExitCode> {
    if args.trace.is_none() && args.model.is_none() {
        bail!("name a --trace, a --model or both");
    }
    let trace = args.trace.as_deref().map(read_trace).transpose()?;
    let found = trace
        .as_deref()
        .map_or_else(Vec::new, |trace| replay(trace, &args.blocks));
    let shared = match (&trace, args.workers) {
        (Some(trace), 2..) => affinity::share_out(trace, args.workers, &args.blocks),
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
    if args.json {
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
        let shared: Vec<_> = shared.iter().map(affinity::Row::to_json).collect();
        say(&json!({"trace": rows, "workers": shared, "first_token": first_token}).to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines = Vec::new();
    if !found.is_empty() {
        let mut table = table(&["blocks of 512", "tokens found", "plain LRU"]);
        for row in &found {
            table.add_row([
                row.blocks.to_string(),
                format!("{:.1} %", 100.0 * row.ours),
                format!("{:.1} %", 100.0 * row.plain),
            ]);
        }
        for column in table.column_iter_mut() {
            column.set_cell_alignment(CellAlignment::Right);
        }
        lines.push(table.trim_fmt());
    }
    if !shared.is_empty() {
        lines.push(affinity::to_text(&shared));
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
    say(&lines.join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn read_trace(path: &Path) -> anyhow::Result<Vec<Traced>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut requests = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let request: Traced = serde_json::from_str(line)
            .with_context(|| format!("{}, line {}", path.display(), at + 1))?;
        requests.push(request);
    }
    anyhow::ensure!(!requests.is_empty(), "{} is empty", path.display());
    Ok(requests)
}

fn replay(requests: &[Traced], capacities: &[usize]) -> Vec<Found> {
    let asked: usize = requests.iter().map(|request| request.input_length).sum();
    let share = |tokens: usize| tokens as f64 / asked.max(1) as f64;
    capacities
        .iter()
        .map(|blocks| Found {
            blocks: *blocks,
            ours: share(found_by_pool(requests, *blocks)),
            plain: share(found_by_plain_lru(requests, *blocks)),
        })
        .collect()
}

/// One request after the other through the engine's own pool, in its own smaller blocks.
fn found_by_pool(requests: &[Traced], blocks: usize) -> usize {
    let mut cache = Cache::new(blocks);
    requests.iter().map(|request| cache.run(request)).sum()
}

/// The prefix cache of one worker: the engine's own pool, in its own smaller blocks.
pub(super) struct Cache(BlockPool);

impl Cache {
    /// An empty one of so many blocks of the trace.
    pub(super) fn new(blocks: usize) -> Self {
        Self(BlockPool::new(blocks * TRACE_BLOCK / BLOCK_TOKENS))
    }

    /// Runs a request by itself; returns the tokens of it that were found.
    pub(super) fn run(&mut self, request: &Traced) -> usize {
        let pool = &mut self.0;
        let mut found = 0;
        let mut prefix = PrefixHash::of_scope(&["trace"]);
        let (mut held, mut is_found) = (Vec::new(), true);
        // The last token is always computed, so its block is none that can be found.
        for at in 0..request.input_length.saturating_sub(1) / BLOCK_TOKENS {
            let id = request
                .hash_ids
                .get(at * BLOCK_TOKENS / TRACE_BLOCK)
                .copied();
            // Tokens that no other id and no other part of this one has.
            let part = (at % (TRACE_BLOCK / BLOCK_TOKENS)) as u32;
            let mut tokens = [part; BLOCK_TOKENS];
            let id = id.unwrap_or_default();
            (tokens[0], tokens[1]) = (id as u32, (id >> 32) as u32);
            prefix = prefix.then(&tokens);
            // Only what is found from the beginning on counts.
            if is_found && let Some(block) = pool.reuse(prefix, &tokens) {
                found += BLOCK_TOKENS;
                held.push(block);
                continue;
            }
            is_found = false;
            let Some(block) = pool.take() else { break };
            pool.note(block, prefix, &tokens);
            held.push(block);
        }
        held.into_iter().rev().for_each(|block| pool.release(block));
        found
    }
}

/// The trace's blocks in a list by last use: what is found must be found from the beginning on.
fn found_by_plain_lru(requests: &[Traced], blocks: usize) -> usize {
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

/// Seconds to the first token without and with a found beginning, and the median of their ratios.
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
                rows: Rows::Last,
            };
            let begun = Instant::now();
            model.forward(&mut workspace, &[chunk])?;
            times.push(begun.elapsed().as_secs_f64());
        }
    }
    let ratio = median(
        with.iter()
            .zip(&without)
            .map(|(with, without)| with / without)
            .collect(),
    );
    Ok((median(without), median(with), ratio))
}
