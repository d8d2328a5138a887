//! Generates answers: a conversation in, an answer with its tokens and timings out.
//!
//! `contract` holds the trait [`Engine`] and its request, answer and errors. Three engines
//! implement it: [`local`] runs a model in this process on a thread of its own, `upstream` calls an
//! OpenAI-compatible server, and [`scripted`] answers by rule, for tests and load. `watchdog` reopens
//! an engine that hangs. Beside them, `embedder` computes sentence embeddings. An engine knows
//! nothing of job states, queues or the job database.

mod contract;
mod embedder;
pub mod local;
pub mod scripted;
mod signals;
mod slots;
mod step_timer;
pub(crate) mod upstream;
mod watchdog;

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;

pub use contract::{
    Engine, EngineError, EngineInfo, Generate, Generation, OpenError, RequestContext, Stop,
};
pub use embedder::{Embedder, EmbedderError, cosine};
use watchdog::WatchedEngine;

use crate::{
    config::{ModelConfig, SecretUrl},
    job::Tier,
};

/// Opens the engine that a tier's configuration names and reopens it whenever it hangs.
///
/// `model` is `scripted:…` ([`scripted`]), an `http(s)://` URL (`upstream`), or a directory or hub
/// name ([`local`]). Without it, the checkpoint bundled with the binary is used.
///
/// # Errors
/// [`OpenError`] when the model cannot be found, loaded or reached.
pub async fn open(tier: Tier, config: &ModelConfig) -> Result<Arc<dyn Engine>, OpenError> {
    let engine = open_once(tier, config).await?;
    if config.step_hang_s == 0 {
        return Ok(engine);
    }
    let limit = Duration::from_secs(config.step_hang_s);
    let config = config.clone();
    let reopen = Box::new(move || {
        let config = config.clone();
        Box::pin(async move { open_once(tier, &config).await }) as BoxFuture<'static, _>
    });
    Ok(WatchedEngine::start(engine, tier, limit, reopen))
}

async fn open_once(tier: Tier, config: &ModelConfig) -> Result<Arc<dyn Engine>, OpenError> {
    let model = config.model.as_deref();
    let error = |message: String| OpenError {
        tier,
        model: match model {
            // A URL may contain a password.
            Some(url) if is_url(url) => SecretUrl::new(url).masked(),
            Some(model) => model.to_owned(),
            None => "bundled".to_owned(),
        },
        message,
    };
    match model {
        Some(script) if script.starts_with("scripted:") => {
            let engine = scripted::ScriptedEngine::from_script(script, config).map_err(error)?;
            Ok(Arc::new(engine))
        }
        Some(url) if is_url(url) => {
            let engine = upstream::UpstreamEngine::connect(tier, url, config)
                .await
                .map_err(error)?;
            Ok(Arc::new(engine))
        }
        _ => {
            let engine = local::LocalEngine::open(tier, config)
                .await
                .map_err(error)?;
            Ok(Arc::new(engine))
        }
    }
}

fn is_url(model: &str) -> bool {
    model.starts_with("http://") || model.starts_with("https://")
}
