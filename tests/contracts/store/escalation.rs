//! Escalation: both answers stay, the large one's is the job's, and none is lost on the way.

use chrono::TimeDelta;
use promptyard::{
    job::{
        Answer, AnswerSource, DistributionSignals, JobHead, JobId, JobRecord, JobState, Signals,
        Tier, Usage,
    },
    store::{
        Admitted, AttemptOutcome, AttemptRecord, Claimant, Claimed, DeadFilter, Settled,
        Settlement, Store,
    },
};

use crate::{
    contract,
    support::store::{
        LONG, admit_one, answer, cache_key, cached, claim_as, claim_one, claimant, committed, head,
        now, plain, reason, record, run_one, settle_one, settlement, succeed,
    },
};

pub fn large() -> Claimant {
    Claimant {
        tier: Tier::Large,
        model: "big".to_owned(),
        revision: "r2".to_owned(),
        ..claimant("worker-2")
    }
}

fn signals() -> Signals {
    Signals {
        tokens: 7,
        mean_logprob: -0.75,
        min_logprob: -2.5,
        p10_logprob: -2.0,
        p50_logprob: -0.5,
        first_logprob: -1.0,
        distribution: Some(DistributionSignals {
            mean_entropy: 0.5,
            max_entropy: 1.25,
            min_margin: 0.125,
        }),
        truncated: false,
    }
}

/// The small tier's answer that is not sure enough.
fn unsure(job: JobId, attempt: u32) -> Settlement {
    let outcome = AttemptOutcome::Escalate {
        to: Tier::Large,
        reason: reason("low_confidence"),
        answer: Some(Box::new(answer("perhaps"))),
    };
    Settlement {
        confidence: Some(0.25),
        signals: Some(signals()),
        ..settlement(job, attempt, outcome)
    }
}

pub fn big_answer() -> Answer {
    Answer {
        model: "big".to_owned(),
        revision: "r2".to_owned(),
        usage: Usage {
            prompt_tokens: 22,
            prompt_tokens_computed: 22,
            completion_tokens: 30,
        },
        ..answer("certainly")
    }
}

/// Admits a job and escalates it.
pub async fn escalate(store: &Store, head: JobHead) -> JobRecord {
    let job = head.id;
    admit_one(store, plain(head)).await;
    let attempt = run_one(store, job).await;
    committed(settle_one(store, unsure(job, attempt)).await).0
}

fn outcomes(attempts: &[AttemptRecord]) -> Vec<(Tier, &str)> {
    let each = attempts.iter();
    each.map(|attempt| (attempt.tier, attempt.outcome.as_str()))
        .collect()
}

const SPENT: Usage = Usage {
    prompt_tokens: 20,
    prompt_tokens_computed: 15,
    completion_tokens: 7,
};

