//! From a claimed job to the engine: cleans and prunes the prompt where its producer allows that.

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};

use crate::{
    engine::{Embedder, Engine, EngineError, Generate, Generation, RequestContext, Stop},
    job::{ContextMode, ContextSavings, Job},
    prompt::{self, prune::Similarity},
    store::Reused,
};

/// What an attempt generated.
#[derive(Debug)]
pub(super) struct Generated {
    pub result: Result<Generation, EngineError>,
    /// Tokens left out of the prompt.
    pub saved: ContextSavings,
    /// A near question's answer that serves; `result` is then the model's yes.
    pub reused: Option<Box<Reused>>,
}

impl From<Result<Generation, EngineError>> for Generated {
    fn from(result: Result<Generation, EngineError>) -> Self {
        Self {
            result,
            saved: ContextSavings::default(),
            reused: None,
        }
    }
}

/// Starts generating the answer to a job. A job whose context is kept goes to the engine at once; any
/// other first has its context prepared, on a blocking thread.
pub(super) fn generate(
    engine: &Arc<dyn Engine>,
    embedder: Option<&Arc<Embedder>>,
    job: &Job,
    stop: Stop,
) -> BoxFuture<'static, Generated> {
    let request = Generate {
        messages: job.request.messages.clone(),
        sampling: job.request.sampling.clone(),
        // Every attempt of a job samples with the same seed.
        seed_default: job.head.id.0.as_u64_pair().1,
        context: RequestContext {
            tenant: job.head.tenant.clone(),
            priority: job.head.priority,
            deadline: job.head.deadline,
            stop,
        },
    };
    let mode = job.request.options.context;
    if mode == ContextMode::Keep {
        return engine.generate(request).map(Generated::from).boxed();
    }
    let (engine, embedder) = (engine.clone(), embedder.cloned());
    async move {
        let messages = request.messages.clone();
        let prepared = tokio::task::spawn_blocking(move || {
            let similarity = embedder
                .as_deref()
                .map(|embedder| embedder as &dyn Similarity);
            prompt::prepare(&messages, mode, similarity)
        });
        match prepared.await {
            Ok(prepared) => Generated {
                reused: None,
                saved: prepared.saved,
                result: engine
                    .generate(Generate {
                        messages: prepared.messages,
                        ..request
                    })
                    .await,
            },
            // Pruning only saves tokens: without it the whole prompt is sent.
            Err(error) => {
                tracing::error!(%error, "cannot prepare the context; the whole prompt is sent");
                engine.generate(request).await.into()
            }
        }
    }
    .boxed()
}
