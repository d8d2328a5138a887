//! A model in this process, on a thread of its own.
//!
//! Comes in: conversations, through a bounded channel. Goes out: answers, each through its own
//! one-shot channel. The thread (`runner`) owns the model (`model`), the KV cache (`arena`) and the
//! scheduler; every step it takes in who came, drops who is not waited for any more, computes one
//! ragged step and chooses a token for each sequence that is ready for one. On a GPU the model is
//! another one (`device`); everything else is the same.

mod bundled;
mod cpu;
pub(super) mod files;
mod gpu;
#[cfg(feature = "hub")]
mod hub;
mod opened;
mod runner;
mod sampler;
mod sequence;
mod shape;
mod structured;

use std::{
    fmt,
    future::ready,
    path::Path,
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
    prompt::{ChatTemplate, Vocabulary},
};

use super::{
    Engine, EngineError, EngineInfo, Generate, Generation,
    admission::{WAITING_PER_RUNNING, queue_full},
    pulse::Pulse,
};

use opened::Opened;
use runner::{EngineRequest, Forward, Language, Runner};
use structured::Grammars;

pub use cpu::{Chunk, CpuModel, Logits, MachineLimits, Part, Profile, Rows, Workspace};
pub use files::ModelFiles;
pub use gpu::{GpuModel, open_device};
pub use shape::{Family, Rope, Shape};

/// True when a tier's configuration names no model, so that the bundled checkpoint answers, which
/// knows a small shop's support desk and nothing else.
pub fn is_bundled(config: &ModelConfig) -> bool {
    config.model.is_none()
}

/// A model in this process.
pub struct LocalEngine {
    info: EngineInfo,
    language: Arc<Language>,
    grammars: Arc<Grammars>,
    /// Logits of a row: tokens that a request may name.
    vocabulary: usize,
    requests: SyncSender<EngineRequest>,
    /// For requests on their way to the thread.
    places: Arc<Semaphore>,
    pulse: Arc<Pulse>,
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
    /// One line that says what was found and what was expected.
    pub async fn open(tier: Tier, config: &ModelConfig) -> Result<Self, String> {
        let config = config.clone();
        spawn_blocking(move || Self::open_blocking(tier, &config))
            .await
            .map_err(|error| format!("loading panicked: {error}"))?
    }

    fn open_blocking(tier: Tier, config: &ModelConfig) -> Result<Self, String> {
        let (name, files) = locate(tier, config.model.as_deref())?;
        match open_device(config.device)? {
            None => Self::start(tier, config, name, &files, Opened::on_cpu(&files, config)?),
            Some(device) => {
                let opened = Opened::on_device(&files, config, &device)?;
                Self::start(tier, config, name, &files, opened)
            }
        }
    }

    fn start<M: Forward>(
        tier: Tier,
        config: &ModelConfig,
        name: String,
        files: &ModelFiles,
        opened: Opened<M>,
    ) -> Result<Self, String> {
        let language = Arc::new(read_language(files, &opened.shape)?);
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
        // As many again may wait in the channel to the thread.
        let waiting_max = config.batch_max * WAITING_PER_RUNNING;
        let limits = Limits {
            batch_max: config.batch_max,
            waiting_max,
            step_tokens_max: config.step_tokens_max,
            kv_blocks: opened.kv_blocks,
            step_seconds_max: (config.step_ms_max > 0).then(|| config.step_ms_max as f64 / 1e3),
        };
        let (words, eos) = (language.vocabulary.clone(), language.eos.clone());
        let vocabulary = opened.shape.vocabulary;
        let grammars = Arc::new(Grammars::new(words, eos, vocabulary));
        let terms = (limits, config.prefix_cache);
        let (requests, receiver) = sync_channel(waiting_max);
        let pulse = Arc::new(Pulse::new());
        let runner = Runner::new(
            opened.model,
            language.clone(),
            info.clone(),
            tier,
            terms,
            (receiver, pulse.clone()),
        );
        let thread = thread::Builder::new()
            .name(format!("engine-{tier}"))
            .spawn(move || runner.run())
            .map_err(|error| format!("cannot start the engine's thread: {error}"))?;
        Ok(Self {
            info,
            language,
            grammars,
            vocabulary,
            requests,
            places: Arc::new(Semaphore::new(waiting_max)),
            pulse,
            thread,
        })
    }

