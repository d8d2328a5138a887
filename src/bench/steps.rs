//! Steps of a bare model, with the engine's scheduler or without one.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    batching::{BLOCK_TOKENS, BlockId, Limits, Plan, Request, Scheduler, SequenceId},
    engine::local::{Chunk, CpuModel, LogitRows, Workspace},
};

/// A request: its prompt, and the length of its answer.
#[derive(Clone, Debug)]
pub(super) struct StepRequest {
    pub(super) prompt: Vec<u32>,
    pub(super) output_tokens: usize,
}

/// The token with the highest logit.
pub(super) fn likeliest(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(token, _)| token as u32)
}

/// Contiguous block tables for sequences of up to `tokens` tokens.
pub(super) fn tables(sequences: usize, tokens: usize) -> Vec<Vec<BlockId>> {
    let each = tokens.div_ceil(BLOCK_TOKENS) as u32;
    (0..sequences as u32)
        .map(|at| (at * each..(at + 1) * each).map(BlockId).collect())
        .collect()
}

/// A model with the engine's scheduler, stepped by the caller.
pub(super) struct Stepper<'a> {
    model: &'a CpuModel,
    workspace: Workspace,
    scheduler: Scheduler,
    /// Tokens left to generate.
    left: BTreeMap<SequenceId, usize>,
    began: Instant,
}

impl<'a> Stepper<'a> {
    pub(super) fn new(model: &'a CpuModel, limits: Limits) -> Self {
        Self {
            model,
            workspace: model.workspace(limits.kv_blocks),
            scheduler: Scheduler::new(limits),
            left: BTreeMap::new(),
            began: Instant::now(),
        }
    }

    /// Queues a request; `id` is its place in the order of arrival.
    pub(super) fn enqueue(&mut self, id: u64, line: &StepRequest) -> Result<(), String> {
        let request = Request {
            id: SequenceId(id),
            tokens: line.prompt.clone(),
            tokens_max: line.prompt.len() + line.output_tokens,
            scope: None,
            priority: Default::default(),
            due: None,
        };
        let now = self.began.elapsed();
        let refused = |refusal| format!("the scheduler refused request {id}: {refusal:?}");
        self.scheduler.enqueue(request, now).map_err(refused)?;
        self.left.insert(SequenceId(id), line.output_tokens);
        Ok(())
    }

    /// Computes one step; returns its plan and duration, or `None` when there is nothing to do.
    pub(super) fn step(&mut self) -> Result<Option<(Plan, Duration)>, String> {
        let begun = Instant::now();
        let plan = self.scheduler.plan(self.began.elapsed());
        if plan.shares.is_empty() {
            return Ok(None);
        }
        let mut chunks = Vec::with_capacity(plan.shares.len());
        for share in &plan.shares {
            let (tokens, blocks) = self
                .scheduler
                .chunk(share)
                .ok_or("a share has no sequence")?;
            let rows = if share.yields {
                LogitRows::Last
            } else {
                LogitRows::None
            };
            chunks.push(Chunk {
                tokens,
                from: share.from,
                blocks,
                rows,
            });
        }
        let logits = self.model.forward(&mut self.workspace, &chunks)?;
        let yielding = plan.shares.iter().filter(|share| share.yields);
        for (share, row) in yielding.zip(logits.rows()) {
            let token = likeliest(row);
            let left = self
                .left
                .get_mut(&share.id)
                .ok_or("a share has no request")?;
            *left -= 1;
            if *left == 0 {
                self.left.remove(&share.id);
                self.scheduler.leave(share.id);
            } else {
                self.scheduler.append(share.id, token);
            }
        }
        let took = begun.elapsed();
        self.scheduler.observe(&plan, took.as_secs_f64());
        Ok(Some((plan, took)))
    }
}

/// Serves requests with the engine's scheduler, up to `width` at once.
pub(super) fn continuous(
    model: &CpuModel,
    requests: &[StepRequest],
    width: usize,
) -> Result<(), String> {
    let longest = requests
        .iter()
        .map(|line| line.prompt.len() + line.output_tokens)
        .max();
    let limits = Limits {
        batch_max: width,
        waiting_max: requests.len(),
        step_tokens_max: 512,
        kv_blocks: (width + 1) * (longest.unwrap_or(0).div_ceil(BLOCK_TOKENS) + 2),
        step_seconds_max: None,
    };
    let mut stepper = Stepper::new(model, limits);
    for (id, request) in requests.iter().enumerate() {
        stepper.enqueue(id as u64, request)?;
    }
    while stepper.step()?.is_some() {}
    Ok(())
}

/// Serves one static batch: every prompt is padded to the longest, and all sequences run until the
/// longest answer has ended.
pub(super) fn padded(model: &CpuModel, batch: &[StepRequest]) -> Result<(), String> {
    let prompt_tokens = batch
        .iter()
        .map(|line| line.prompt.len())
        .max()
        .unwrap_or(0);
    let output_tokens = batch
        .iter()
        .map(|line| line.output_tokens)
        .max()
        .unwrap_or(0);
    let tables = tables(batch.len(), prompt_tokens + output_tokens);
    let mut workspace = model.workspace(tables.iter().map(Vec::len).sum());
    let mut inputs: Vec<Vec<u32>> = batch
        .iter()
        .map(|line| {
            let mut padded = vec![0; prompt_tokens - line.prompt.len()];
            padded.extend(&line.prompt);
            padded
        })
        .collect();
    let mut from = 0;
    for _ in 0..output_tokens {
        let chunks: Vec<Chunk<'_>> = inputs
            .iter()
            .zip(&tables)
            .map(|(tokens, blocks)| Chunk {
                tokens,
                from,
                blocks,
                rows: LogitRows::Last,
            })
            .collect();
        let logits = model.forward(&mut workspace, &chunks)?;
        from += inputs.first().map_or(0, Vec::len);
        inputs = logits.rows().map(|row| vec![likeliest(row)]).collect();
    }
    Ok(())
}
