//! The engine's thread: it alone owns the model, the KV caches and the scheduler.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{Receiver, TryRecvError},
    time::Instant,
};

use metrics::{counter, gauge, histogram};

use super::{
    attention::KvCache,
    model::{CandleModel, Chunk, Logits, Rows},
    sequence::{Reply, Sequence, Writer},
};
use crate::{
    batching::{Limits, Plan, Refusal, Request, Scheduler, SequenceId},
    engine::{EngineFault, EngineInfo, Generate, admission::queue_full},
    job::{FinishReason, Tier},
    metrics::{ENGINE_STEPS, ENGINE_WAITING, STEP_SECONDS, STEP_SEQUENCES},
    prompt::{ChatTemplate, PromptFault, Vocabulary},
};

/// All that is told of a panic: its message may quote a prompt.
const PANIC: &str = "panic in the engine";

/// What computes steps; a test puts something that fails in its place.
pub(super) trait Forward: Send + 'static {
    fn new_cache(&self, tokens: usize) -> KvCache;
    fn forward(&self, chunks: &mut [Chunk<'_>]) -> Result<Logits, String>;
}

impl Forward for CandleModel {
    fn new_cache(&self, tokens: usize) -> KvCache {
        Self::new_cache(self, tokens)
    }

    fn forward(&self, chunks: &mut [Chunk<'_>]) -> Result<Logits, String> {
        Self::forward(self, chunks)
    }
}

/// A request on its way to the thread.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) request: Generate,
    pub(super) reply: Reply,
}

/// What a model's texts are made with.
#[derive(Debug)]
pub(super) struct Language {
    pub(super) template: ChatTemplate,
    pub(super) vocabulary: Vocabulary,
    /// Tokens that end an answer.
    pub(super) eos: Vec<u32>,
}

/// All that the thread owns.
pub(super) struct Runner<M> {
    model: M,
    language: Language,
    info: EngineInfo,
    context_tokens: usize,
    tier: Tier,
    limits: Limits,
    requests: Receiver<Ticket>,
    scheduler: Scheduler,
    sequences: BTreeMap<SequenceId, Sequence<KvCache>>,
    next_id: u64,
}

impl<M: Forward> Runner<M> {
    pub(super) fn new(
        model: M,
        language: Language,
        info: EngineInfo,
        tier: Tier,
        limits: Limits,
        requests: Receiver<Ticket>,
    ) -> Self {
        Self {
            model,
            language,
            context_tokens: info.context_tokens.unwrap_or(limits.kv_tokens_max),
            info,
            tier,
            limits,
            requests,
            scheduler: Scheduler::new(limits),
            sequences: BTreeMap::new(),
            next_id: 0,
        }
    }

    /// Runs until the engine is closed.
    pub(super) fn run(mut self) {
        while self.receive() {
            let step = catch_unwind(AssertUnwindSafe(|| self.step()));
            let fault = match step {
                Ok(Ok(())) => continue,
                Ok(Err(fault)) => fault,
                Err(_) => PANIC.to_owned(),
            };
            tracing::error!(model.name = %self.info.model, tier = %self.tier, "an engine step failed: {fault}");
            self.rebuild(&fault);
        }
        for (_, sequence) in std::mem::take(&mut self.sequences) {
            sequence.fail(EngineFault::Closed);
        }
    }

    /// Takes new requests while there is room; waits for one when there is nothing else to do.
    /// False once the engine is closed.
    fn receive(&mut self) -> bool {
        while self.scheduler.has_room() {
            let ticket = if self.scheduler.is_idle() {
                gauge!(ENGINE_WAITING, "tier" => self.tier.as_str()).set(0.0);
                self.requests.recv().map_err(|_| TryRecvError::Disconnected)
            } else {
                self.requests.try_recv()
            };
            match ticket {
                Ok(ticket) => self.enter(ticket),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        true
    }

    /// Makes a request a waiting sequence, or answers at once why it cannot be one.
    fn enter(&mut self, Ticket { request, reply }: Ticket) {
        if reply.is_closed() {
            return;
        }
        let prompt = catch_unwind(AssertUnwindSafe(|| self.language.prompt(&request)))
            .unwrap_or_else(|_| Err(EngineFault::Crashed(PANIC.to_owned())))
            .and_then(|prompt| {
                self.completion_tokens_max(&request, prompt.len())
                    .map(|max| (prompt, max))
            });
        let (prompt, completion_tokens_max) = match prompt {
            Ok(prompt) => prompt,
            Err(fault) => {
                let _ = reply.send(Err(fault));
                return;
            }
        };
        let stop = request
            .sampling
            .stop
            .iter()
            .filter(|stop| !stop.is_empty())
            .cloned()
            .collect();
        let writer = Writer::new(stop, self.language.eos.clone(), completion_tokens_max);
        let sequence = Sequence::new(&request, prompt, writer, reply);
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.wait(id, sequence);
    }

    fn wait(&mut self, id: SequenceId, sequence: Sequence<KvCache>) {
        let request = Request {
            id,
            prompt_tokens: sequence.prompt_tokens,
            tokens_max: sequence.tokens_max(),
        };
        match self.scheduler.enqueue(request) {
            Ok(()) => {
                self.sequences.insert(id, sequence);
            }
            Err(Refusal::QueueFull) => sequence.fail(queue_full()),
            Err(Refusal::NeverFits) => sequence.fail(EngineFault::Unservable(format!(
                "{} tokens; at most {} fit the KV cache",
                request.tokens_max, self.limits.kv_tokens_max
            ))),
        }
    }

    fn completion_tokens_max(
        &self,
        request: &Generate,
        prompt_tokens: usize,
    ) -> Result<usize, EngineFault> {
        if prompt_tokens == 0 {
            return Err(EngineFault::Unservable(
                "the prompt has no token".to_owned(),
            ));
        }
        if prompt_tokens >= self.context_tokens {
            return Err(EngineFault::ContextTooLong {
                model: self.info.model.clone(),
                prompt_tokens,
                context_tokens: self.context_tokens,
            });
        }
        match request.sampling.max_completion_tokens as usize {
            0 => Err(EngineFault::Unservable(
                "at least one token must be asked for".to_owned(),
            )),
            most => Ok(most.min(self.context_tokens - prompt_tokens)),
        }
    }

    /// Plans and computes one step and hands out the answers that it finishes.
    fn step(&mut self) -> Result<(), String> {
        self.drop_unwanted();
        let plan = self.scheduler.plan();
        gauge!(ENGINE_WAITING, "tier" => self.tier.as_str()).set(self.scheduler.waiting() as f64);
        if plan.shares.is_empty() {
            return Ok(());
        }
        for id in &plan.admitted {
            if let Some(sequence) = self.sequences.get_mut(id) {
                sequence.start(self.model.new_cache(sequence.tokens_max()));
            }
        }
        let began = Instant::now();
        let logits = self.forward(&plan)?;
        let tier = self.tier.as_str();
        counter!(ENGINE_STEPS, "tier" => tier).increment(1);
        histogram!(STEP_SECONDS, "tier" => tier).record(began.elapsed());
        histogram!(STEP_SEQUENCES, "tier" => tier).record(plan.shares.len() as f64);
        let yielding = plan.shares.iter().filter(|share| share.yields);
        for (share, row) in yielding.zip(logits.rows()) {
            self.take(share.id, row);
        }
        Ok(())
    }

    fn forward(&mut self, plan: &Plan) -> Result<Logits, String> {
        // Sequences lend their caches in the plan's order, which is not the map's.
        let mut lent: BTreeMap<SequenceId, &mut Sequence<KvCache>> = self
            .sequences
            .iter_mut()
            .map(|(id, sequence)| (*id, sequence))
            .collect();
        let mut chunks = Vec::with_capacity(plan.shares.len());
        for share in &plan.shares {
            let sequence = lent
                .remove(&share.id)
                .ok_or("the plan names a sequence that left")?;
            chunks.push(Chunk {
                cache: sequence
                    .cache
                    .as_mut()
                    .ok_or("the plan runs a sequence that waits")?,
                tokens: &sequence.tokens[share.from..share.from + share.tokens],
                rows: if share.yields { Rows::Last } else { Rows::None },
            });
        }
        self.model.forward(&mut chunks)
    }

    fn take(&mut self, id: SequenceId, logits: &[f32]) {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        let outcome = sequence.take(&self.language.vocabulary, logits);
        if matches!(outcome, Ok(None)) {
            return;
        }
        self.scheduler.leave(id);
        let Some(sequence) = self.sequences.remove(&id) else {
            return;
        };
        match outcome {
            Ok(reason) => sequence.finish(
                reason.unwrap_or(FinishReason::Stop),
                &self.info.model,
                &self.info.revision,
            ),
            Err(fault) => sequence.fail(fault),
        }
    }

    fn drop_unwanted(&mut self) {
        let scheduler = &mut self.scheduler;
        self.sequences.retain(|id, sequence| {
            let wanted = sequence.is_wanted();
            if !wanted {
                scheduler.leave(*id);
            }
            wanted
        });
    }

    /// After a failed step nothing that took part in it can be trusted: the running requests are
    /// told, the waiting ones begin anew in the order they came.
    fn rebuild(&mut self, fault: &str) {
        self.scheduler = Scheduler::new(self.limits);
        for (id, sequence) in std::mem::take(&mut self.sequences) {
            if sequence.cache.is_some() {
                sequence.fail(EngineFault::Crashed(fault.to_owned()));
            } else {
                self.wait(id, sequence);
            }
        }
    }
}

impl Language {
    fn prompt(&self, request: &Generate) -> Result<Vec<u32>, EngineFault> {
        let text = self.template.render(&request.messages);
        text.and_then(|text| self.vocabulary.encode(&text, self.template.specials()))
            .map_err(|fault| match fault {
                PromptFault::Refused(_) | PromptFault::Tokenizer(_) | PromptFault::BadFile(_) => {
                    EngineFault::Unservable(fault.to_string())
                }
            })
    }
}

#[cfg(test)]
mod tests;
