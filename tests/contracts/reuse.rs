//! The law of exact reuse, through router and database: a kept answer is given to the requests that must
//! be answered alike, and to no other, across tenants, models, revisions and parameters.

use std::{cell::Cell, time::Duration};

use chrono::Utc;
use promptyard::{
    broker::Envelope,
    config::{RouterConfig, SecretUrl, StoreConfig},
    job::{
        Answer, AnswerSource, ContextSavings, FinishReason, Priority, RequestLimits, Tier, Usage,
    },
    router::{
        intake::{self, Intake, IntakeContext},
        model_registry::ServedModels,
        policy::Policy,
    },
    scoring::scorer::Scorer,
    store::{
        Admission, AdmissionDecision, Admitted, AttemptOutcome, Claim, Claimant, Claimed,
        Settlement, Store, WorkerRecord,
    },
};
use proptest::{
    prelude::*,
    sample::select,
    test_runner::{Config, TestRunner},
};
use serde_json::{Map, Value, json};

const LEASE: Duration = Duration::from_secs(600);

/// What a producer may ask and a fleet may serve, from small sets so that two often agree.
#[derive(Clone, Debug)]
struct Asked {
    tenant: &'static str,
    revisions: [&'static str; 2],
    model: &'static str,
    escalate: Option<bool>,
    system: Option<&'static str>,
    user: &'static str,
    earlier: bool,
    temperature: Option<f64>,
    seed: Option<u64>,
    top_p: Option<f64>,
    max_tokens: Option<u32>,
    stop: &'static [&'static str],
    cache: Option<&'static str>,
    context: Option<&'static str>,
    logprobs: bool,
    penalty: Option<f64>,
    /// What cannot matter: the fields' order, space, and all that is no part of the question.
    dress: Dress,
}

#[derive(Clone, Debug)]
struct Dress {
    backwards: bool,
    pretty: bool,
    key: Option<&'static str>,
    deadline_ms: Option<u64>,
    tags: bool,
    user: bool,
    high: bool,
}

fn asked() -> impl Strategy<Value = Asked> {
    let dress = (
        any::<(bool, bool, bool, bool, bool)>(),
        select(vec![None, Some("k")]),
        select(vec![None, Some(600_000), Some(900_000)]),
    )
        .prop_map(
            |((backwards, pretty, tags, user, high), key, deadline_ms)| Dress {
                backwards,
                pretty,
                key,
                deadline_ms,
                tags,
                user,
                high,
            },
        );
    let who = (
        select(vec!["a", "b"]),
        select(vec![["1", "1"], ["2", "1"], ["1", "2"]]),
        select(vec!["auto", "small", "large", "tiny"]),
        select(vec![None, Some(true), Some(false)]),
    );
    let what = (
        select(vec![None, Some("be brief"), Some("be kind")]),
        select(vec!["why?", "why ?", "Why?"]),
        any::<bool>(),
    );
    let how = (
        select(vec![None, Some(0.0), Some(0.5)]),
        select(vec![None, Some(1), Some(2)]),
        select(vec![None, Some(0.5)]),
        select(vec![None, Some(9)]),
        select(vec![&[][..], &["x"], &["x", "y"], &["y", "x", "x"]]),
        select(vec![None, Some("exact"), Some("off")]),
        select(vec![None, Some("keep"), Some("lossless")]),
        prop::bool::weighted(0.2),
        select(vec![None, Some(0.0), Some(1.0)]),
    );
    (who, what, how, dress).prop_map(|(who, what, how, dress)| Asked {
        tenant: who.0,
        revisions: who.1,
        model: who.2,
        escalate: who.3,
        system: what.0,
        user: what.1,
        earlier: what.2,
        temperature: how.0,
        seed: how.1,
        top_p: how.2,
        max_tokens: how.3,
        stop: how.4,
        cache: how.5,
        context: how.6,
        logprobs: how.7,
        penalty: how.8,
        dress,
    })
}