    /// Refuses what no token of this model can be.
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

/// A name to serve the model under, and its files.
fn locate(tier: Tier, model: Option<&str>) -> Result<(String, ModelFiles), String> {
    let Some(model) = model else {
        let (name, files) = bundled::bundled(tier);
        return Ok((name.to_owned(), files));
    };
    locate_named(model)
}

/// A name for a directory or hub name, and its files.
pub(super) fn locate_named(model: &str) -> Result<(String, ModelFiles), String> {
    let folder = Path::new(model);
    if folder.is_dir() {
        // `.` and `..` have no name of their own until they are resolved.
        let whole = folder.canonicalize().map_err(|error| error.to_string())?;
        let name = whole
            .file_name()
            .map_or(model.into(), |name| name.to_string_lossy());
        return Ok((name.into_owned(), ModelFiles::ModelRegistry(whole.clone())));
    }
    if folder.exists() {
        return Err(
            "this is a file; a directory with config.json and safetensors files is expected"
                .to_owned(),
        );
    }
    if !is_hub_name(model) {
        return Err("there is no such directory, and it is no hub name (OWNER/NAME)".to_owned());
    }
    #[cfg(feature = "hub")]
    return hub::fetch(model).map(|files| (model.to_owned(), files));
    #[cfg(not(feature = "hub"))]
    Err(
        "there is no such directory, and this binary was built without the feature `hub`"
            .to_owned(),
    )
}

/// `OWNER/NAME`, with an optional `@REVISION`.
fn is_hub_name(model: &str) -> bool {
    let allowed = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    let (name, revision) = model.split_once('@').unwrap_or((model, "main"));
    let revision_allowed = revision.split('/').all(allowed);
    name.split_once('/')
        .is_some_and(|(owner, name)| allowed(owner) && allowed(name) && revision_allowed)
}

fn read_language(files: &ModelFiles, shape: &Shape) -> Result<Language, String> {
    let template = ChatTemplate::from_files(
        files.read("tokenizer_config.json")?.as_deref(),
        files.read("chat_template.jinja")?.as_deref(),
    );
    let vocabulary = Vocabulary::from_json(&files.require("tokenizer.json")?);
    let vocabulary = vocabulary.map_err(|error| error.to_string())?;
    // Models round their vocabulary up, so it may be larger than the tokenizer's, never smaller.
    let (tokens, rows) = (vocabulary.len(), shape.vocabulary);
    if tokens > rows {
        return Err(format!(
            "tokenizer.json has {tokens} tokens, the model only {rows}"
        ));
    }
    Ok(Language {
        template: template.map_err(|error| error.to_string())?,
        vocabulary,
        eos: shape.eos.clone(),
    })
}

impl Engine for LocalEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn generate(&self, request: Generate) -> BoxFuture<'static, Result<Generation, EngineError>> {
        if let Err(error) = self.check(&request.sampling) {
            return ready(Err(error)).boxed();
        }
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            return ready(Err(queue_full())).boxed();
        };
        let (reply, answer) = oneshot::channel();
        let (language, requests) = (self.language.clone(), self.requests.clone());
        let grammars = self.grammars.clone();
        // A prompt may take longer to become tokens than a step, and so may a schema to become a
        // grammar; the engine's thread does not wait.
        spawn_blocking(move || {
            let format = &request.sampling.response_format;
            let made = language
                .prompt(&request)
                .and_then(|prompt| Ok((prompt, grammars.compile(format)?)));
            let (prompt, grammar) = match made {
                Ok(made) => made,
                Err(error) => {
                    let _ = reply.send(Err(error));
                    return;
                }
            };
            let ticket = EngineRequest {
                request,
                prompt,
                grammar,
                reply,
                place,
            };
            // There is room for every place. Of a thread that is gone the dropped reply tells.
            let _ = requests.send(ticket);
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
        self.pulse.step()
    }
}