contract! {
    /// Both attempts keep their answers, tokens and confidence; the job's answer is the large one's.
    async fn both_attempts_stay(store: Store) {
        let head = head();
        let id = head.id;
        let moved = escalate(&store, head).await;
        assert_eq!((moved.state, moved.tier), (JobState::Routed, Some(Tier::Large)));
        assert_eq!((moved.answer.clone(), moved.confidence), (None, Some(0.25)));
        assert_eq!(moved.escalated, Some(SPENT));
        assert_eq!(moved, record(&store, id).await);
        let claimed = claim_as(&store, &large(), id, false).await;
        assert!(matches!(claimed, Claimed::Run { attempt: 2, poison_candidate: false, .. }), "{claimed:?}");
        let end = settlement(id, 2, AttemptOutcome::Succeeded(big_answer()));
        let (ended, _) = committed(settle_one(&store, end).await);
        assert_eq!(ended, record(&store, id).await);
        assert_eq!((ended.state, ended.tier), (JobState::Succeeded, Some(Tier::Large)));
        assert_eq!(ended.answer, Some(big_answer()));
        assert_eq!((ended.confidence, ended.escalated), (Some(0.25), Some(SPENT)));
        assert_eq!((ended.reason, ended.source), (None, Some(AnswerSource::Computed)));
        let attempts = store.attempts(id).await.unwrap();
        assert_eq!(outcomes(&attempts), [(Tier::Small, "escalated"), (Tier::Large, "succeeded")]);
        assert_eq!(attempts[0].answer.as_deref(), Some("perhaps"));
        assert_eq!(attempts[0].signals, Some(signals()));
        assert_eq!((attempts[0].confidence, attempts[0].completion_tokens), (Some(0.25), Some(7)));
        assert_eq!((attempts[1].answer.as_deref(), attempts[1].completion_tokens), (None, Some(30)));
    }

    /// A repeated escalation counts once.
    async fn escalations_are_fenced(store: Store) {
        let head = head();
        let id = head.id;
        escalate(&store, head).await;
        assert_eq!(settle_one(&store, unsure(id, 1)).await, Settled::Fenced);
        assert!(matches!(claim_as(&store, &large(), id, false).await, Claimed::Run { .. }));
        assert_eq!(settle_one(&store, unsure(id, 1)).await, Settled::Fenced);
        assert_eq!(record(&store, id).await.escalated, Some(SPENT));
    }

    /// The small tier's message is redelivered, since its worker died before it acknowledged: wherever
    /// the job is by then, nothing runs twice.
    async fn stale_messages_are_passed_on(store: Store) {
        let head = head();
        let id = head.id;
        escalate(&store, head).await;
        for redelivered in [false, true] {
            assert_eq!(claim_one(&store, id, redelivered).await, Claimed::Elsewhere(Tier::Large));
        }
        assert!(matches!(claim_as(&store, &large(), id, false).await, Claimed::Run { attempt: 2, .. }));
        assert_eq!(claim_one(&store, id, true).await, Claimed::Elsewhere(Tier::Large), "it runs there");
        assert_eq!(claim_as(&store, &large(), id, false).await, Claimed::Busy, "passed on again");
        let end = settlement(id, 2, AttemptOutcome::Succeeded(big_answer()));
        let (ended, _) = committed(settle_one(&store, end).await);
        assert_eq!(claim_one(&store, id, true).await, Claimed::Ended(Box::new(ended)));
        assert_eq!(store.attempts(id).await.unwrap().len(), 2);
    }

    /// The large model fails for good: the small one's answer serves, and no dead letter is left.
    async fn the_small_answer_serves_when_the_large_model_fails(store: Store) {
        for outcome in [
            AttemptOutcome::Failed(reason("unservable")),
            AttemptOutcome::AttemptsExhausted(reason("engine_crashed")),
            AttemptOutcome::Expired(reason("deadline_passed"), None),
        ] {
            let head = head();
            let id = head.id;
            escalate(&store, head).await;
            claim_as(&store, &large(), id, false).await;
            let (ended, _) = committed(settle_one(&store, settlement(id, 2, outcome)).await);
            assert_eq!((ended.state, ended.tier), (JobState::Succeeded, Some(Tier::Small)));
            assert_eq!(ended.answer, Some(answer("perhaps")));
            assert!(ended.reason.is_some(), "why the large one's is missing");
            assert_eq!(ended.escalated, Some(Usage::default()), "its tokens are the answer's now");
            assert_eq!(ended, record(&store, id).await);
            let attempts = store.attempts(id).await.unwrap();
            assert_eq!(attempts[0].outcome, "escalated");
            assert_ne!(attempts[1].outcome, "succeeded");
        }
        assert_eq!(store.dead_letters(&DeadFilter::default(), 10).await.unwrap(), []);
    }

    /// So it does when no attempt is left, when the deadline has passed, and when the broker gave up.
    async fn the_small_answer_serves_when_no_attempt_is_left(store: Store) {
        let spent = head();
        escalate(&store, spent.clone()).await;
        for attempt in 2..=3 {
            claim_as(&store, &large(), spent.id, attempt > 2).await;
        }
        let late = JobHead { deadline: Some(now() + TimeDelta::milliseconds(300)), ..head() };
        escalate(&store, late.clone()).await;
        store.clock().advance(std::time::Duration::from_millis(400));
        for head in [&spent, &late] {
            let Claimed::Ended(ended) = claim_as(&store, &large(), head.id, true).await else {
                panic!("it can run no more");
            };
            assert_eq!(ended.state, JobState::Succeeded);
            assert_eq!(ended.answer, Some(answer("perhaps")));
            assert_eq!(*ended, record(&store, head.id).await);
        }
        let dropped = head();
        escalate(&store, dropped.clone()).await;
        let ending = (dropped.clone(), JobState::Failed, reason("delivery_limit"));
        let records = store.end(&[ending]).await.unwrap();
        assert_eq!(records[0].answer, Some(answer("perhaps")));
        assert_eq!(records[0], record(&store, dropped.id).await);
        assert_eq!(store.dead_letters(&DeadFilter::default(), 10).await.unwrap(), []);
    }

    /// What never had an answer fails as ever, also after an escalation.
    async fn an_escalation_without_an_answer_has_none_to_fall_back_on(store: Store) {
        let job = plain(head());
        let id = job.head.id;
        admit_one(&store, job).await;
        run_one(&store, id).await;
        let too_long = AttemptOutcome::Escalate {
            to: Tier::Large,
            reason: reason("context_length_exceeded"),
            answer: None,
        };
        let (moved, _) = committed(settle_one(&store, settlement(id, 1, too_long)).await);
        assert_eq!(moved.escalated, Some(Usage::default()));
        claim_as(&store, &large(), id, false).await;
        let failed = settlement(id, 2, AttemptOutcome::Failed(reason("unservable")));
        let (ended, _) = committed(settle_one(&store, failed).await);
        assert_eq!((ended.state, ended.answer), (JobState::Failed, None));
    }

    /// A job that keeps its lead while it is escalated answers those that wait, and its final answer
    /// is what later ones get.
    async fn the_final_answer_is_shared_and_kept(store: Store) {
        let (leader, waiter) = (cached("p"), cached("p"));
        let id = leader.head.id;
        store.admit(&[leader, waiter.clone()], LONG).await.unwrap();
        run_one(&store, id).await;
        committed(settle_one(&store, unsure(id, 1)).await);
        assert_eq!(store.take_over_flights(10, LONG).await.unwrap(), [], "it leads still");
        claim_as(&store, &large(), id, false).await;
        let end = Settlement {
            cache_key: Some(cache_key("p")),
            ..settlement(id, 2, AttemptOutcome::Succeeded(big_answer()))
        };
        let (_, shared) = committed(settle_one(&store, end).await);
        assert_eq!(shared.len(), 1);
        assert_eq!((shared[0].id, shared[0].answer.clone()), (waiter.head.id, Some(big_answer())));
        assert_eq!(shared[0].escalated, None, "it ran nothing");
        let Admitted::Ended(hit) = admit_one(&store, cached("p")).await else {
            panic!("the answer is there");
        };
        assert_eq!(hit.answer, Some(big_answer()));
    }

    /// A confident answer is the job's, with its confidence.
    async fn cached_answers_carry_their_confidence(store: Store) {
        let job = plain(head());
        let id = job.head.id;
        admit_one(&store, job).await;
        let attempt = run_one(&store, id).await;
        let end = Settlement {
            confidence: Some(0.75),
            signals: Some(signals()),
            ..settlement(id, attempt, AttemptOutcome::Succeeded(answer("yes")))
        };
        let (ended, _) = committed(settle_one(&store, end).await);
        assert_eq!((ended.confidence, ended.escalated), (Some(0.75), None));
        assert_eq!(ended, record(&store, id).await);
        let attempts = store.attempts(id).await.unwrap();
        assert_eq!((attempts[0].signals, attempts[0].answer.as_deref()), (Some(signals()), None));
        succeed_plainly(&store).await;
    }
}

/// An answer that nobody judged has no confidence.
async fn succeed_plainly(store: &Store) {
    let job = plain(head());
    let id = job.head.id;
    admit_one(store, job).await;
    let (ended, _) = succeed(store, id, "yes", None).await;
    assert_eq!((ended.confidence, ended.escalated), (None, None));
}
