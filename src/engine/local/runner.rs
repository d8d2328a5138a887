//! The engine's thread, sole owner of the model, the KV cache and the scheduler.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError},
    },
    time::Instant,
};

use chrono::{DateTime, Utc};
use metrics::{counter, gauge, histogram};
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    batching::{
        BLOCK_TOKENS, EnqueueError, Limits, Plan, PrefixHash, Request, Scheduler, SequenceId,
    },
    config::PrefixSharing,
    engine::{
        EngineError, EngineInfo, Generate, RequestContext, slots::queue_full, step_timer::StepTimer,
    },
    job::{FinishReason, Tier},
    metrics::{
        ENGINE_STEPS, ENGINE_WAITING, KV_BLOCKS_USED, PREEMPTED, STEP_SECONDS, STEP_SEQUENCES,
        STEP_TOKENS,
    },
    prompt::{ChatTemplate, PromptError, Vocabulary},
};

use super::{
    active_request::{ActiveRequest, AnswerWriter, NextToken, ReplySender},
    cpu::kernels::share_parts,
    forward::{Chunk, Forward, LogitRows, Logits},
    structured::Grammar,
};

/// Reported for a panic, whose message might quote a prompt.
const PANIC: &str = "panic in the engine";

/// A request on its way to the thread. Its prompt was tokenized off the thread, so that a long one
/// delays no token of other requests.
#[derive(Debug)]
pub(super) struct EngineRequest {
    pub(super) request: Generate,
    /// The prompt's tokens.
    pub(super) prompt: Vec<u32>,
    /// Constrains the answer's format.
    pub(super) grammar: Option<Grammar>,
    pub(super) reply: ReplySender,
    /// Its slot in the channel, freed when the thread accepts it.
    pub(super) slot: OwnedSemaphorePermit,
}

/// Converts between text and tokens.
#[derive(Debug)]
pub(super) struct TextCodec {
    pub(super) template: ChatTemplate,
    pub(super) vocabulary: Vocabulary,
    /// Tokens that end an answer.
    pub(super) eos: Vec<u32>,
}

/// State of the thread.
pub(super) struct Runner<M> {
    model: M,
    codec: Arc<TextCodec>,
    info: EngineInfo,
    context_tokens: usize,
    tier: Tier,
    kv_tokens_max: usize,
    sharing: PrefixSharing,
    requests: Receiver<EngineRequest>,
    step_timer: Arc<StepTimer>,
    scheduler: Scheduler,
    sequences: BTreeMap<SequenceId, ActiveRequest>,
    next_id: u64,
    /// Start of the scheduler's clock.
    began: Instant,
}

impl<M: Forward> Runner<M> {
    pub(super) fn new(
        model: M,
        codec: Arc<TextCodec>,
        info: EngineInfo,
        tier: Tier,
        (limits, sharing): (Limits, PrefixSharing),
        (requests, step_timer): (Receiver<EngineRequest>, Arc<StepTimer>),
    ) -> Self {
        let kv_tokens_max = limits.kv_blocks * BLOCK_TOKENS;
        Self {
            model,
            codec,
            context_tokens: info.context_tokens.unwrap_or(kv_tokens_max),
            info,
            tier,
            kv_tokens_max,
            sharing,
            requests,
            step_timer,
            scheduler: Scheduler::new(limits),
            sequences: BTreeMap::new(),
            next_id: 0,
            began: Instant::now(),
        }
    }

    /// Runs until the engine is closed.
    pub(super) fn run(mut self) {
        while self.receive() {
            self.step_timer.begin();
            let step = catch_unwind(AssertUnwindSafe(|| self.step()));
            self.step_timer.end();
            let error = match step {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error,
                Err(_) => PANIC.to_owned(),
            };
            tracing::error!(model.name = %self.info.model, tier = %self.tier, %error, "an engine step failed; its requests fail and the cache is emptied");
            self.recover(&error);
        }
        for (_, sequence) in std::mem::take(&mut self.sequences) {
            sequence.fail(EngineError::Closed);
        }
    }

