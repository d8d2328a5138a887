//! Runs a model in this process, on a thread of its own.
//!
//! Conversations in, through a bounded channel; answers out, each through its own one-shot channel.
//! The thread (`runner`) owns the model (`cpu`, or `gpu` on CUDA and Metal), the KV cache and the
//! scheduler. In each step it accepts new requests, drops cancelled ones, computes one ragged batch
//! (`forward`) and samples a token (`sampler`, `structured`) for every sequence (`active_request`)
//! that is ready for one. `load` finds a checkpoint (`bundled`, `hub`, `files`) and reads it by its
//! `shape`.

mod active_request;
mod bundled;
mod cpu;
pub(super) mod files;
mod forward;
mod gpu;
#[cfg(feature = "hub")]
mod hub;

pub(super) mod load;
mod runner;
mod sampler;
mod shape;
mod structured;

use std::{
    fmt,
    future::ready,
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::{
    sync::{Semaphore, oneshot},
    task::spawn_blocking,
};

use crate::{
    batching::Limits,
    config::ModelConfig,
    job::{Sampling, Tier},
};

use super::{
    Engine, EngineError, EngineInfo, Generate, Generation,
    slots::{WAITING_PER_RUNNING, queue_full},
    step_timer::StepTimer,
};

use forward::Forward;
use load::{LoadedModel, locate, read_codec};
use runner::{EngineRequest, Runner, TextCodec};
use structured::GrammarCompiler;

pub use cpu::{CpuModel, Workspace};
pub use files::ModelFiles;
pub use forward::{Chunk, LogitRows, Logits};
pub use gpu::{GpuModel, open_device};
pub use shape::{ModelFamily, ModelShape, Rope};

pub(crate) use cpu::{MachineLimits, Profile, StepPhase};

/// True when a tier's configuration names no model, so that the bundled checkpoint answers, which
/// knows only a small shop's support desk.
pub fn is_bundled(config: &ModelConfig) -> bool {
    config.model.is_none()
}

/// A model in this process.
pub struct LocalEngine {
    info: EngineInfo,
    codec: Arc<TextCodec>,
    grammars: Arc<GrammarCompiler>,
    /// Length of a row of logits; token ids are below it.
    vocabulary: usize,
    requests: SyncSender<EngineRequest>,
    /// Slots for requests in the channel to the thread.
    slots: Arc<Semaphore>,
    step_timer: Arc<StepTimer>,
    thread: thread::JoinHandle<()>,
}

impl fmt::Debug for LocalEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalEngine")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

impl LocalEngine {
    /// Opens the model that a tier's configuration names: a directory, a hub name, or the bundled
    /// checkpoint when it names none.
    ///
    /// # Errors
    /// One line: what was found and what was expected.
    pub async fn open(tier: Tier, config: &ModelConfig) -> Result<Self, String> {
        let config = config.clone();
        spawn_blocking(move || Self::open_blocking(tier, &config))
            .await
            .map_err(|error| format!("loading panicked: {error}"))?
    }

    fn open_blocking(tier: Tier, config: &ModelConfig) -> Result<Self, String> {
        let (name, files) = locate(tier, config.model.as_deref())?;
        match open_device(config.device)? {
            None => Self::start(
                tier,
                config,
                name,
                &files,
                LoadedModel::on_cpu(&files, config)?,
            ),
            Some(device) => {
                let opened = LoadedModel::on_device(&files, config, &device)?;
                Self::start(tier, config, name, &files, opened)
            }
        }
    }

    fn start<M: Forward>(
        tier: Tier,
        config: &ModelConfig,
        name: String,
        files: &ModelFiles,
        opened: LoadedModel<M>,
    ) -> Result<Self, String> {
        let codec = Arc::new(read_codec(files, &opened.shape)?);
        let mut digest = files.digest()?;
        digest
            .update(opened.arithmetic.as_bytes())
            .update(&opened.context_tokens.to_le_bytes());
        let info = EngineInfo {
            model: config.name.clone().unwrap_or(name),
            revision: digest.finalize().to_hex()[..32].to_owned(),
            context_tokens: Some(opened.context_tokens),
            batch_max: config.batch_max,
            parameters: Some(opened.shape.parameters()),
        };
        // As many requests may wait in the channel as in the scheduler.
        let waiting_max = config.batch_max * WAITING_PER_RUNNING;
        let limits = Limits {
            batch_max: config.batch_max,
            waiting_max,
            step_tokens_max: config.step_tokens_max,
            kv_blocks: opened.kv_blocks,
            step_seconds_max: (config.step_ms_max > 0).then(|| config.step_ms_max as f64 / 1e3),
        };
        let (words, eos) = (codec.vocabulary.clone(), codec.eos.clone());
        let vocabulary = opened.shape.vocabulary;
        let grammars = Arc::new(GrammarCompiler::new(words, eos, vocabulary));
        let terms = (limits, config.prefix_cache);
        let (requests, receiver) = sync_channel(waiting_max);
        let step_timer = Arc::new(StepTimer::new());
        let runner = Runner::new(
            opened.model,
            codec.clone(),
            info.clone(),
            tier,
            terms,
            (receiver, step_timer.clone()),
        );
        let thread = thread::Builder::new()
            .name(format!("engine-{tier}"))
            .spawn(move || runner.run())
            .map_err(|error| format!("cannot start the engine's thread: {error}"))?;
        Ok(Self {
            info,
            codec,
            grammars,
            vocabulary,
            requests,
            slots: Arc::new(Semaphore::new(waiting_max)),
            step_timer,
            thread,
        })
    }

    /// Rejects token ids beyond the vocabulary.
    fn check(&self, sampling: &Sampling) -> Result<(), EngineError> {
        let last = sampling.logit_bias.last_key_value();
        match last.map(|(token, _)| *token) {
            Some(token) if token as usize >= self.vocabulary => {
                Err(EngineError::Unservable(format!(
                    "logit_bias names token {token}; {} has tokens 0 to {}",
                    self.info.model,
                    self.vocabulary.saturating_sub(1)
                )))
            }
            _ => Ok(()),
        }
    }
}

impl Engine for LocalEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn generate(&self, request: Generate) -> BoxFuture<'static, Result<Generation, EngineError>> {
        if let Err(error) = self.check(&request.sampling) {
            return ready(Err(error)).boxed();
        }
        let Ok(slot) = self.slots.clone().try_acquire_owned() else {
            return ready(Err(queue_full())).boxed();
        };
        let (reply, answer) = oneshot::channel();
        let (codec, requests) = (self.codec.clone(), self.requests.clone());
        let grammars = self.grammars.clone();
        // Tokenizing a long prompt or compiling a schema may take longer than a step, so it is done
        // off the engine's thread.
        spawn_blocking(move || {
            let format = &request.sampling.response_format;
            let made = codec
                .prompt(&request)
                .and_then(|prompt| Ok((prompt, grammars.compile(format)?)));
            let (prompt, grammar) = match made {
                Ok(made) => made,
                Err(error) => {
                    let _ = reply.send(Err(error));
                    return;
                }
            };
            let queued = EngineRequest {
                request,
                prompt,
                grammar,
                reply,
                slot,
            };
            // The channel holds a request for every slot. If the thread died, dropping `reply` reports it.
            let _ = requests.send(queued);
        });
        async { answer.await.unwrap_or(Err(EngineError::Closed)) }.boxed()
    }

    fn is_ready(&self) -> bool {
        !self.thread.is_finished()
    }

    fn stalled(&self) -> Option<Duration> {
        if self.thread.is_finished() {
            return Some(Duration::MAX);
        }
        self.step_timer.step()
    }
}
