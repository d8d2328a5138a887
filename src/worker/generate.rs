//! From a claimed job to the engine: what its producer allows to be left out of the prompt is.

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};

use crate::{
    engine::{Embedder, Engine, EngineError, Generate, Generation, RequestContext, Stop},
    job::{ContextMode, ContextSavings, Job},
    prompt::{self, prune::Similarity},
    store::Reused,
};

/// What an engine made of a job.
#[derive(Debug)]
pub(super) struct Generated {
    pub outcome: Result<Generation, EngineError>,
    /// What was left out of the prompt.
    pub saved: ContextSavings,
    /// Another question's answer, if it serves; the outcome is the word that said so.
    pub reused: Option<Box<Reused>>,
}

impl From<Result<Generation, EngineError>> for Generated {
    fn from(outcome: Result<Generation, EngineError>) -> Self {
        Self {
            outcome,
            saved: ContextSavings::default(),
            reused: None,
        }
    }
}

/// Starts generating the answer to a job. A job whose context is kept is with the engine at once;
/// another one first has its context prepared, beside the worker's loop.
pub(super) fn generate(
    engine: &Arc<dyn Engine>,
    embedder: Option<&Arc<Embedder>>,
    job: &Job,
    stop: Stop,
) -> BoxFuture<'static, Generated> {
    let request = Generate {
        messages: job.request.messages.clone(),
        sampling: job.request.sampling.clone(),
        // The same job samples alike however often it is tried.
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
                outcome: engine
                    .generate(Generate {
                        messages: prepared.messages,
                        ..request
                    })
                    .await,
            },
            // Leaving out is a saving, never a condition: the prompt goes as it is.
            Err(error) => {
                tracing::error!(%error, "the context was not prepared; the prompt is sent whole");
                engine.generate(request).await.into()
            }
        }
    }
    .boxed()
}
