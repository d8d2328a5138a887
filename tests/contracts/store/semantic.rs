//! Semantic reuse: stored questions, hits and rechecks.

use std::time::Duration;

use chrono::{DateTime, Utc};
use promptyard::{
    job::{AnswerSource, JobId, JobState, Tier},
    store::{
        Admission, AdmissionDecision, Admitted, AttemptOutcome, Decision, Lookup, NearOutcome,
        NearQuestion, RecheckOutcome, Reused, Route, RouteReason, Settlement, Store,
    },
};

use crate::{
    contract,
    support::store::{
        LONG, admission, admit_one, answer, cache_key, cached, committed, head, reason, record,
        run_one, settle_one, settlement, succeed,
    },
};

const EMBEDDER: &str = "encoder-1";

fn route_of(course: &mut AdmissionDecision) -> &mut Route {
    match course {
        AdmissionDecision::Route(route) => route,
        other => panic!("no route: {other:?}"),
    }
}

/// A question of a scope with a vector, and what was found to be near it.
fn asking(question: &str, nearest: Option<NearQuestion>) -> Admission {
    let mut admission = cached(question);
    route_of(&mut admission.decision).lookup = Some(Box::new(Lookup {
        scope: [7; 32],
        question: question.to_owned(),
        embedder: EMBEDDER.to_owned(),
        embedding: vec![0.6, 0.8],
        cosine_min: 0.9,
        nearest,
    }));
    admission
}

fn near(question: &str, outcome: NearOutcome, recheck: Option<f64>) -> Option<NearQuestion> {
    Some(NearQuestion {
        entry: cache_key(question),
        question: question.to_owned(),
        cosine: 0.95,
        cosine_min: 0.9,
        outcome,
        recheck,
    })
}

async fn known(store: &Store) -> Vec<String> {
    let known = store
        .known_questions(EMBEDDER, DateTime::<Utc>::UNIX_EPOCH, 100)
        .await
        .unwrap();
    known
        .into_iter()
        .map(|question| question.question)
        .collect()
}

/// A question that was asked and answered; returns the job.
async fn answered(store: &Store, question: &str) -> JobId {
    let first = asking(question, None);
    assert_eq!(admit_one(store, first.clone()).await, Admitted::Routed);
    succeed(store, first.head.id, "because", Some(cache_key(question))).await;
    first.head.id
}

/// A job that was given another question's answer and is drawn to be run again.
async fn drawn_hit(store: &Store) -> JobId {
    answered(store, "why?\0").await;
    let hit = asking("how come?", near("why?\0", NearOutcome::Hit, Some(0.5)));
    let Admitted::Ended(_) = admit_one(store, hit.clone()).await else {
        panic!("a hit")
    };
    hit.head.id
}

fn copy_of(first: JobId) -> Admission {
    let mut copy = admission(
        head(),
        "how come?",
        crate::support::store::route(Tier::Small, None),
    );
    route_of(&mut copy.decision).decision = Decision {
        reason: RouteReason::Shadow,
        shadow_of: Some(first),
        ..Decision::default()
    };
    copy
}