impl Asked {
    /// All that the answer may depend on, told without the code under test; `None` where no answer may be
    /// reused.
    fn meaning(&self) -> Option<String> {
        let is_greedy = self.temperature.unwrap_or(0.0) == 0.0;
        if self.cache == Some("off") || !is_greedy && self.seed.is_none() {
            return None;
        }
        let models = match (self.model, self.escalate) {
            ("auto", None | Some(true)) => format!("pair {:?}", self.revisions),
            // "tiny" is the small model's name.
            ("auto" | "small" | "tiny", _) => format!("small {}", self.revisions[0]),
            _ => format!("large {}", self.revisions[1]),
        };
        let mut stop = self.stop.to_vec();
        stop.sort_unstable();
        stop.dedup();
        let chance = (!is_greedy).then(|| (self.temperature, self.seed, self.top_p.unwrap_or(1.0)));
        Some(format!(
            "{} {models} {:?} {} {} {chance:?} {:?} {stop:?} {} {} {}",
            self.tenant,
            self.system,
            self.user,
            self.earlier,
            self.max_tokens,
            self.context.unwrap_or("keep"),
            self.logprobs,
            self.penalty.unwrap_or(0.0),
        ))
    }

    fn body(&self) -> String {
        let mut messages = Vec::new();
        messages.extend(
            self.system
                .map(|text| json!({"role": "system", "content": text})),
        );
        if self.earlier {
            messages.push(json!({"role": "user", "content": "hello"}));
            messages.push(json!({"role": "assistant", "content": "hello"}));
        }
        messages.push(json!({"role": "user", "content": self.user}));
        let options = fields(
            [
                ("tenant", Some(json!(self.tenant))),
                ("escalate", self.escalate.map(Value::from)),
                ("cache", self.cache.map(Value::from)),
                ("context", self.context.map(Value::from)),
                ("deadline_ms", self.dress.deadline_ms.map(Value::from)),
                ("tags", self.dress.tags.then(|| json!(["eu"]))),
            ],
            self.dress.backwards,
        );
        let body = fields(
            [
                ("model", Some(json!(self.model))),
                ("messages", Some(json!(messages))),
                ("temperature", self.temperature.map(Value::from)),
                ("seed", self.seed.map(Value::from)),
                ("top_p", self.top_p.map(Value::from)),
                ("max_completion_tokens", self.max_tokens.map(Value::from)),
                ("stop", (!self.stop.is_empty()).then(|| json!(self.stop))),
                ("logprobs", self.logprobs.then_some(json!(true))),
                ("presence_penalty", self.penalty.map(Value::from)),
                ("user", self.dress.user.then(|| json!("u1"))),
                ("promptyard", Some(options)),
            ],
            self.dress.backwards,
        );
        match self.dress.pretty {
            true => serde_json::to_string_pretty(&body).unwrap(),
            false => body.to_string(),
        }
    }

    fn workers(&self) -> Vec<WorkerRecord> {
        let worker = |tier, model: &str, revision: &str| WorkerRecord {
            worker: format!("{tier}"),
            tier,
            model: model.to_owned(),
            revision: revision.to_owned(),
            batch_max: 1,
            context_tokens: None,
            running: 0,
            draining: false,
            takes_affinity_queues: false,
            lease_until: Utc::now(),
            seen_at: Utc::now(),
        };
        vec![
            worker(Tier::Small, "tiny", self.revisions[0]),
            worker(Tier::Large, "big", self.revisions[1]),
        ]
    }

    fn admission(&self, policy: &Policy) -> Admission {
        let envelope = Envelope {
            message_id: self
                .dress
                .key
                .map(|key| format!("{key}-{}", uuid::Uuid::now_v7())),
            priority: if self.dress.high {
                Priority::High
            } else {
                Priority::Normal
            },
            ..Envelope::default()
        };
        let context = IntakeContext {
            limits: &RequestLimits::default(),
            policy,
            models: &ServedModels::of(self.workers()),
            semantic: None,
            now: Utc::now(),
        };
        match intake::read(&envelope, self.body().as_bytes(), context) {
            Intake::Admit(admission) => *admission,
            Intake::Forward(_) => panic!("a producer's message is admitted"),
        }
    }
}

fn fields<const N: usize>(fields: [(&str, Option<Value>); N], backwards: bool) -> Value {
    let mut fields: Vec<_> = fields
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect();
    if backwards {
        fields.reverse();
    }
    Value::Object(Map::from_iter(fields))
}