    /// Accepts new requests while the queue has room; blocks when there is nothing to compute. False
    /// once the engine is closed.
    fn receive(&mut self) -> bool {
        while self.scheduler.can_enqueue() {
            let queued = if self.scheduler.is_idle() {
                // Sequences may have left since the last step was reported.
                gauge!(ENGINE_WAITING, "tier" => self.tier.as_str()).set(0.0);
                gauge!(KV_BLOCKS_USED, "tier" => self.tier.as_str()).set(0.0);
                self.requests.recv().map_err(|_| TryRecvError::Disconnected)
            } else {
                self.requests.try_recv()
            };
            match queued {
                Ok(queued) => self.accept(queued),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        true
    }

    /// Queues a request as a sequence, or replies with the reason why it cannot run.
    fn accept(&mut self, queued: EngineRequest) {
        let EngineRequest {
            request,
            prompt,
            grammar,
            reply,
            slot,
        } = queued;
        drop(slot);
        if reply.is_closed() {
            return;
        }
        let completion_tokens_max = match self.completion_tokens_max(&request, prompt.len()) {
            Ok(tokens) => tokens,
            Err(error) => {
                let _ = reply.send(Err(error));
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
        let writer = AnswerWriter::new(stop, self.codec.eos.clone(), completion_tokens_max);
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let tokens_max = prompt.len() + completion_tokens_max;
        let sequence = ActiveRequest::new(&request, &prompt, writer, grammar, reply);
        let now = self.began.elapsed();
        let left = |deadline: DateTime<Utc>| (deadline - Utc::now()).to_std().unwrap_or_default();
        let waiting = Request {
            id,
            tokens: prompt,
            tokens_max,
            scope: self.scope(&request.context),
            priority: request.context.priority,
            due: request
                .context
                .deadline
                .map(|deadline| now + left(deadline)),
        };
        match self.scheduler.enqueue(waiting, now) {
            Ok(()) => {
                self.sequences.insert(id, sequence);
            }
            Err(EnqueueError::QueueFull) => sequence.fail(queue_full()),
            Err(EnqueueError::NeverFits) => sequence.fail(EngineError::Unservable(format!(
                "prompt and answer need {tokens_max} tokens; the KV cache holds {}",
                self.kv_tokens_max
            ))),
        }
    }

    /// The scope in which a prompt's keys and values may be shared.
    fn scope(&self, context: &RequestContext) -> Option<PrefixHash> {
        let revision = self.info.revision.as_str();
        match self.sharing {
            PrefixSharing::Off => None,
            PrefixSharing::Tenant => {
                Some(PrefixHash::of_scope(&[revision, context.tenant.as_str()]))
            }
            PrefixSharing::All => Some(PrefixHash::of_scope(&[revision])),
        }
    }

    fn completion_tokens_max(
        &self,
        request: &Generate,
        prompt_tokens: usize,
    ) -> Result<usize, EngineError> {
        if prompt_tokens == 0 {
            return Err(EngineError::Unservable(
                "the prompt has no tokens".to_owned(),
            ));
        }
        if prompt_tokens >= self.context_tokens {
            return Err(EngineError::ContextTooLong {
                model: self.info.model.clone(),
                prompt_tokens,
                context_tokens: self.context_tokens,
            });
        }
        match request.sampling.max_completion_tokens as usize {
            0 => Err(EngineError::Unservable(
                "max_completion_tokens must be at least 1".to_owned(),
            )),
            most => Ok(most.min(self.context_tokens - prompt_tokens)),
        }
    }

    /// Plans and computes one step and sends the answers that it finishes.
    fn step(&mut self) -> Result<(), String> {
        self.drop_cancelled();
        self.end_stopped();
        let began = Instant::now();
        let plan = self.scheduler.plan(self.began.elapsed());
        self.report(&plan);
        if plan.shares.is_empty() {
            return Ok(());
        }
        for id in &plan.admitted {
            if let Some(sequence) = self.sequences.get_mut(id) {
                sequence.start();
            }
        }
        let logits = self.forward(&plan)?;
        let tier = self.tier.as_str();
        counter!(ENGINE_STEPS, "tier" => tier).increment(1);
        histogram!(STEP_SECONDS, "tier" => tier).record(began.elapsed());
        self.sample(&plan, &logits);
        self.scheduler.observe(&plan, began.elapsed().as_secs_f64());
        Ok(())
    }

    fn report(&self, plan: &Plan) {
        let tier = self.tier.as_str();
        gauge!(ENGINE_WAITING, "tier" => tier).set(self.scheduler.waiting() as f64);
        gauge!(KV_BLOCKS_USED, "tier" => tier).set(self.scheduler.blocks_used() as f64);
        counter!(PREEMPTED, "tier" => tier).increment(plan.preempted.len() as u64);
        if !plan.shares.is_empty() {
            histogram!(STEP_SEQUENCES, "tier" => tier).record(plan.shares.len() as f64);
            histogram!(STEP_TOKENS, "tier" => tier).record(plan.size.tokens as f64);
        }
    }

    fn forward(&mut self, plan: &Plan) -> Result<Logits, String> {
        let mut chunks = Vec::with_capacity(plan.shares.len());
        for share in &plan.shares {
            let chunk = self.scheduler.chunk(share);
            let (tokens, blocks) = chunk.ok_or("the plan names a sequence that has left")?;
            chunks.push(Chunk {
                tokens,
                from: share.from,
                blocks,
                rows: if share.yields {
                    LogitRows::Last
                } else {
                    LogitRows::None
                },
            });
        }
        self.model.forward(&chunks)
    }

    /// Samples a token for each yielding sequence, in parallel: each has its own random numbers.
    fn sample(&mut self, plan: &Plan, logits: &Logits) {
        let yielding = plan.shares.iter().filter(|share| share.yields);
        let mut rows: BTreeMap<SequenceId, &[f32]> =
            yielding.map(|share| share.id).zip(logits.rows()).collect();
        let vocabulary = &self.codec.vocabulary;
        let mut work: Vec<_> = self
            .sequences
            .iter_mut()
            .filter_map(|(id, sequence)| Some((*id, sequence, rows.remove(id)?, None)))
            .collect();
        share_parts(work.iter_mut(), |(_, sequence, row, taken)| {
            *taken = Some(sequence.take(vocabulary, row));
        });
        let chosen: Vec<_> = work
            .into_iter()
            .filter_map(|(id, _, _, taken)| Some((id, taken?)))
            .collect();
        for (id, taken) in chosen {
            match taken {
                Ok(NextToken::Token(token)) => self.scheduler.append(id, token),
                Ok(NextToken::End(reason)) => {
                    let computed = self.scheduler.leave(id);
                    if let Some(sequence) = self.sequences.remove(&id) {
                        sequence.finish(reason, computed, &self.info);
                    }
                }
                Err(error) => {
                    self.scheduler.leave(id);
                    if let Some(sequence) = self.sequences.remove(&id) {
                        sequence.fail(error);
                    }
                }
            }
        }
    }

    fn drop_cancelled(&mut self) {
        let scheduler = &mut self.scheduler;
        self.sequences.retain(|id, sequence| {
            let wanted = sequence.is_wanted();
            if !wanted {
                scheduler.leave(*id);
            }
            wanted
        });
    }

    /// Answers stopped requests with the tokens so far.
    fn end_stopped(&mut self) {
        let sequences = self.sequences.iter();
        let stopped: Vec<SequenceId> = sequences
            .filter(|(_, sequence)| sequence.is_stopped())
            .map(|(id, _)| *id)
            .collect();
        for id in stopped {
            let computed = self.scheduler.leave(id);
            if let Some(sequence) = self.sequences.remove(&id) {
                sequence.finish(FinishReason::Length, computed, &self.info);
            }
        }
    }

    /// After a failed step, fails the running requests, whose state cannot be trusted; waiting ones
    /// stay queued.
    fn recover(&mut self, error: &str) {
        for id in self.scheduler.reset() {
            if let Some(sequence) = self.sequences.remove(&id) {
                sequence.fail(EngineError::Crashed(error.to_owned()));
            }
        }
    }
}

impl TextCodec {
    /// Renders and tokenizes a request's prompt.
    pub(super) fn prompt(&self, request: &Generate) -> Result<Vec<u32>, EngineError> {
        let encode = || {
            let text = self.template.render(&request.messages);
            text.and_then(|text| self.vocabulary.encode(&text, self.template.specials()))
        };
        catch_unwind(AssertUnwindSafe(encode))
            .map_err(|_| EngineError::Crashed(PANIC.to_owned()))?
            .map_err(|error| match error {
                PromptError::Refused(_) | PromptError::Tokenizer(_) | PromptError::BadFile(_) => {
                    EngineError::Unservable(error.to_string())
                }
            })
    }
}

#[cfg(test)]
mod tests;
