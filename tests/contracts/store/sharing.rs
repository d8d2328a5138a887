//! Answers are reused, and identical jobs in flight run once.

use std::time::Duration;

use promptyard::{
    job::{AnswerSource, JobState, Tier},
    store::{Admitted, AttemptOutcome, Claimed, Settlement, Store},
};

use crate::{
    contract,
    support::store::{
        LONG, admission, admit_one, answer, cache_key, cached, claim_one, committed, head, keyed,
        reason, record, route, run_one, settle_one, settlement, succeed,
    },
};

contract! {
    /// The first job leads, the second waits and is settled with the first, the third is a hit.
    async fn the_first_leads_the_second_waits_the_third_hits(store: Store) {
        let key = Some(cache_key("p"));
        let (leader, waiter, late) = (cached("p"), cached("p"), cached("p"));
        assert_eq!(admit_one(&store, leader.clone()).await, Admitted::Routed);
        assert_eq!(admit_one(&store, waiter.clone()).await, Admitted::Waiting);
        assert_eq!(record(&store, waiter.head.id).await.state, JobState::Routed);
        // Its message is redelivered: it continues waiting instead of running beside its leader.
        assert_eq!(admit_one(&store, waiter.clone()).await, Admitted::Waiting);
        let (settled, shared) = succeed(&store, leader.head.id, "yes", key).await;
        assert_eq!(settled.source, Some(AnswerSource::Computed));
        assert_eq!(shared.len(), 1);
        assert_eq!(shared[0].id, waiter.head.id);
        assert_eq!(shared[0].state, JobState::Succeeded);
        assert_eq!(shared[0].source, Some(AnswerSource::Shared));
        assert_eq!(shared[0].answer, settled.answer);
        assert_eq!(shared[0].attempts, 0);
        assert_eq!(record(&store, waiter.head.id).await, shared[0]);
        let Admitted::Ended(hit) = admit_one(&store, late.clone()).await else { panic!("a hit") };
        assert_eq!(hit.source, Some(AnswerSource::Cache));
        assert_eq!(hit.answer, settled.answer);
        assert_eq!(*hit, record(&store, late.head.id).await);
    }

    /// Of identical jobs in one batch, the first leads; a fresh answer serves all of a batch.
    async fn batches_share(store: Store) {
        let batch = [cached("p"), cached("q"), cached("p"), cached("p")];
        let outcomes = store.admit(&batch, LONG).await.unwrap();
        assert_eq!(
            outcomes,
            [Admitted::Routed, Admitted::Routed, Admitted::Waiting, Admitted::Waiting]
        );
        let (_, shared) = succeed(&store, batch[0].head.id, "yes", Some(cache_key("p"))).await;
        assert_eq!(shared.len(), 2);
        let hits = store.admit(&[cached("p"), cached("p")], LONG).await.unwrap();
        for hit in hits {
            assert!(matches!(hit, Admitted::Ended(record) if record.source == Some(AnswerSource::Cache)));
        }
    }

    /// A leader whose message is redelivered is known; admitted from queued, it still leads.
    async fn leaders_stay_leaders(store: Store) {
        let queued = admission(keyed("k"), "p", promptyard::store::AdmissionDecision::Queue);
        admit_one(&store, queued.clone()).await;
        let routed = admission(queued.head.clone(), "p", route(Tier::Small, Some(cache_key("p"))));
        assert_eq!(admit_one(&store, routed.clone()).await, Admitted::Routed);
        assert!(matches!(admit_one(&store, routed).await, Admitted::Known(_)));
        assert_eq!(admit_one(&store, cached("p")).await, Admitted::Waiting);
    }

    /// A job that has ended leads nothing, under any key.
    async fn ended_jobs_do_not_lead(store: Store) {
        let (first, key) = (cached("p"), cache_key("p"));
        let fail = async |job| {
            let attempt = run_one(&store, job).await;
            let failed = AttemptOutcome::Failed(reason("unservable"));
            let failed = Settlement { cache_key: Some(key), ..settlement(job, attempt, failed) };
            committed(settle_one(&store, failed).await);
        };
        admit_one(&store, first.clone()).await;
        fail(first.head.id).await;
        let mut again = first;
        for key in [None, Some("k".to_owned())] {
            again.head.key = key;
            let next = cached("p");
            let admitted = store.admit(&[again.clone(), next.clone()], LONG).await.unwrap();
            assert!(matches!(admitted[..], [Admitted::Known(_), Admitted::Routed]), "{admitted:?}");
            fail(next.head.id).await;
        }
    }

    /// Of identical jobs in one batch the first leads, be it a new one or one that was queued.
    async fn the_first_of_a_batch_leads(store: Store) {
        let queued = admission(head(), "p", promptyard::store::AdmissionDecision::Queue);
        admit_one(&store, queued.clone()).await;
        let routed = admission(queued.head, "p", route(Tier::Small, Some(cache_key("p"))));
        let outcomes = store.admit(&[routed, cached("p")], LONG).await.unwrap();
        assert_eq!(outcomes, [Admitted::Routed, Admitted::Waiting]);
    }

    /// A queued job can turn out to be a hit or to wait.
    async fn queued_jobs_share(store: Store) {
        let leader = cached("p");
        admit_one(&store, leader.clone()).await;
        let [waiting, late] = [keyed("a"), keyed("b")];
        for head in [&waiting, &late] {
            admit_one(&store, admission(head.clone(), "p", promptyard::store::AdmissionDecision::Queue)).await;
        }
        let course = || route(Tier::Small, Some(cache_key("p")));
        assert_eq!(
            admit_one(&store, admission(waiting.clone(), "p", course())).await,
            Admitted::Waiting
        );
        let (settled, shared) = succeed(&store, leader.head.id, "yes", Some(cache_key("p"))).await;
        assert_eq!(shared.len(), 1);
        let Admitted::Ended(hit) = admit_one(&store, admission(late.clone(), "p", course())).await else {
            panic!("a hit");
        };
        assert_eq!(hit.answer, settled.answer);
        assert_eq!(*hit, record(&store, late.id).await);
    }

    /// An answer whose time is over is computed anew.
    async fn answers_expire(store: Store) {
        let first = cached("p");
        admit_one(&store, first.clone()).await;
        let attempt = run_one(&store, first.head.id).await;
        let outcome = AttemptOutcome::Succeeded(answer("old"));
        let settled = Settlement {
            cache_key: Some(cache_key("p")),
            ..settlement(first.head.id, attempt, outcome)
        };
        store.settle(&[settled], Duration::ZERO).await.unwrap();
        assert_eq!(admit_one(&store, cached("p")).await, Admitted::Routed);
    }

    /// A leader whose lease ran out is followed by the next job that asks.
    async fn leases_expire(store: Store) {
        store.admit(&[cached("p")], Duration::ZERO).await.unwrap();
        assert_eq!(admit_one(&store, cached("p")).await, Admitted::Routed);
        assert_eq!(admit_one(&store, cached("p")).await, Admitted::Waiting);
    }

    /// When the leader fails, the oldest waiting job takes over, answers the others and clears the way.
    async fn a_waiting_job_replaces_a_failed_leader(store: Store) {
        let jobs = [cached("p"), cached("p"), cached("p")];
        store.admit(&jobs, LONG).await.unwrap();
        assert_eq!(store.take_over_flights(10, LONG).await.unwrap(), []);
        let attempt = run_one(&store, jobs[0].head.id).await;
        let failed = Settlement {
            cache_key: Some(cache_key("p")),
            ..settlement(jobs[0].head.id, attempt, AttemptOutcome::Failed(reason("unservable")))
        };
        let (record, shared) = committed(settle_one(&store, failed).await);
        assert_eq!((record.state, shared.len()), (JobState::Failed, 0));
        let taken_over = store.take_over_flights(10, LONG).await.unwrap();
        assert_eq!(taken_over.len(), 1);
        assert_eq!(taken_over[0].job.head, jobs[1].head);
        assert_eq!(Some(&taken_over[0].job.request), jobs[1].request.as_ref());
        assert_eq!(taken_over[0].tier, Tier::Small);
        assert_eq!(taken_over[0].cache_key, Some(cache_key("p")));
        assert_eq!(store.take_over_flights(10, LONG).await.unwrap(), [], "its lease runs");
        let (_, shared) = succeed(&store, jobs[1].head.id, "yes", Some(cache_key("p"))).await;
        assert_eq!(shared.len(), 1);
        assert_eq!(shared[0].id, jobs[2].head.id);
    }

    /// A job that took over can do so again until a worker claims it, should its message be lost.
    async fn takeovers_can_be_repeated(store: Store) {
        let jobs = [cached("p"), cached("p")];
        store.admit(&jobs, Duration::ZERO).await.unwrap();
        for _ in 0..2 {
            let taken_over = store.take_over_flights(10, Duration::ZERO).await.unwrap();
            assert_eq!(taken_over.len(), 1);
            assert_eq!(taken_over[0].job.head.id, jobs[1].head.id);
        }
        run_one(&store, jobs[1].head.id).await;
        assert_eq!(store.take_over_flights(10, Duration::ZERO).await.unwrap(), []);
    }

    /// Takeovers obey their limit and take one job for each key.
    async fn takeovers_are_limited(store: Store) {
        let mut jobs = Vec::new();
        for prompt in ["a", "b", "c"] {
            jobs.extend([cached(prompt), cached(prompt), cached(prompt)]);
        }
        store.admit(&jobs, Duration::ZERO).await.unwrap();
        assert_eq!(store.take_over_flights(2, LONG).await.unwrap().len(), 2);
        assert_eq!(store.take_over_flights(2, LONG).await.unwrap().len(), 1);
        assert_eq!(store.take_over_flights(2, LONG).await.unwrap().len(), 0);
    }

    /// A job that is put back on a queue still leads: no other job takes over.
    async fn retries_keep_the_lead(store: Store) {
        let (leader, waiter) = (cached("p"), cached("p"));
        admit_one(&store, leader.clone()).await;
        admit_one(&store, waiter).await;
        let outcomes = [AttemptOutcome::Returned, AttemptOutcome::Retry(reason("engine_unavailable"))];
        for outcome in outcomes {
            let attempt = run_one(&store, leader.head.id).await;
            let end = Settlement {
                cache_key: Some(cache_key("p")),
                ..settlement(leader.head.id, attempt, outcome)
            };
            committed(settle_one(&store, end).await);
            assert_eq!(store.take_over_flights(10, LONG).await.unwrap(), []);
        }
    }

    /// Those who wait may have asked for the very model that escalated: another tier's answer is
    /// not theirs, so one of them takes over.
    async fn escalation_ends_the_lead(store: Store) {
        let (leader, waiter) = (cached("p"), cached("p"));
        admit_one(&store, leader.clone()).await;
        admit_one(&store, waiter.clone()).await;
        let attempt = run_one(&store, leader.head.id).await;
        let to = Tier::Large;
        let end = Settlement {
            cache_key: Some(cache_key("p")),
            ..settlement(
                leader.head.id,
                attempt,
                AttemptOutcome::Escalate { to, reason: reason("context_length_exceeded"), answer: None },
            )
        };
        committed(settle_one(&store, end).await);
        let taken_over = store.take_over_flights(10, LONG).await.unwrap();
        assert_eq!(taken_over.len(), 1);
        assert_eq!(taken_over[0].job.head.id, waiter.head.id);
    }

    /// An answer by another model than the key was made for serves those who wait, and nobody later.
    async fn unusable_answers_are_not_cached(store: Store) {
        let (leader, waiter) = (cached("p"), cached("p"));
        admit_one(&store, leader.clone()).await;
        admit_one(&store, waiter.clone()).await;
        let attempt = run_one(&store, leader.head.id).await;
        let end = Settlement {
            cache_key: Some(cache_key("p")),
            reusable: false,
            ..settlement(leader.head.id, attempt, AttemptOutcome::Succeeded(answer("large")))
        };
        let (_, shared) = committed(settle_one(&store, end).await);
        assert_eq!(shared.len(), 1);
        assert_eq!(shared[0].id, waiter.head.id);
        assert_eq!(admit_one(&store, cached("p")).await, Admitted::Routed);
    }

    /// Such an answer settles a job that has taken over meanwhile as well: nobody leads then, and the next
    /// one who asks does not wait for a job that has ended.
    async fn unusable_answers_end_the_followers_lead(store: Store) {
        let (leader, follower) = (cached("p"), cached("p"));
        store.admit(&[leader.clone(), follower.clone()], Duration::ZERO).await.unwrap();
        let attempt = run_one(&store, leader.head.id).await;
        assert_eq!(store.take_over_flights(10, LONG).await.unwrap().len(), 1);
        let end = Settlement {
            cache_key: Some(cache_key("p")),
            reusable: false,
            ..settlement(leader.head.id, attempt, AttemptOutcome::Succeeded(answer("large")))
        };
        let (_, shared) = committed(settle_one(&store, end).await);
        assert_eq!(shared.len(), 1);
        assert_eq!(admit_one(&store, cached("p")).await, Admitted::Routed);
    }

    /// A settlement without a key leaves the cache alone.
    async fn keyless_settlements_leave_the_cache(store: Store) {
        let (leader, waiter) = (cached("p"), cached("p"));
        admit_one(&store, leader.clone()).await;
        admit_one(&store, waiter.clone()).await;
        let (_, shared) = succeed(&store, leader.head.id, "yes", None).await;
        assert_eq!(shared, []);
        assert_eq!(admit_one(&store, cached("p")).await, Admitted::Waiting);
    }

    /// A job that took over, settled by the lost leader's late answer, ends when its message comes.
    async fn late_leaders_settle_their_followers(store: Store) {
        let (leader, follower) = (cached("p"), cached("p"));
        store.admit(&[leader.clone(), follower.clone()], Duration::ZERO).await.unwrap();
        let attempt = run_one(&store, leader.head.id).await;
        assert_eq!(store.take_over_flights(10, LONG).await.unwrap().len(), 1);
        let end = Settlement {
            cache_key: Some(cache_key("p")),
            ..settlement(leader.head.id, attempt, AttemptOutcome::Succeeded(answer("late")))
        };
        let (_, shared) = committed(settle_one(&store, end).await);
        assert_eq!(shared.len(), 1);
        let Claimed::Ended(ended) = claim_one(&store, follower.head.id, false).await else {
            panic!("the follower has its answer");
        };
        assert_eq!(*ended, shared[0]);
    }

    /// A waiting job that is claimed after all runs for itself and is not answered twice.
    async fn claimed_waiters_are_left_alone(store: Store) {
        let (leader, waiter) = (cached("p"), cached("p"));
        admit_one(&store, leader.clone()).await;
        admit_one(&store, waiter.clone()).await;
        let attempt = run_one(&store, waiter.head.id).await;
        let (_, shared) = succeed(&store, leader.head.id, "yes", Some(cache_key("p"))).await;
        assert_eq!(shared, []);
        let own = settlement(waiter.head.id, attempt, AttemptOutcome::Succeeded(answer("own")));
        let (settled, _) = committed(settle_one(&store, own).await);
        assert_eq!(settled.answer.unwrap().text, "own");
    }

    /// Jobs without a key share nothing.
    async fn keyless_jobs_share_nothing(store: Store) {
        for _ in 0..2 {
            let alone = admission(head(), "p", route(Tier::Small, None));
            assert_eq!(admit_one(&store, alone.clone()).await, Admitted::Routed);
            succeed(&store, alone.head.id, "yes", None).await;
        }
    }
}
