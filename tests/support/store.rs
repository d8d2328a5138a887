//! A fresh database of either kind for each test, and builders for test values.

use std::{panic::AssertUnwindSafe, time::Duration};

use chrono::{DateTime, SubsecRound, Utc};
use futures::FutureExt;
use promptyard::{
    config::{SecretUrl, StoreConfig},
    job::{
        Answer, CacheKey, ChatRequest, ContextSavings, FinishReason, JobHead, JobId, JobRecord,
        Likelihood, Reason, RequestLimits, Submission, Tenant, Tier, TokenLogprob, Usage,
    },
    store::{
        Admission, AdmissionDecision, Admitted, AttemptOutcome, Claim, Claimant, Claimed, Decision,
        Heartbeat, Route, Settled, Settlement, Store,
    },
};
use serde_json::json;
use uuid::Uuid;

use crate::support::servers::database_url;

/// Long enough that nothing runs out during a test.
pub const LONG: Duration = Duration::from_secs(600);

pub fn postgres_config() -> StoreConfig {
    StoreConfig {
        url: SecretUrl::new(database_url()),
        schema: format!("test_{}", Uuid::now_v7().simple()),
        connections_max: 4,
        ..StoreConfig::default()
    }
}

/// Runs a test on a migrated database in a schema of its own and drops it, even after a panic.
pub async fn with_postgres<F: Future<Output = ()>>(test: impl FnOnce(Store, StoreConfig) -> F) {
    let config = postgres_config();
    let store = Store::connect(&config)
        .await
        .expect("the tests need Postgres: set PROMPTYARD_TEST_DATABASE_URL or start one locally");
    let outcome = AssertUnwindSafe(async {
        store.migrate().await.unwrap();
        test(store.clone(), config).await;
    })
    .catch_unwind()
    .await;
    store.drop_all().await.unwrap();
    store.close().await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a test on a migrated database in a file of its own, in a folder that is yet to be made.
pub async fn with_sqlite<F: Future<Output = ()>>(test: impl FnOnce(Store, StoreConfig) -> F) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made/for/it/ledger.db");
    let config = StoreConfig {
        url: SecretUrl::new(format!("sqlite:{}", path.display())),
        connections_max: 4,
        ..StoreConfig::default()
    };
    let store = Store::connect(&config).await.unwrap();
    store.migrate().await.unwrap();
    test(store.clone(), config).await;
    store.close().await;
}

