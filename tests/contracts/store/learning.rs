//! Decisions, copies for learning, feedback and weights, kept alike by both databases.

use std::time::Duration;

use promptyard::{
    config::StoreConfig,
    job::{ChatRequest, JobHead, JobId, JobState, RequestLimits, Submission, Tier},
    store::{
        Admission, AdmissionDecision, Admitted, AttemptOutcome, Claimant, Claimed, Decision,
        Feedback, Route, RouteReason, ScopedTarget, Store, StoredWeights,
    },
};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

use crate::{
    contract,
    store::escalation::escalate,
    support::store::{
        LONG, admission, admit_one, answer, claim_as, claimant, committed, head, keyed, now, plain,
        reason, record, run_one, settle_one, settlement, succeed, tenant, with_postgres,
        with_sqlite,
    },
};

fn tagged(prompt: &str) -> ChatRequest {
    let body = format!(r#"{{"prompt":"{prompt}","promptyard":{{"tags":["draft","eu"]}}}}"#);
    Submission::parse(body.as_bytes(), &RequestLimits::default())
        .unwrap()
        .request
}

fn decision() -> Decision {
    Decision {
        score: 0.4,
        threshold: 0.6,
        threshold_base: 0.5,
        scorer: "scorer-7".to_owned(),
        features_version: 3,
        features: json!({"chars": 12.0}),
        target: "share:30%".to_owned(),
        target_scope: "tag:draft".to_owned(),
        reason: RouteReason::Load,
        propensity: 0.9,
        shadow: None,
        shadow_of: None,
    }
}

fn decided(head: JobHead, decision: Decision) -> Admission {
    let tier = Tier::Small;
    let course = AdmissionDecision::Route(Route {
        tier,
        decision,
        cache_key: None,
        pair: None,
        lookup: None,
        deferral: None,
    });
    Admission {
        request: Some(tagged("p")),
        ..admission(head, "p", course)
    }
}

/// A job that was drawn to run on large as well.
fn drawn() -> Admission {
    decided(
        head(),
        Decision {
            shadow: Some(0.25),
            ..decision()
        },
    )
}

/// The copy of a job, as the router makes it.
fn copy_of(first: JobId) -> Admission {
    let decision = Decision {
        reason: RouteReason::Shadow,
        shadow_of: Some(first),
        ..decision()
    };
    let course = AdmissionDecision::Route(Route {
        tier: Tier::Large,
        decision,
        cache_key: None,
        pair: None,
        lookup: None,
        deferral: None,
    });
    admission(head(), "p", course)
}

async fn succeed_on_large(store: &Store, job: JobId, text: &str) {
    let large = Claimant {
        tier: Tier::Large,
        ..claimant("worker-2")
    };
    let Claimed::Run { attempt, .. } = claim_as(store, &large, job, false).await else {
        panic!("must be free")
    };
    committed(
        settle_one(
            store,
            settlement(job, attempt, AttemptOutcome::Succeeded(answer(text))),
        )
        .await,
    );
}

fn word(job: JobId, source: &str, score: f64) -> Feedback {
    Feedback {
        job,
        source: source.to_owned(),
        score,
        comment: Some("because \0 so".to_owned()),
    }
}

/// The statements that docs/learning.md shows.
fn documented() -> Vec<&'static str> {
    let parts = include_str!("../../../docs/learning.md")
        .split("```sql\n")
        .skip(1);
    let ends = parts.map(|part| part.split("```").next().unwrap());
    ends.map(|statement| statement.trim().trim_end_matches(';'))
        .collect()
}

fn weights(version: &str) -> StoredWeights {
    StoredWeights {
        version: version.to_owned(),
        created_at: now(),
        metrics: json!({"apgr": 0.6}),
        weights: vec![0, 1, 255],
    }
}

