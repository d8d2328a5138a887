//! Traces of requests, and a prefix cache that replays them.

use std::path::Path;

use serde::Deserialize;

use crate::{
    batching::{BLOCK_TOKENS, BlockPool, PrefixHash},
    console::jsonl::read_lines,
};

/// A request of a trace.
#[derive(Deserialize)]
pub(super) struct TraceRequest {
    /// Arrival time in milliseconds.
    #[serde(default)]
    pub(super) timestamp: f64,
    pub(super) input_length: usize,
    pub(super) hash_ids: Vec<u64>,
}

/// Tokens per id of `hash_ids`.
pub(super) const TRACE_BLOCK: usize = 512;

/// Reads a trace of JSON lines.
pub(super) fn read_trace(path: &Path) -> anyhow::Result<Vec<TraceRequest>> {
    let mut requests = Vec::new();
    read_lines(path, "input_length and hash_ids", |request| {
        requests.push(request);
        Ok(())
    })?;
    anyhow::ensure!(!requests.is_empty(), "{} is empty", path.display());
    Ok(requests)
}

/// One worker's prefix cache: the engine's block pool, with its smaller blocks.
pub(super) struct ReplayCache(BlockPool);

impl ReplayCache {
    /// An empty cache of `blocks` trace blocks.
    pub(super) fn new(blocks: usize) -> Self {
        Self(BlockPool::new(blocks * TRACE_BLOCK / BLOCK_TOKENS))
    }

    /// Replays a request; returns how many of its tokens were found.
    pub(super) fn run(&mut self, request: &TraceRequest) -> usize {
        let pool = &mut self.0;
        let mut found = 0;
        let mut prefix = PrefixHash::of_scope(&["trace"]);
        let (mut used, mut is_found) = (Vec::new(), true);
        // The last token is always computed, so its block is never found.
        for at in 0..request.input_length.saturating_sub(1) / BLOCK_TOKENS {
            let id = request
                .hash_ids
                .get(at * BLOCK_TOKENS / TRACE_BLOCK)
                .copied();
            // Tokens unique to this part of this id.
            let part = (at % (TRACE_BLOCK / BLOCK_TOKENS)) as u32;
            let mut tokens = [part; BLOCK_TOKENS];
            let id = id.unwrap_or_default();
            (tokens[0], tokens[1]) = (id as u32, (id >> 32) as u32);
            prefix = prefix.then(&tokens);
            // Only blocks found from the start of the prompt count.
            if is_found && let Some(block) = pool.reuse(prefix, &tokens) {
                found += BLOCK_TOKENS;
                used.push(block);
                continue;
            }
            is_found = false;
            let Some(block) = pool.take() else { break };
            pool.record(block, prefix, &tokens);
            used.push(block);
        }
        used.into_iter().rev().for_each(|block| pool.release(block));
        found
    }
}
