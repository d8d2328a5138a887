//! An engine that is opened again when it hangs.
//!
//! A thread that computes cannot be ended from outside. So a hung engine is left to itself: what runs on
//! it is told that it crashed, readiness ends, and another one is opened in its place. Should the old one
//! come back, nobody hears it.

use std::{
    fmt,
    sync::{
        Arc, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use metrics::counter;
use tokio::{sync::watch, time::sleep};

use super::{Engine, EngineError, EngineInfo, Generate, Generation, OpenError};
use crate::{job::Tier, metrics::ENGINE_RESTARTS};

/// How often the engine is looked at within the time that a step may take, and at most.
const LOOKS_PER_LIMIT: u32 = 4;
const LOOK_MAX: Duration = Duration::from_secs(5);
/// How long to wait before an engine that could not be opened is tried again; doubles up to the longest.
const REOPEN_WAIT: Duration = Duration::from_millis(500);
const REOPEN_WAIT_MAX: Duration = Duration::from_secs(60);

/// Opens the engine anew.
pub(super) type Reopen =
    Box<dyn Fn() -> BoxFuture<'static, Result<Arc<dyn Engine>, OpenError>> + Send + Sync>;

/// An engine under watch.
pub(super) struct Watched {
    info: EngineInfo,
    tier: Tier,
    limit: Duration,
    present: RwLock<Arc<dyn Engine>>,
    /// Counts the engines; what began on an earlier one is lost.
    generation: watch::Sender<u64>,
    is_whole: AtomicBool,
    reopen: Reopen,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched")
            .field("present", &self.present)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl Watched {
    /// Watches an engine until it is dropped; a step that takes longer than `limit` hangs.
    pub(super) fn over(
        engine: Arc<dyn Engine>,
        tier: Tier,
        limit: Duration,
        reopen: Reopen,
    ) -> Arc<Self> {
        let watched = Arc::new(Self {
            info: engine.info().clone(),
            tier,
            limit,
            present: RwLock::new(engine),
            generation: watch::Sender::new(0),
            is_whole: AtomicBool::new(true),
            reopen,
        });
        tokio::spawn(watch(Arc::downgrade(&watched), limit));
        watched
    }

    fn present(&self) -> Arc<dyn Engine> {
        let present = self.present.read();
        present.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives the present engine up if it hangs.
    async fn look(&self) {
        let Some(step) = self.present().stalled().filter(|step| *step > self.limit) else {
            return;
        };
        let (tier, seconds) = (self.tier, step.as_secs().min(self.limit.as_secs() + 60));
        tracing::error!(%tier, seconds, "an engine hangs or its thread is gone: it is opened again");
        counter!(ENGINE_RESTARTS, "tier" => tier.as_str()).increment(1);
        self.is_whole.store(false, Ordering::Release);
        self.generation.send_modify(|count| *count += 1);
        let mut wait = REOPEN_WAIT;
        loop {
            match (self.reopen)().await {
                Ok(engine) => {
                    let mut present = self.present.write().unwrap_or_else(PoisonError::into_inner);
                    *present = engine;
                    break;
                }
                Err(error) => tracing::error!(%error, "the engine cannot be opened again yet"),
            }
            sleep(wait).await;
            wait = (wait * 2).min(REOPEN_WAIT_MAX);
        }
        self.is_whole.store(true, Ordering::Release);
        tracing::info!(%tier, "the engine is open again");
    }
}

async fn watch(watched: Weak<Watched>, limit: Duration) {
    let interval = (limit / LOOKS_PER_LIMIT).min(LOOK_MAX);
    loop {
        sleep(interval).await;
        match watched.upgrade() {
            Some(watched) => watched.look().await,
            None => return,
        }
    }
}

impl Engine for Watched {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn generate(&self, request: Generate) -> BoxFuture<'static, Result<Generation, EngineError>> {
        let mut lost = self.generation.subscribe();
        if !self.is_whole.load(Ordering::Acquire) {
            let message = "it hung and is being opened again".to_owned();
            return Box::pin(std::future::ready(Err(EngineError::Unavailable {
                message,
                retry_after_ms: None,
            })));
        }
        let answer = self.present().generate(request);
        Box::pin(async move {
            tokio::select! {
                biased;
                answer = answer => answer,
                Ok(()) = lost.changed() => Err(EngineError::Crashed(
                    "a step did not end; the engine was opened again".to_owned(),
                )),
            }
        })
    }

    fn is_ready(&self) -> bool {
        self.is_whole.load(Ordering::Acquire) && self.present().is_ready()
    }

    fn stalled(&self) -> Option<Duration> {
        self.present().stalled()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::{
        config::ModelConfig,
        engine::scripted::ScriptedEngine,
        job::{Message, Role, Sampling},
    };

    fn scripted() -> Arc<dyn Engine> {
        let script = "scripted:hang=HANG,echo";
        Arc::new(ScriptedEngine::from_script(script, &ModelConfig::default()).expect("a script"))
    }

    fn request(content: &str) -> Generate {
        Generate {
            messages: vec![Message {
                role: Role::User,
                content: content.to_owned(),
            }],
            sampling: Sampling {
                max_completion_tokens: 9,
                ..Sampling::default()
            },
            seed_default: 1,
            terms: Default::default(),
        }
    }

    #[tokio::test]
    async fn a_hung_engine_gives_its_requests_back_and_is_opened_again() {
        let tries = Arc::new(AtomicUsize::new(0));
        let counted = tries.clone();
        let reopen: Reopen = Box::new(move || {
            let is_first = counted.fetch_add(1, Ordering::Relaxed) == 0;
            let error = OpenError {
                tier: Tier::Small,
                model: "m".to_owned(),
                message: "not yet".to_owned(),
            };
            let opened = if is_first { Err(error) } else { Ok(scripted()) };
            Box::pin(std::future::ready(opened))
        });
        let limit = Duration::from_millis(200);
        let engine = Watched::over(scripted(), Tier::Small, limit, reopen);
        assert!(engine.generate(request("fine")).await.is_ok());
        let beside = engine.generate(request("HANG"));
        let (hung, beside) = tokio::join!(engine.generate(request("HANG")), beside);
        for lost in [hung, beside] {
            assert!(matches!(lost, Err(EngineError::Crashed(_))), "{lost:?}");
        }
        assert!(!engine.is_ready(), "it is being opened again");
        let refused = engine.generate(request("fine")).await;
        assert!(
            matches!(refused, Err(EngineError::Unavailable { .. })),
            "{refused:?}"
        );
        while !engine.is_ready() {
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(tries.load(Ordering::Relaxed), 2);
        let answer = engine.generate(request("fine")).await.expect("whole again");
        assert_eq!(answer.answer.text, "fine");
    }
}