/// A job whose copy disagreed, one whose copy agreed, and an escalated one, `ticket-17`; two versions of
/// weights, the second in use.
async fn fill(store: &Store) {
    for (chance, text) in [(0.25, "yes"), (0.5, "no")] {
        let decision = Decision {
            shadow: Some(chance),
            ..decision()
        };
        let job = decided(head(), decision);
        let id = job.head.id;
        admit_one(store, job).await;
        succeed(store, id, "no", None).await;
        let copy = copy_of(id);
        admit_one(store, copy.clone()).await;
        succeed_on_large(store, copy.head.id, text).await;
    }
    let ticket = JobHead {
        custom_id: Some("ticket-17".to_owned()),
        ..head()
    };
    let id = ticket.id;
    escalate(store, ticket).await;
    succeed_on_large(store, id, "certainly").await;
    for version in ["w-1", "w-2"] {
        store.put_weights(&weights(version), true).await.unwrap();
    }
}

/// What is asked of a documented statement, and the answer.
const DOCUMENTED: [(&str, &str); 4] = [
    (
        "select count(*) || ' ' || sum(case when large_agrees then 1 else 0 end) || ' '
                || sum(case when custom_id = 'ticket-17' and small_confidence = 0.25 and feedback = 0.5 and tier = 'large'
                            then 1 else 0 end) || ' ' || sum(case when score = 0.4 and threshold = 0.6
                                 and propensity = 0.9 and features_version = 3 then 1 else 0 end)",
        "3 1 1 2",
    ),
    (
        "select count(*) || ' ' || sum(judged) || ' ' || max(tier) || ' '
                || case when max(score_mean) = 0.5 then 'half' else 'odd' end",
        "1 1 large half",
    ),
    // Weights 4 and 2: the one that agreed stands for a third.
    (
        "select sum(pairs) || ' ' || case when abs(max(agree_share) - 1.0 / 3.0) < 1e-9 then 'third' else 'odd' end",
        "2 third",
    ),
    (
        "select count(*) || ' ' || max(case when active then version else '' end) || ' '
                || sum(case when cast(metrics as text) like '%apgr%0.6%' then 1 else 0 end)",
        "2 w-2 2",
    ),
];

/// Runs the documented statements on a connection, the first one twice: it changes what it said.
macro_rules! run_documented {
    ($raw:expr) => {
        let statements = documented();
        assert_eq!(statements.len(), 1 + DOCUMENTED.len());
        for _ in 0..2 {
            let done = sqlx::query(statements[0]).execute(&mut $raw).await.unwrap();
            assert_eq!(done.rows_affected(), 1);
        }
        for (statement, (question, expected)) in statements[1..].iter().zip(DOCUMENTED) {
            let question = format!("{question} from ({statement}) found");
            let found: String = sqlx::query_scalar(AssertSqlSafe(question))
                .fetch_one(&mut $raw)
                .await
                .unwrap();
            assert_eq!(found, expected, "{statement}");
        }
    };
}

/// What docs/learning.md tells analysts to type does what it says on Postgres.
#[tokio::test]
async fn documented_statements_work_on_postgres() {
    with_postgres(async |store: Store, config: StoreConfig| {
        fill(&store).await;
        let mut raw = crate::store::postgres::connection(&config).await;
        run_documented!(raw);
    })
    .await;
}

/// And on SQLite.
#[tokio::test]
async fn documented_statements_work_on_sqlite() {
    with_sqlite(async |store: Store, config: StoreConfig| {
        fill(&store).await;
        let mut raw = SqliteConnection::connect(config.url.expose())
            .await
            .unwrap();
        run_documented!(raw);
    })
    .await;
}

const SOON: Duration = Duration::from_secs(60);