/// Admits a job and answers it, if a model is to run for it; returns how it came by its answer.
async fn answer(store: &Store, admission: Admission) -> AnswerSource {
    let job = admission.head.id;
    let AdmissionDecision::Route(route) = &admission.decision else {
        panic!("{admission:?}")
    };
    let (tier, cache_key) = (route.tier, route.cache_key);
    match store
        .admit(std::slice::from_ref(&admission), LEASE)
        .await
        .unwrap()
        .remove(0)
    {
        Admitted::Ended(record) => return record.source.unwrap(),
        Admitted::Routed => {}
        other => panic!("{other:?}"),
    }
    let claimant = Claimant {
        worker: "w".to_owned(),
        tier,
        model: "m".to_owned(),
        revision: "r".to_owned(),
        attempts_max: 4,
        lease: LEASE,
    };
    let claims = [Claim {
        job,
        redelivered: false,
    }];
    let Claimed::Run { attempt, .. } = store.claim(&claimant, &claims).await.unwrap().remove(0)
    else {
        panic!("must run")
    };
    let now = Utc::now();
    let settlement = Settlement {
        job,
        attempt,
        outcome: AttemptOutcome::Succeeded(Answer {
            text: "so".to_owned(),
            finish_reason: FinishReason::Stop,
            usage: Usage::default(),
            model: "m".to_owned(),
            revision: "r".to_owned(),
            mean_logprob: None,
            logprobs: None,
        }),
        started_at: now,
        first_token_at: None,
        finished_at: now,
        cache_key,
        saved: ContextSavings::default(),
        reusable: true,
        confidence: None,
        signals: None,
    };
    store.settle(&[settlement], LEASE).await.unwrap();
    AnswerSource::Computed
}

/// Every request of a sequence is answered from the cache exactly if one before it meant the same.
#[test]
fn only_equivalent_requests_reuse_an_answer() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let policy = Policy::new(
        &RouterConfig {
            threshold: 1.0,
            ..RouterConfig::default()
        },
        Scorer::bundled(),
    );
    let url = format!("sqlite:{}", folder.path().join("ledger.db").display());
    let config = StoreConfig {
        url: SecretUrl::new(url),
        ..StoreConfig::default()
    };
    let store = runtime.block_on(async {
        let store = Store::connect(&config).await.unwrap();
        store.migrate().await.unwrap();
        store
    });
    let (hits, misses) = (Cell::new(0), Cell::new(0));
    let near = (asked(), prop::collection::vec(asked(), 1..6), any::<u32>()).prop_map(
        |(base, others, mix)| {
            // Others differ from the first in few things, so that a field left out of the key is found.
            let blend = |(at, other): (usize, &Asked)| {
                let mut one = base.clone();
                match (mix as usize / 7 + at * 5) % 18 {
                    0 => one.tenant = other.tenant,
                    1 => one.revisions = other.revisions,
                    2 => one.model = other.model,
                    3 => one.escalate = other.escalate,
                    4 => one.system = other.system,
                    5 => one.user = other.user,
                    6 => one.earlier = other.earlier,
                    7 => one.temperature = other.temperature,
                    8 => one.seed = other.seed,
                    9 => one.top_p = other.top_p,
                    10 => one.max_tokens = other.max_tokens,
                    11 => one.stop = other.stop,
                    12 => one.cache = other.cache,
                    13 => one.context = other.context,
                    14 => one.logprobs = other.logprobs,
                    15 => one.penalty = other.penalty,
                    _ => one = other.clone(),
                }
                one.dress = other.dress.clone();
                one
            };
            let mut sequence = vec![base.clone()];
            sequence.extend(others.iter().enumerate().map(blend));
            sequence
        },
    );
    let mut runner = TestRunner::new(Config {
        cases: 300,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = runner.run(&near, |sequence| {
        runtime.block_on(async {
            store.drop_cached(&Default::default()).await.unwrap();
            let mut known = Vec::new();
            for one in &sequence {
                let meaning = one.meaning();
                let is_known = meaning
                    .as_ref()
                    .is_some_and(|meaning| known.contains(meaning));
                let source = answer(&store, one.admission(&policy)).await;
                let expected = if is_known {
                    AnswerSource::Cache
                } else {
                    AnswerSource::Computed
                };
                prop_assert_eq!(source, expected, "{:?} in {:?}", one, &sequence);
                known.extend(meaning);
                let count = if is_known { &hits } else { &misses };
                count.set(count.get() + 1);
            }
            Ok(())
        })
    });
    outcome.unwrap();
    let (hits, misses) = (hits.get(), misses.get());
    assert!(
        hits > 200 && misses > 200,
        "{hits} hits, {misses} misses: one side is hardly tested"
    );
}
