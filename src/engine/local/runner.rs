//! The engine's thread: it alone owns the model, the KV cache and the scheduler.

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
    batching::{BLOCK_TOKENS, Limits, Plan, PrefixHash, Refusal, Request, Scheduler, SequenceId},
    config::PrefixSharing,
    engine::{EngineError, EngineInfo, Generate, Terms, admission::queue_full, pulse::Pulse},
    job::{FinishReason, Tier},
    metrics::{
        ENGINE_STEPS, ENGINE_WAITING, KV_BLOCKS_USED, PREEMPTED, STEP_SECONDS, STEP_SEQUENCES,
        STEP_TOKENS,
    },
    prompt::{ChatTemplate, PromptError, Vocabulary},
};

use super::{
    cpu::{
        kernels::share_parts,
        model::{Chunk, CpuModel, Logits, Rows, Workspace},
    },
    sequence::{Reply, Sequence, Taken, Writer},
    structured::Grammar,
};

/// All that is told of a panic: its message may quote a prompt.
const PANIC: &str = "panic in the engine";

/// What computes steps; a test puts something that fails in its place.
pub(super) trait Forward: Send + 'static {
    fn forward(&mut self, chunks: &[Chunk<'_>]) -> Result<Logits, String>;
}

/// A model that computes on the CPU.
#[derive(Debug)]
pub(super) struct OnCpu {
    pub(super) model: CpuModel,
    pub(super) workspace: Workspace,
}

impl Forward for OnCpu {
    fn forward(&mut self, chunks: &[Chunk<'_>]) -> Result<Logits, String> {
        self.model.forward(&mut self.workspace, chunks)
    }
}

/// A request on its way to the thread. Its prompt was made beside the thread, so that a long one
/// holds up nobody's next token.
#[derive(Debug)]
pub(super) struct EngineRequest {
    pub(super) request: Generate,
    /// The tokens of the prompt.
    pub(super) prompt: Vec<u32>,
    /// The form that the answer must have.
    pub(super) grammar: Option<Grammar>,
    pub(super) reply: Reply,
    /// Its place on the way, given up when the thread takes it in.
    pub(super) place: OwnedSemaphorePermit,
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
    language: Arc<Language>,
    info: EngineInfo,
    context_tokens: usize,
    tier: Tier,
    kv_tokens_max: usize,
    sharing: PrefixSharing,
    requests: Receiver<EngineRequest>,
    pulse: Arc<Pulse>,
    scheduler: Scheduler,
    sequences: BTreeMap<SequenceId, Sequence>,
    next_id: u64,
    /// The scheduler's clock starts here.
    began: Instant,
}

impl<M: Forward> Runner<M> {
    pub(super) fn new(
        model: M,
        language: Arc<Language>,
        info: EngineInfo,
        tier: Tier,
        (limits, sharing): (Limits, PrefixSharing),
        (requests, pulse): (Receiver<EngineRequest>, Arc<Pulse>),
    ) -> Self {
        let kv_tokens_max = limits.kv_blocks * BLOCK_TOKENS;
        Self {
            model,
            language,
            context_tokens: info.context_tokens.unwrap_or(kv_tokens_max),
            info,
            tier,
            kv_tokens_max,
            sharing,
            requests,
            pulse,
            scheduler: Scheduler::new(limits),
            sequences: BTreeMap::new(),
            next_id: 0,
            began: Instant::now(),
        }
    }

    /// Runs until the engine is closed.
    pub(super) fn run(mut self) {
        while self.receive() {
            self.pulse.begin();
            let step = catch_unwind(AssertUnwindSafe(|| self.step()));
            self.pulse.end();
            let error = match step {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error,
                Err(_) => PANIC.to_owned(),
            };
            tracing::error!(model.name = %self.info.model, tier = %self.tier, "an engine step failed: {error}");
            self.rebuild(&error);
        }
        for (_, sequence) in std::mem::take(&mut self.sequences) {
            sequence.fail(EngineError::Closed);
        }
    }

    /// Takes new requests while there is room; waits for one when there is nothing else to do.
    /// False once the engine is closed.
    fn receive(&mut self) -> bool {
        while self.scheduler.has_room() {
            let ticket = if self.scheduler.is_idle() {
                // Whoever left last did so after the last step was reported.
                gauge!(ENGINE_WAITING, "tier" => self.tier.as_str()).set(0.0);
                gauge!(KV_BLOCKS_USED, "tier" => self.tier.as_str()).set(0.0);
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
    fn enter(&mut self, ticket: EngineRequest) {
        let EngineRequest {
            request,
            prompt,
            grammar,
            reply,
            place,
        } = ticket;
        drop(place);
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
        let writer = Writer::new(stop, self.language.eos.clone(), completion_tokens_max);
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let tokens_max = prompt.len() + completion_tokens_max;
        let mut sequence = Sequence::new(&request, &prompt, writer, reply);
        sequence.constrain(grammar);
        let now = self.began.elapsed();
        let left = |deadline: DateTime<Utc>| (deadline - Utc::now()).to_std().unwrap_or_default();
        let waiting = Request {
            id,
            tokens: prompt,
            tokens_max,
            scope: self.scope(&request.terms),
            priority: request.terms.priority,
            due: request.terms.deadline.map(|deadline| now + left(deadline)),
        };
        match self.scheduler.enqueue(waiting, now) {
            Ok(()) => {
                self.sequences.insert(id, sequence);
            }
            Err(Refusal::QueueFull) => sequence.fail(queue_full()),
            Err(Refusal::NeverFits) => sequence.fail(EngineError::Unservable(format!(
                "{tokens_max} tokens; at most {} fit the KV cache",
                self.kv_tokens_max
            ))),
        }
    }

    /// Who may share the keys and values of a request's prompt.
    fn scope(&self, terms: &Terms) -> Option<PrefixHash> {
        let revision = self.info.revision.as_str();
        match self.sharing {
            PrefixSharing::Off => None,
            PrefixSharing::Tenant => Some(PrefixHash::of_scope(&[revision, terms.tenant.as_str()])),
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
                "the prompt has no token".to_owned(),
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
                "at least one token must be asked for".to_owned(),
            )),
            most => Ok(most.min(self.context_tokens - prompt_tokens)),
        }
    }

    /// Plans and computes one step and hands out the answers that it finishes.
    fn step(&mut self) -> Result<(), String> {
        self.drop_unwanted();
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
        self.choose(&plan, &logits);
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
            let (tokens, blocks) = chunk.ok_or("the plan names a sequence that left")?;
            chunks.push(Chunk {
                tokens,
                from: share.from,
                blocks,
                rows: if share.yields { Rows::Last } else { Rows::None },
            });
        }
        self.model.forward(&chunks)
    }

    /// Chooses a token for each sequence that yields; each has its own dice, so they choose side by
    /// side.
    fn choose(&mut self, plan: &Plan, logits: &Logits) {
        let yielding = plan.shares.iter().filter(|share| share.yields);
        let mut rows: BTreeMap<SequenceId, &[f32]> =
            yielding.map(|share| share.id).zip(logits.rows()).collect();
        let vocabulary = &self.language.vocabulary;
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
                Ok(Taken::Token(token)) => self.scheduler.append(id, token),
                Ok(Taken::End(reason)) => {
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

    /// Answers requests that were told to stop with what there is.
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

    /// After a failed step nothing that took part in it can be trusted: the running requests are
    /// told, the waiting ones go on waiting.
    fn rebuild(&mut self, error: &str) {
        for id in self.scheduler.reset() {
            if let Some(sequence) = self.sequences.remove(&id) {
                sequence.fail(EngineError::Crashed(error.to_owned()));
            }
        }
    }
}

impl Language {
    /// The tokens of a request's prompt.
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