contract! {
    /// A decision comes back whole, for a job that is new and for one that was queued before.
    async fn decisions_are_kept_whole(store: Store) {
        let fresh = decided(head(), decision());
        let queued = decided(keyed("k"), decision());
        admit_one(&store, Admission { decision: AdmissionDecision::Queue, ..queued.clone() }).await;
        for job in [fresh, queued] {
            assert_eq!(admit_one(&store, job.clone()).await, Admitted::Routed);
            let kept = store.decision(job.head.id).await.unwrap().unwrap();
            let wanted = decision();
            assert_eq!(kept.score, Some(wanted.score));
            assert_eq!(kept.threshold, Some(wanted.threshold));
            assert_eq!(kept.threshold_base, Some(wanted.threshold_base));
            assert_eq!(kept.scorer.as_deref(), Some("scorer-7"));
            assert_eq!(kept.features_version, Some(3));
            assert_eq!(kept.features, Some(wanted.features));
            assert_eq!(kept.target.as_deref(), Some("share:30%"));
            assert_eq!(kept.target_scope.as_deref(), Some("tag:draft"));
            assert_eq!(kept.route_reason.as_deref(), Some("load"));
            assert_eq!(kept.propensity, Some(0.9));
            assert_eq!((kept.shadow, kept.shadow_of), (None, None));
        }
        assert_eq!(store.decision(JobId::now()).await.unwrap(), None);
    }

    /// What a restarted router learns from: its own choices by the same scorer, the oldest first.
    async fn past_decisions_are_those_of_the_router(store: Store) {
        let scored = |score, reason| Decision { score, reason, ..decision() };
        let other = Decision { scorer: "another".to_owned(), ..decision() };
        for decision in [
            scored(0.1, RouteReason::Score),
            scored(0.2, RouteReason::Producer),
            scored(0.3, RouteReason::Rule),
            scored(0.4, RouteReason::Load),
            other,
            scored(0.5, RouteReason::Explore),
        ] {
            admit_one(&store, decided(head(), decision)).await;
        }
        let past = store.past_decisions("scorer-7", 100).await.unwrap();
        let scores: Vec<_> = past.iter().map(|one| one.score).collect();
        assert_eq!(scores, [0.1, 0.4, 0.5]);
        assert_eq!((past[0].tenant.as_str(), past[0].tags.join(" ")), ("default", "draft eu".to_owned()));
        assert_eq!(store.past_decisions("scorer-7", 2).await.unwrap().len(), 1, "the last two jobs");
    }

    /// A drawn job gets a copy when small has answered it, once; the copy is nobody's result.
    async fn a_shadow_copy_is_made_once_and_counts_for_no_tenant(store: Store) {
        let job = drawn();
        let id = job.head.id;
        admit_one(&store, job).await;
        assert_eq!(store.due_shadows(9, SOON).await.unwrap(), [], "not before its answer");
        succeed(&store, id, "yes \n", None).await;
        let due = store.due_shadows(9, SOON).await.unwrap();
        assert_eq!(due.iter().map(|job| job.head.id).collect::<Vec<_>>(), [id]);
        assert_eq!(due[0].request, tagged("p"));
        assert_eq!(store.close_shadows().await.unwrap(), 0, "no copy is under way");

        let copy = copy_of(id);
        assert_eq!(admit_one(&store, copy.clone()).await, Admitted::Routed);
        assert!(matches!(admit_one(&store, copy.clone()).await, Admitted::Known(_)));
        assert_eq!(store.due_shadows(9, SOON).await.unwrap(), []);
        assert_eq!(store.close_shadows().await.unwrap(), 1);
        assert_eq!(store.decision(id).await.unwrap().unwrap().shadow, Some(copy.head.id));
        // Its message may have been lost on the way.
        assert_eq!(store.due_shadows(9, Duration::ZERO).await.unwrap().len(), 1);

        succeed_on_large(&store, copy.head.id, " yes").await;
        assert_eq!(store.close_shadows().await.unwrap(), 0);
        assert_eq!(store.due_shadows(9, Duration::ZERO).await.unwrap(), []);
        let pairs = store.pairs(9, true).await.unwrap();
        assert_eq!(pairs.len(), 1);
        assert_eq!((pairs[0].job, pairs[0].agrees), (id, true));
        // Sent to small with .9, drawn with .25.
        assert!((pairs[0].propensity - 0.225).abs() < 1e-12, "{pairs:?}");
        assert_eq!(pairs[0].request, Some(tagged("p")));
        assert_eq!((pairs[0].small_feedback, pairs[0].large_feedback), (None, None));
        let finished = store.finished(&Default::default(), 9).await.unwrap();
        assert_eq!(finished.iter().map(|one| one.id).collect::<Vec<_>>(), [id]);
        assert_eq!(record(&store, id).await.attempts, 1);
    }

    /// A drawn job that small did not answer itself wants no copy.
    async fn only_small_answers_are_shadowed(store: Store) {
        let jobs = [drawn(), drawn(), plain(head())];
        store.admit(&jobs, LONG).await.unwrap();
        let [failing, escalating, _] = jobs.each_ref().map(|job| job.head.id);
        let attempt = run_one(&store, failing).await;
        settle_one(&store, settlement(failing, attempt, AttemptOutcome::Failed(reason("unservable")))).await;
        let attempt = run_one(&store, escalating).await;
        let escalation = AttemptOutcome::Escalate { to: Tier::Large, reason: reason("context_length_exceeded"), answer: None };
        settle_one(&store, settlement(escalating, attempt, escalation)).await;
        succeed_on_large(&store, escalating, "yes").await;
        assert_eq!(store.due_shadows(9, SOON).await.unwrap(), []);
        assert_eq!(store.close_shadows().await.unwrap(), 0);
        assert_eq!(store.pairs(9, false).await.unwrap(), []);
    }

    /// A source's later word takes the place of its earlier one; other tenants' jobs are not there.
    async fn feedback_is_stored_once_per_source(store: Store) {
        let job = plain(JobHead { tenant: tenant("acme"), ..head() });
        let id = job.head.id;
        admit_one(&store, job).await;
        succeed(&store, id, "yes", None).await;
        let acme = tenant("acme");
        let words = [word(id, "api", 0.2), word(id, "expect", 1.0), word(JobId::now(), "api", 1.0), word(id, "api", 0.4)];
        assert_eq!(store.record_feedback(&acme, &words).await.unwrap(), [true, true, false, true]);
        assert_eq!(store.record_feedback(&acme, &words[3..]).await.unwrap(), [true]);
        assert_eq!(store.record_feedback(&tenant("other"), &words[..1]).await.unwrap(), [false]);
        let kept = store.decision(id).await.unwrap().unwrap().feedback;
        assert_eq!(kept, [("api".to_owned(), 0.4), ("expect".to_owned(), 1.0)]);
        let broken = store.record_feedback(&acme, &[word(id, "api", f64::NAN)]).await;
        assert!(broken.is_err(), "the database itself refuses what is no number");
        assert_eq!(record(&store, id).await.state, JobState::Succeeded);
    }

    /// Words about both answers of a pair stand beside it.
    async fn pairs_carry_feedback(store: Store) {
        let job = drawn();
        let id = job.head.id;
        admit_one(&store, job).await;
        succeed(&store, id, "no", None).await;
        let copy = copy_of(id);
        admit_one(&store, copy.clone()).await;
        succeed_on_large(&store, copy.head.id, "yes").await;
        let default = promptyard::job::Tenant::default();
        let words = [word(id, "expect", 0.0), word(id, "review", 0.5), word(copy.head.id, "review", 1.0)];
        store.record_feedback(&default, &words).await.unwrap();
        let pair = store.pairs(9, false).await.unwrap().remove(0);
        assert!(!pair.agrees && pair.is_exact && pair.request.is_none());
        assert_eq!((pair.small_feedback, pair.large_feedback), (Some(0.25), Some(1.0)));
        assert_eq!((pair.scorer.as_deref(), pair.score), (Some("scorer-7"), Some(0.4)));
    }

    /// A job that was escalated teaches with both answers, but tells no quality.
    async fn escalated_jobs_are_for_training(store: Store) {
        let jobs = [(head(), "certainly"), (head(), "perhaps ")];
        for (head, text) in &jobs {
            escalate(&store, head.clone()).await;
            succeed_on_large(&store, head.id, text).await;
        }
        let [differs, agrees] = [jobs[0].0.id, jobs[1].0.id];
        let default = promptyard::job::Tenant::default();
        store.record_feedback(&default, &[word(differs, "expect", 1.0)]).await.unwrap();
        assert_eq!(store.pairs(9, false).await.unwrap(), []);
        let pairs = store.pairs(9, true).await.unwrap();
        assert_eq!(pairs.len(), 2);
        let of = |id| pairs.iter().find(|pair| pair.job == id).unwrap();
        assert!(!of(differs).agrees && of(agrees).agrees);
        // Needed no copy: the probability of its decision alone.
        assert_eq!(of(differs).propensity, 1.0);
        assert_eq!((of(differs).small_feedback, of(differs).large_feedback), (None, Some(1.0)));
        assert!(!of(differs).is_exact && of(differs).request.is_some());
        assert_eq!(store.pairs(1, true).await.unwrap().len(), 1);
    }

    /// Costs are means over what was computed lately, by tier.
    async fn costs_are_measured_by_tier(store: Store) {
        assert_eq!(store.tier_costs(100).await.unwrap(), []);
        for _ in 0..3 {
            let job = plain(head());
            let id = job.head.id;
            admit_one(&store, job).await;
            succeed(&store, id, "yes", None).await;
        }
        let costs = store.tier_costs(100).await.unwrap();
        assert_eq!(costs.len(), 1);
        assert_eq!((costs[0].tier, costs[0].jobs), (Tier::Small, 3));
        assert_eq!((costs[0].prompt_tokens_mean, costs[0].completion_tokens_mean), (20.0, 7.0));
        assert!((0.0..60.0).contains(&costs[0].seconds_mean), "{costs:?}");
    }

    /// One version is in use at most; storing another without promoting it changes nothing.
    async fn one_version_of_the_weights_is_active(store: Store) {
        assert_eq!(store.active_weights().await.unwrap(), None);
        let (first, second) = (weights("w-1"), weights("w-2"));
        store.put_weights(&first, false).await.unwrap();
        assert_eq!(store.active_weights().await.unwrap(), None);
        store.put_weights(&first, true).await.unwrap();
        store.put_weights(&second, false).await.unwrap();
        store.put_weights(&first, false).await.unwrap();
        assert_eq!(store.active_weights().await.unwrap(), Some(first));
        store.put_weights(&second, true).await.unwrap();
        assert_eq!(store.active_weights().await.unwrap(), Some(second));
    }

    /// Targets can be set, changed and unset.
    async fn targets_are_set_while_routers_run(store: Store) {
        let kept = async || {
            let targets = store.route_targets().await.unwrap();
            let shown = |one: &ScopedTarget| format!("{} {}", one.scope, one.target);
            targets.iter().map(shown).collect::<Vec<_>>()
        };
        assert_eq!(kept().await, [""; 0]);
        let before = now();
        for (scope, target) in [
            ("tenant:acme", "share:5%"),
            ("all", "latency:2s"),
            ("tag:a:b/c", "quality:99.5%"),
            ("tenant:acme", "threshold:0.25"),
        ] {
            let (scope, target) = (scope.parse().unwrap(), target.parse().unwrap());
            store.set_route_target(&scope, target).await.unwrap();
        }
        let all = ["all latency:2000ms", "tag:a:b/c quality:99.5%", "tenant:acme threshold:0.25"];
        assert_eq!(kept().await, all);
        let targets = store.route_targets().await.unwrap();
        assert!(targets.iter().all(|one| one.changed_at >= before), "{targets:?}");
        let acme = "tenant:acme".parse().unwrap();
        assert!(store.unset_route_target(&acme).await.unwrap());
        assert!(!store.unset_route_target(&acme).await.unwrap());
        assert_eq!(kept().await, all[..2]);
    }
}
