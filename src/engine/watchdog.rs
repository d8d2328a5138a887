//! Reopens an engine that hangs.
//!
//! A computing thread cannot be stopped from outside, so a hung engine is abandoned: its requests
//! fail as crashed, readiness turns false, and a new engine is opened in its place. Results that the
//! old one still produces are dropped.

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

/// Checks per hang limit, and the longest interval between two.
const CHECKS_PER_LIMIT: u32 = 4;
const CHECK_INTERVAL_MAX: Duration = Duration::from_secs(5);
/// Delay before an engine that could not be opened is retried; doubles up to the maximum.
const REOPEN_WAIT: Duration = Duration::from_millis(500);
const REOPEN_WAIT_MAX: Duration = Duration::from_secs(60);

/// Opens the engine again.
pub(super) type Reopen =
    Box<dyn Fn() -> BoxFuture<'static, Result<Arc<dyn Engine>, OpenError>> + Send + Sync>;

/// An engine with a watchdog.
pub(super) struct WatchedEngine {
    info: EngineInfo,
    tier: Tier,
    limit: Duration,
    current: RwLock<Arc<dyn Engine>>,
    /// Counts reopened engines; requests begun on an earlier one fail.
    generation: watch::Sender<u64>,
    is_healthy: AtomicBool,
    reopen: Reopen,
}

impl fmt::Debug for WatchedEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchedEngine")
            .field("current", &self.current)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl WatchedEngine {
    /// Starts a watchdog that runs until the engine is dropped; a step longer than `limit` hangs.
    pub(super) fn start(
        engine: Arc<dyn Engine>,
        tier: Tier,
        limit: Duration,
        reopen: Reopen,
    ) -> Arc<Self> {
        let watched = Arc::new(Self {
            info: engine.info().clone(),
            tier,
            limit,
            current: RwLock::new(engine),
            generation: watch::Sender::new(0),
            is_healthy: AtomicBool::new(true),
            reopen,
        });
        tokio::spawn(watch(Arc::downgrade(&watched), limit));
        watched
    }

    fn current(&self) -> Arc<dyn Engine> {
        let current = self.current.read();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the current engine if it hangs.
    async fn check(&self) {
        let Some(step) = self.current().stalled().filter(|step| *step > self.limit) else {
            return;
        };
        let (tier, seconds) = (self.tier, step.as_secs().min(self.limit.as_secs() + 60));
        tracing::error!(%tier, seconds, "the engine hangs or its thread died; reopening it");
        counter!(ENGINE_RESTARTS, "tier" => tier.as_str()).increment(1);
        self.is_healthy.store(false, Ordering::Release);
        self.generation.send_modify(|count| *count += 1);
        let mut wait = REOPEN_WAIT;
        loop {
            match (self.reopen)().await {
                Ok(engine) => {
                    let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
                    *current = engine;
                    break;
                }
                Err(error) => tracing::error!(%error, "cannot reopen the engine; retrying"),
            }
            sleep(wait).await;
            wait = (wait * 2).min(REOPEN_WAIT_MAX);
        }
        self.is_healthy.store(true, Ordering::Release);
        tracing::info!(%tier, "the engine was reopened");
    }
}

async fn watch(watched: Weak<WatchedEngine>, limit: Duration) {
    let interval = (limit / CHECKS_PER_LIMIT).min(CHECK_INTERVAL_MAX);
    loop {
        sleep(interval).await;
        match watched.upgrade() {
            Some(watched) => watched.check().await,
            None => return,
        }
    }
}

impl Engine for WatchedEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn generate(&self, request: Generate) -> BoxFuture<'static, Result<Generation, EngineError>> {
        let mut lost = self.generation.subscribe();
        if !self.is_healthy.load(Ordering::Acquire) {
            let message = "it hung and is being reopened".to_owned();
            return Box::pin(std::future::ready(Err(EngineError::Unavailable {
                message,
                retry_after_ms: None,
            })));
        }
        let answer = self.current().generate(request);
        Box::pin(async move {
            tokio::select! {
                biased;
                answer = answer => answer,
                Ok(()) = lost.changed() => Err(EngineError::Crashed(
                    "a step hung; the engine was reopened".to_owned(),
                )),
            }
        })
    }

    fn is_ready(&self) -> bool {
        self.is_healthy.load(Ordering::Acquire) && self.current().is_ready()
    }

    fn stalled(&self) -> Option<Duration> {
        self.current().stalled()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::{config::ModelConfig, engine::scripted::ScriptedEngine};

    fn scripted() -> Arc<dyn Engine> {
        let script = "scripted:hang=HANG,echo";
        Arc::new(ScriptedEngine::from_script(script, &ModelConfig::default()).expect("a script"))
    }

    fn request(content: &str) -> Generate {
        Generate::from_prompt(content, 9)
    }

    #[tokio::test]
    async fn a_hung_engine_fails_its_requests_and_is_reopened() {
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
        let engine = WatchedEngine::start(scripted(), Tier::Small, limit, reopen);
        assert!(engine.generate(request("fine")).await.is_ok());
        let other = engine.generate(request("HANG"));
        let (hung, other) = tokio::join!(engine.generate(request("HANG")), other);
        for lost in [hung, other] {
            assert!(matches!(lost, Err(EngineError::Crashed(_))), "{lost:?}");
        }
        assert!(!engine.is_ready(), "it is being reopened");
        let refused = engine.generate(request("fine")).await;
        assert!(
            matches!(refused, Err(EngineError::Unavailable { .. })),
            "{refused:?}"
        );
        while !engine.is_ready() {
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(tries.load(Ordering::Relaxed), 2);
        let answer = engine.generate(request("fine")).await.expect("reopened");
        assert_eq!(answer.answer.text, "fine");
    }
}