/// Declares tests that run against both databases.
#[macro_export]
macro_rules! contract {
    ($($(#[doc = $intent:literal])+ async fn $name:ident($store:ident: $type:ty) $body:block)+) => {$(
        async fn $name($store: $type, _: promptyard::config::StoreConfig) $body

        mod $name {
            $(#[doc = $intent])+
            #[tokio::test]
            async fn postgres() {
                $crate::support::store::with_postgres(super::$name).await;
            }

            $(#[doc = $intent])+
            #[tokio::test]
            async fn sqlite() {
                $crate::support::store::with_sqlite(super::$name).await;
            }
        }
    )+};
}

pub fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6)
}

pub fn tenant(name: &str) -> Tenant {
    name.parse().unwrap()
}

pub fn head() -> JobHead {
    JobHead {
        submitted_at: now(),
        ..JobHead::new(Tenant::default())
    }
}

pub fn keyed(key: &str) -> JobHead {
    JobHead {
        key: Some(key.to_owned()),
        ..head()
    }
}

pub fn request(prompt: &str) -> ChatRequest {
    Submission::from_prompt(prompt, &RequestLimits::default())
        .unwrap()
        .request
}

/// A key that stands for a prompt.
pub fn cache_key(prompt: &str) -> CacheKey {
    CacheKey(*blake3::hash(prompt.as_bytes()).as_bytes())
}

pub fn route(tier: Tier, cache_key: Option<CacheKey>) -> AdmissionDecision {
    AdmissionDecision::Route(Route {
        tier,
        decision: Decision {
            score: 0.25,
            threshold: 0.5,
            scorer: "length-1".to_owned(),
            features: json!({"prompt_characters": 12, "questions": 1}),
            propensity: 1.0,
            ..Decision::default()
        },
        cache_key,
        pair: None,
        lookup: None,
        deferral: None,
    })
}

pub fn admission(head: JobHead, prompt: &str, decision: AdmissionDecision) -> Admission {
    Admission {
        head,
        request: Some(request(prompt)),
        digest: *blake3::hash(prompt.as_bytes()).as_bytes(),
        decision,
    }
}

/// A job for the small tier that neither reuses answers nor gives its own to others.
pub fn plain(head: JobHead) -> Admission {
    admission(head, "a prompt", route(Tier::Small, None))
}

/// A job for the small tier that may be answered from the cache.
pub fn cached(prompt: &str) -> Admission {
    admission(head(), prompt, route(Tier::Small, Some(cache_key(prompt))))
}

pub fn reason(code: &str) -> Reason {
    Reason::new(code, format!("a sentence about {code}"))
}

/// An answer; those of odd length carry log-probabilities, so that every test covers both kinds.
pub fn answer(text: &str) -> Answer {
    let likelihood = |token: &str, logprob| Likelihood {
        token: token.to_owned(),
        logprob,
        bytes: Some(token.as_bytes().to_vec()),
    };
    let token = TokenLogprob {
        chosen: likelihood("a\0\u{fdd0}\"", -0.1),
        top_logprobs: vec![likelihood("b", -1.0e-9), likelihood("\u{fffd}", -99.5)],
    };
    Answer {
        text: text.to_owned(),
        finish_reason: FinishReason::Stop,
        usage: Usage {
            prompt_tokens: 20,
            prompt_tokens_computed: 15,
            completion_tokens: 7,
        },
        model: "tiny".to_owned(),
        revision: "r1".to_owned(),
        mean_logprob: Some(-0.5),
        logprobs: (text.len() % 2 == 1).then(|| vec![token; 2]),
    }
}

pub fn claimant(worker: &str) -> Claimant {
    Claimant {
        worker: worker.to_owned(),
        tier: Tier::Small,
        model: "tiny".to_owned(),
        revision: "r1".to_owned(),
        attempts_max: 3,
        lease: LONG,
    }
}

pub fn heartbeat(claimant: Claimant) -> Heartbeat {
    Heartbeat {
        claimant,
        batch_max: 16,
        context_tokens: Some(2048),
        running: 2,
        draining: false,
        takes_affinity_queues: true,
    }
}

pub fn settlement(job: JobId, attempt: u32, outcome: AttemptOutcome) -> Settlement {
    Settlement {
        job,
        attempt,
        outcome,
        started_at: now(),
        first_token_at: Some(now()),
        finished_at: now(),
        cache_key: None,
        saved: ContextSavings::default(),
        reusable: true,
        confidence: None,
        signals: None,
    }
}

pub async fn admit_one(store: &Store, admission: Admission) -> Admitted {
    let mut outcomes = store.admit(&[admission], LONG).await.unwrap();
    assert_eq!(outcomes.len(), 1);
    outcomes.remove(0)
}

pub async fn claim_one(store: &Store, job: JobId, redelivered: bool) -> Claimed {
    claim_as(store, &claimant("worker-1"), job, redelivered).await
}

pub async fn claim_as(
    store: &Store,
    claimant: &Claimant,
    job: JobId,
    redelivered: bool,
) -> Claimed {
    let claims = [Claim { job, redelivered }];
    let mut outcomes = store.claim(claimant, &claims).await.unwrap();
    assert_eq!(outcomes.len(), 1);
    outcomes.remove(0)
}

/// Claims a job that must be free; returns the attempt.
pub async fn run_one(store: &Store, job: JobId) -> u32 {
    match claim_one(store, job, false).await {
        Claimed::Run { attempt, .. } => attempt,
        other => panic!("expected to run {job}, got {other:?}"),
    }
}

pub async fn settle_one(store: &Store, settlement: Settlement) -> Settled {
    let mut outcomes = store.settle(&[settlement], LONG).await.unwrap();
    assert_eq!(outcomes.len(), 1);
    outcomes.remove(0)
}

/// What was committed; fails when the settlement was fenced.
pub fn committed(settled: Settled) -> (JobRecord, Vec<JobRecord>) {
    match settled {
        Settled::Committed { record, shared } => (*record, shared),
        Settled::Fenced => panic!("the settlement was fenced"),
    }
}

/// Runs a job that waits to be run and gives it an answer.
pub async fn succeed(
    store: &Store,
    job: JobId,
    text: &str,
    key: Option<CacheKey>,
) -> (JobRecord, Vec<JobRecord>) {
    let attempt = run_one(store, job).await;
    let settled = settle_one(
        store,
        Settlement {
            cache_key: key,
            ..settlement(job, attempt, AttemptOutcome::Succeeded(answer(text)))
        },
    );
    committed(settled.await)
}

pub async fn record(store: &Store, job: JobId) -> JobRecord {
    let mut records = store.records(&[job]).await.unwrap();
    assert_eq!(records.len(), 1, "{job} is one row");
    records.remove(0)
}