contract! {
    /// A question is known from when it has an answer, with all that was told of it; questions of another
    /// encoder, and of jobs that ask for none, are not.
    async fn questions_are_known_once_answered(store: Store) {
        let first = asking("why?\0", None);
        admit_one(&store, first.clone()).await;
        admit_one(&store, cached("unasked")).await;
        assert_eq!(known(&store).await, Vec::<String>::new());
        let before = Utc::now();
        succeed(&store, first.head.id, "because", Some(cache_key("why?\0"))).await;
        let questions = store.known_questions(EMBEDDER, before - LONG, 100).await.unwrap();
        assert_eq!(questions.len(), 1);
        let question = &questions[0];
        assert_eq!(question.entry, cache_key("why?\0"));
        assert_eq!(question.scope, [7; 32]);
        assert_eq!(question.question, "why?\0");
        assert_eq!(question.embedding, [0.6, 0.8]);
        assert_eq!(question.cosine_min, 0.9);
        assert!(question.changed_at <= Utc::now() && question.expires_at > Utc::now());
        assert!(store.known_questions("other", before - LONG, 100).await.unwrap().is_empty());
        let later = question.changed_at + Duration::from_secs(1);
        assert!(store.known_questions(EMBEDDER, later, 100).await.unwrap().is_empty());
    }

    /// A near question's answer is given at once, and the row says whose it is and how near.
    async fn hits_name_their_source(store: Store) {
        let first = answered(&store, "why?").await;
        let hit = asking("how come?", near("why?", NearOutcome::Hit, None));
        let Admitted::Ended(given) = admit_one(&store, hit.clone()).await else { panic!("a hit") };
        assert_eq!(given.state, JobState::Succeeded);
        assert_eq!(given.source, Some(AnswerSource::Semantic));
        assert_eq!(given.answered_by, Some(first));
        assert_eq!(given.cosine, Some(0.95));
        assert_eq!(given.answer, Some(answer("because")));
        assert_eq!(*given, record(&store, hit.head.id).await);
        // Its own entry stays empty: the same request with another mode is computed.
        assert_eq!(admit_one(&store, cached("how come?")).await, Admitted::Routed);
        assert_eq!(known(&store).await, ["why?"]);
    }

    /// A queued job (HTTP) is given it as well.
    async fn queued_jobs_take_semantic_hits(store: Store) {
        answered(&store, "why?").await;
        let hit = asking("how come?", near("why?", NearOutcome::Hit, None));
        let queued = Admission { decision: AdmissionDecision::Queue, ..hit.clone() };
        assert_eq!(admit_one(&store, queued).await, Admitted::Queued);
        let Admitted::Ended(given) = admit_one(&store, hit.clone()).await else { panic!("a hit") };
        assert_eq!(given.cosine, Some(0.95));
        assert_eq!(*given, record(&store, hit.head.id).await);
    }

    /// The answer to the very same request goes before that to a near one, and what is not there or
    /// was vetoed is not given.
    async fn only_ready_answers_are_reused(store: Store) {
        answered(&store, "why?").await;
        answered(&store, "how come?").await;
        let exact = asking("how come?", near("why?", NearOutcome::Hit, None));
        let Admitted::Ended(given) = admit_one(&store, exact).await else { panic!("a hit") };
        assert_eq!(given.source, Some(AnswerSource::Cache));
        for nearest in [
            near("never asked", NearOutcome::Hit, None),
            near("why?", NearOutcome::Miss("number"), None),
            near("why?", NearOutcome::Candidate, None),
        ] {
            let asks = asking("what for?", nearest);
            let outcome = admit_one(&store, asks.clone()).await;
            assert!(matches!(outcome, Admitted::Routed | Admitted::Waiting), "{outcome:?}");
        }
        let batch = [
            asking("a", near("why?", NearOutcome::Hit, None)),
            asking("b", near("never asked", NearOutcome::Hit, None)),
            asking("a", near("why?", NearOutcome::Hit, None)),
        ];
        let outcomes = store.admit(&batch, LONG).await.unwrap();
        assert!(matches!(outcomes[0], Admitted::Ended(_)));
        assert_eq!(outcomes[1], Admitted::Routed);
        assert!(matches!(outcomes[2], Admitted::Ended(_)));
    }

    /// Where the model says that the candidate serves, the job and those that allowed it are given its
    /// answer; a job that waits for the same request and did not is left to be computed.
    async fn a_positive_model_check_serves_only_jobs_that_allow_it(store: Store) {
        let first = answered(&store, "why?").await;
        let candidate = || asking("how come?", near("why?", NearOutcome::Candidate, None));
        let (leader, waiter, exact) = (candidate(), candidate(), cached("how come?"));
        assert_eq!(admit_one(&store, leader.clone()).await, Admitted::Routed);
        assert_eq!(admit_one(&store, waiter.clone()).await, Admitted::Waiting);
        assert_eq!(admit_one(&store, exact.clone()).await, Admitted::Waiting);
        let (given, from) = store.cached(cache_key("why?")).await.unwrap().unwrap();
        assert_eq!(from, first);
        let attempt = run_one(&store, leader.head.id).await;
        let check = answer("yes");
        let outcome = AttemptOutcome::Reused(Box::new(Reused {
            entry: cache_key("why?"),
            leader: first,
            cosine: 0.95,
            answer: given.clone(),
            check: check.clone(),
            reason: reason("semantic_reuse"),
        }));
        let settled = settle_one(&store, Settlement {
            cache_key: Some(cache_key("how come?")),
            reusable: false,
            ..settlement(leader.head.id, attempt, outcome)
        });
        let (record_of, shared) = committed(settled.await);
        assert_eq!(record_of.source, Some(AnswerSource::Semantic));
        assert_eq!(record_of.answered_by, Some(first));
        assert_eq!(record_of.answer, Some(given));
        assert_eq!(record_of.reason, None);
        assert_eq!(record_of, record(&store, leader.head.id).await);
        let attempts = store.attempts(leader.head.id).await.unwrap();
        assert_eq!(attempts[0].prompt_tokens, Some(check.usage.prompt_tokens));
        assert_eq!(attempts[0].reason, Some(reason("semantic_reuse")));
        let ids: Vec<_> = shared.iter().map(|record| record.id).collect();
        assert_eq!(ids, [waiter.head.id]);
        assert_eq!(shared[0].source, Some(AnswerSource::Semantic));
        assert_eq!(shared[0].answered_by, Some(first));
        assert_eq!(shared[0], record(&store, waiter.head.id).await);
        let taken_over = store.take_over_flights(8, LONG).await.unwrap();
        assert_eq!(taken_over.len(), 1);
        assert_eq!(taken_over[0].job.head.id, exact.head.id);
    }

    /// A drawn hit is due until its copy is made, told with both answers once that has ended, and judged
    /// once; a wrong one raises what its entry asks for, and only ever raises it.
    async fn disagreeing_rechecks_raise_the_threshold(store: Store) {
        let hit = drawn_hit(&store).await;
        assert_eq!(store.open_rechecks().await.unwrap(), 0);
        let due = store.due_rechecks(8, LONG).await.unwrap();
        assert_eq!(due.len(), 1);
        assert_eq!((due[0].0.head.id, due[0].1), (hit, Tier::Small));
        let copy = copy_of(hit);
        assert_eq!(admit_one(&store, copy.clone()).await, Admitted::Routed);
        assert!(store.due_rechecks(8, LONG).await.unwrap().is_empty());
        // Never taken by a worker: it is due again.
        assert_eq!(store.due_rechecks(8, Duration::ZERO).await.unwrap().len(), 1);
        assert_eq!(store.open_rechecks().await.unwrap(), 1);
        assert!(store.ended_rechecks(8).await.unwrap().is_empty());
        succeed(&store, copy.head.id, "for another reason", None).await;
        let ended = store.ended_rechecks(8).await.unwrap();
        assert_eq!(ended.len(), 1);
        assert_eq!((ended[0].job, ended[0].entry), (hit, cache_key("why?\0")));
        assert_eq!((ended[0].given.as_str(), ended[0].cosine), ("because", 0.95));
        assert_eq!(ended[0].own.as_deref(), Some("for another reason"));
        let wrong = RecheckOutcome {
            job: hit,
            entry: cache_key("why?\0"),
            agrees: Some(false),
            cosine_min: Some(0.96),
        };
        assert_eq!(store.settle_rechecks(&[wrong]).await.unwrap(), [hit]);
        assert_eq!(store.settle_rechecks(&[wrong]).await.unwrap(), []);
        assert!(store.ended_rechecks(8).await.unwrap().is_empty());
        assert_eq!(store.open_rechecks().await.unwrap(), 0);
        let known = store.known_questions(EMBEDDER, DateTime::<Utc>::UNIX_EPOCH, 8).await.unwrap();
        assert_eq!(known[0].cosine_min, 0.96);
    }

    /// A copy without an answer, and a candidate that was computed after all, are closed unjudged.
    async fn rechecks_without_an_answer_are_closed(store: Store) {
        let hit = drawn_hit(&store).await;
        let copy = copy_of(hit);
        admit_one(&store, copy.clone()).await;
        let attempt = run_one(&store, copy.head.id).await;
        settle_one(&store, settlement(copy.head.id, attempt, AttemptOutcome::Failed(reason("no")))).await;
        let ended = store.ended_rechecks(8).await.unwrap();
        assert_eq!(ended[0].own, None);
        let unanswered = RecheckOutcome { job: hit, entry: ended[0].entry, agrees: None, cosine_min: None };
        assert_eq!(store.settle_rechecks(&[unanswered]).await.unwrap(), [hit]);

        let candidate = asking("what for?", near("why?\0", NearOutcome::Candidate, Some(0.5)));
        admit_one(&store, candidate.clone()).await;
        succeed(&store, candidate.head.id, "so", Some(cache_key("what for?"))).await;
        assert_eq!(store.open_rechecks().await.unwrap(), 0);
        assert!(store.due_rechecks(8, LONG).await.unwrap().is_empty());
    }
}
