//! Attempts: on record before they run, and only the latest settles its job.

use std::time::Duration;

use chrono::TimeDelta;
use promptyard::{
    job::{AnswerSource, JobHead, JobId, JobState, RoutedJob, Tier},
    store::{
        AdmissionDecision, Admitted, AttemptOutcome, Claim, Claimant, Claimed, DeadFilter, Settled,
        Settlement, Store,
    },
};

use crate::{
    contract,
    support::store::{
        LONG, admission, admit_one, answer, cache_key, cached, claim_as, claim_one, claimant,
        committed, head, heartbeat, keyed, now, plain, reason, record, run_one, settle_one,
        settlement, succeed,
    },
};

fn outcomes(attempts: &[promptyard::store::AttemptRecord]) -> Vec<&str> {
    attempts
        .iter()
        .map(|attempt| attempt.outcome.as_str())
        .collect()
}

contract! {
    /// A claim puts the attempt on record; its settlement puts the answer there.
    async fn runs_and_succeeds(store: Store) {
        let job = plain(head());
        admit_one(&store, job.clone()).await;
        let claimed = claim_one(&store, job.head.id, false).await;
        assert_eq!(claimed, Claimed::Run { attempt: 1, poison_candidate: false, last: false });
        let running = record(&store, job.head.id).await;
        assert_eq!((running.state, running.attempts), (JobState::Running, 1));
        let attempts = store.attempts(job.head.id).await.unwrap();
        assert_eq!(outcomes(&attempts), ["running"]);
        let end = settlement(job.head.id, 1, AttemptOutcome::Succeeded(answer("yes")));
        let (settled, shared) = committed(settle_one(&store, end.clone()).await);
        assert_eq!(settled.state, JobState::Succeeded);
        assert_eq!(settled.answer, Some(answer("yes")));
        assert_eq!(settled.source, Some(AnswerSource::Computed));
        assert_eq!(settled.started_at, Some(end.started_at));
        assert_eq!(shared, []);
        assert_eq!(record(&store, job.head.id).await, settled);
        let attempts = store.attempts(job.head.id).await.unwrap();
        assert_eq!(outcomes(&attempts), ["succeeded"]);
        assert_eq!(attempts[0].model, "tiny");
        assert_eq!(attempts[0].worker, "worker-1");
        assert_eq!(attempts[0].finished_at, Some(end.finished_at));
    }

    /// A duplicate message finds the job busy while its worker is alive, and ended afterwards.
    async fn duplicates_are_busy_then_ended(store: Store) {
        let job = plain(head());
        admit_one(&store, job.clone()).await;
        let attempt = run_one(&store, job.head.id).await;
        assert_eq!(claim_one(&store, job.head.id, false).await, Claimed::Busy);
        let end = settlement(job.head.id, attempt, AttemptOutcome::Succeeded(answer("yes")));
        let (settled, _) = committed(settle_one(&store, end).await);
        for redelivered in [false, true] {
            let ended = claim_one(&store, job.head.id, redelivered).await;
            assert_eq!(ended, Claimed::Ended(Box::new(settled.clone())));
        }
        assert_eq!(claim_one(&store, JobId::now(), false).await, Claimed::Unknown);
    }

    /// A batch holds each job once: a second claim in it finds the first.
    async fn batches_claim_once(store: Store) {
        let job = plain(head());
        admit_one(&store, job.clone()).await;
        let id = job.head.id;
        let claims = [
            Claim { job: id, redelivered: false },
            Claim { job: JobId::now(), redelivered: false },
            Claim { job: id, redelivered: true },
        ];
        let outcomes = store.claim(&claimant("w"), &claims).await.unwrap();
        assert!(matches!(outcomes[0], Claimed::Run { attempt: 1, .. }));
        assert_eq!(outcomes[1], Claimed::Unknown);
        assert_eq!(outcomes[2], Claimed::Busy);
    }

    /// A redelivered message means that the running attempt is lost; the next one is poison candidate, and
    /// the lost worker's late word is fenced.
    async fn lost_attempts_are_fenced(store: Store) {
        let job = plain(head());
        admit_one(&store, job.clone()).await;
        run_one(&store, job.head.id).await;
        let again = claim_as(&store, &claimant("worker-2"), job.head.id, true).await;
        assert_eq!(again, Claimed::Run { attempt: 2, poison_candidate: true, last: false });
        let late = settlement(job.head.id, 1, AttemptOutcome::Succeeded(answer("late")));
        assert_eq!(settle_one(&store, late).await, Settled::Fenced);
        let end = settlement(job.head.id, 2, AttemptOutcome::Succeeded(answer("in time")));
        let (settled, _) = committed(settle_one(&store, end.clone()).await);
        assert_eq!(settled.answer.unwrap().text, "in time");
        assert_eq!(settle_one(&store, end).await, Settled::Fenced, "terminal");
        let attempts = store.attempts(job.head.id).await.unwrap();
        assert_eq!(outcomes(&attempts), ["lost", "succeeded"]);
    }

    /// A settlement that stands twice in a batch counts once; one for an unknown job not at all.
    async fn batches_settle_once(store: Store) {
        let job = plain(head());
        admit_one(&store, job.clone()).await;
        let attempt = run_one(&store, job.head.id).await;
        let end = settlement(job.head.id, attempt, AttemptOutcome::Succeeded(answer("yes")));
        let stray = settlement(JobId::now(), 1, AttemptOutcome::Returned);
        let older = settlement(job.head.id, attempt + 1, AttemptOutcome::Returned);
        let outcomes = store.settle(&[older, end.clone(), stray, end], LONG).await.unwrap();
        assert_eq!(outcomes[0], Settled::Fenced);
        assert!(matches!(outcomes[1], Settled::Committed { .. }));
        assert_eq!(outcomes[2], Settled::Fenced);
        assert_eq!(outcomes[3], Settled::Fenced);
    }

    /// Without a heartbeat a claim runs out and another worker takes the job; with one it holds.
    async fn leases_run_out_and_are_extended(store: Store) {
        let job = plain(head());
        admit_one(&store, job.clone()).await;
        let hasty = Claimant { lease: Duration::ZERO, ..claimant("worker-1") };
        assert!(matches!(claim_as(&store, &hasty, job.head.id, false).await, Claimed::Run { .. }));
        let mut beat = heartbeat(Claimant { lease: LONG, ..hasty.clone() });
        store.heartbeat(&beat).await.unwrap();
        assert_eq!(claim_one(&store, job.head.id, false).await, Claimed::Busy);
        beat.claimant.lease = Duration::ZERO;
        store.heartbeat(&beat).await.unwrap();
        let taken = claim_as(&store, &claimant("worker-2"), job.head.id, false).await;
        assert_eq!(taken, Claimed::Run { attempt: 2, poison_candidate: true, last: false });
    }

    /// A job whose deadline has passed is not started any more.
    async fn deadlines_end_jobs(store: Store) {
        let overdue = JobHead { deadline: Some(now() - TimeDelta::seconds(1)), ..head() };
        admit_one(&store, plain(overdue.clone())).await;
        let Claimed::Ended(ended) = claim_one(&store, overdue.id, false).await else {
            panic!("the deadline has passed");
        };
        assert_eq!(ended.state, JobState::Expired);
        assert_eq!(ended.reason.as_ref().unwrap().code, "deadline_passed");
        assert_eq!(*ended, record(&store, overdue.id).await);
        assert!(store.attempts(overdue.id).await.unwrap().is_empty());
    }

    /// Retries go back to routed and count; the last attempt is announced; its error quarantines the job.
    async fn retries_are_counted(store: Store) {
        let job = plain(keyed("k"));
        let id = job.head.id;
        admit_one(&store, job.clone()).await;
        for attempt in 1..=2 {
            let claimed = claim_one(&store, id, false).await;
            assert_eq!(claimed, Claimed::Run { attempt, poison_candidate: false, last: false });
            let retry = settlement(id, attempt, AttemptOutcome::Retry(reason("engine_unavailable")));
            let (put_back, _) = committed(settle_one(&store, retry).await);
            assert_eq!(put_back.state, JobState::Routed);
            assert_eq!((put_back.reason, put_back.finished_at), (None, None));
        }
        let claimed = claim_one(&store, id, false).await;
        assert_eq!(claimed, Claimed::Run { attempt: 3, poison_candidate: false, last: true });
        let spent = settlement(id, 3, AttemptOutcome::AttemptsExhausted(reason("engine_crashed")));
        let (settled, _) = committed(settle_one(&store, spent).await);
        assert_eq!(settled.state, JobState::Failed);
        assert_eq!(settled.reason, Some(reason("engine_crashed")));
        let attempts = store.attempts(id).await.unwrap();
        assert_eq!(outcomes(&attempts), ["retried", "retried", "failed"]);
        let letters = store.dead_letters(&DeadFilter::default(), 10).await.unwrap();
        assert_eq!(letters.len(), 1);
        assert_eq!(letters[0].job, Some(id));
        assert_eq!(letters[0].queue, "jobs.small");
        let body: RoutedJob = serde_json::from_slice(&letters[0].body).unwrap();
        assert_eq!(body.job.head, job.head);
        assert_eq!(Some(body.job.request), job.request);
    }

    /// Attempts that vanish use up the job: it fails with a dead letter and gives up its cache entry.
    async fn lost_attempts_use_up_the_limit(store: Store) {
        let (job, waiter) = (cached("p"), cached("p"));
        let id = job.head.id;
        admit_one(&store, job.clone()).await;
        admit_one(&store, waiter.clone()).await;
        for attempt in 1..=3 {
            let claimed = claim_one(&store, id, attempt > 1).await;
            assert_eq!(claimed, Claimed::Run { attempt, poison_candidate: attempt > 1, last: attempt == 3 });
        }
        let Claimed::Ended(ended) = claim_one(&store, id, true).await else {
            panic!("no attempt is left");
        };
        assert_eq!(ended.state, JobState::Failed);
        assert_eq!(ended.reason.as_ref().unwrap().code, "attempts_spent");
        assert_eq!(*ended, record(&store, id).await);
        let attempts = store.attempts(id).await.unwrap();
        assert_eq!(outcomes(&attempts), ["lost", "lost", "lost"]);
        let letters = store.dead_letters(&DeadFilter::default(), 10).await.unwrap();
        let body: RoutedJob = serde_json::from_slice(&letters[0].body).unwrap();
        assert_eq!(body.cache_key, Some(cache_key("p")));
        let taken_over = store.take_over_flights(10, LONG).await.unwrap();
        assert_eq!(taken_over.len(), 1);
        assert_eq!(taken_over[0].job.head.id, waiter.head.id);
    }

    /// A job that is claimed before it was routed, as after the database lost its last seconds, is of its
    /// worker's tier from then on: it can be put back, and quarantined when its attempts are spent.
    async fn unrouted_jobs_take_the_workers_tier(store: Store) {
        let queued = admission(head(), "a prompt", AdmissionDecision::Queue);
        let id = queued.head.id;
        admit_one(&store, queued).await;
        for attempt in 1..=3 {
            let claimed = claim_one(&store, id, false).await;
            assert_eq!(claimed, Claimed::Run { attempt, poison_candidate: false, last: attempt == 3 });
            let retry = settlement(id, attempt, AttemptOutcome::Retry(reason("engine_unavailable")));
            let (put_back, _) = committed(settle_one(&store, retry).await);
            assert_eq!((put_back.state, put_back.tier), (JobState::Routed, Some(Tier::Small)));
        }
        let Claimed::Ended(ended) = claim_one(&store, id, false).await else {
            panic!("no attempt is left");
        };
        assert_eq!(ended.state, JobState::Failed);
        let letters = store.dead_letters(&DeadFilter::default(), 10).await.unwrap();
        let body: RoutedJob = serde_json::from_slice(&letters[0].body).unwrap();
        assert_eq!((body.job.head.id, body.tier), (id, Tier::Small));
    }

    /// Attempts that a stopping worker gives back do not count.
    async fn returned_attempts_do_not_count(store: Store) {
        let job = plain(head());
        let id = job.head.id;
        admit_one(&store, job.clone()).await;
        for attempt in 1..=5 {
            let claimed = claim_one(&store, id, false).await;
            assert_eq!(claimed, Claimed::Run { attempt, poison_candidate: false, last: false });
            committed(settle_one(&store, settlement(id, attempt, AttemptOutcome::Returned)).await);
        }
        let (settled, _) = succeed(&store, id, "yes", None).await;
        assert_eq!(settled.attempts, 6);
    }

    /// An escalated job goes back to routed on the other tier.
    async fn escalated_jobs_change_tiers(store: Store) {
        let job = plain(head());
        let id = job.head.id;
        admit_one(&store, job.clone()).await;
        let attempt = run_one(&store, id).await;
        let outcome = AttemptOutcome::Escalate { to: Tier::Large, reason: reason("low_confidence"), answer: None };
        let (moved, _) = committed(settle_one(&store, settlement(id, attempt, outcome)).await);
        assert_eq!((moved.state, moved.tier), (JobState::Routed, Some(Tier::Large)));
        let large = Claimant { tier: Tier::Large, model: "big".to_owned(), ..claimant("worker-2") };
        assert!(matches!(claim_as(&store, &large, id, false).await, Claimed::Run { attempt: 2, .. }));
        let attempts = store.attempts(id).await.unwrap();
        assert_eq!(outcomes(&attempts), ["escalated", "running"]);
        assert_eq!(attempts[0].reason, Some(reason("low_confidence")));
        assert_eq!((attempts[1].tier, attempts[1].model.as_str()), (Tier::Large, "big"));
    }

    /// Failed and expired attempts end the job with their reason.
    async fn faults_end_jobs(store: Store) {
        for (outcome, state) in [
            (AttemptOutcome::Failed(reason("unservable")), JobState::Failed),
            (AttemptOutcome::Expired(reason("deadline_passed"), None), JobState::Expired),
        ] {
            let job = plain(head());
            admit_one(&store, job.clone()).await;
            let attempt = run_one(&store, job.head.id).await;
            let (settled, _) = committed(settle_one(&store, settlement(job.head.id, attempt, outcome)).await);
            assert_eq!(settled.state, state);
            assert!(settled.reason.is_some() && settled.answer.is_none());
            assert_eq!(settled, record(&store, job.head.id).await);
        }
        assert_eq!(store.dead_letters(&DeadFilter::default(), 10).await.unwrap(), []);
    }

    /// What the broker gives up ends: known by id, by key, or not at all; terminal jobs and jobs
    /// that a living worker runs stay as they are.
    async fn jobs_the_broker_gave_up_fail(store: Store) {
        let [routed, keyed_job, running, done] = [plain(head()), plain(keyed("k")), plain(head()), plain(head())];
        store.admit(&[routed.clone(), keyed_job.clone(), running.clone(), done.clone()], LONG).await.unwrap();
        run_one(&store, running.head.id).await;
        succeed(&store, done.head.id, "yes", None).await;
        let unknown = keyed("new");
        let same_key = keyed("k");
        let ending = |head: &JobHead| (head.clone(), JobState::Failed, reason("delivery_limit"));
        let endings = [&routed.head, &same_key, &running.head, &done.head, &unknown].map(ending);
        let records = store.end(&endings).await.unwrap();
        let states: Vec<_> = records.iter().map(|record| (record.id, record.state)).collect();
        assert_eq!(
            states,
            [
                (routed.head.id, JobState::Failed),
                (keyed_job.head.id, JobState::Failed),
                (running.head.id, JobState::Running),
                (done.head.id, JobState::Succeeded),
                (unknown.id, JobState::Failed),
            ]
        );
        assert_eq!(records[4], record(&store, unknown.id).await);
        let again = store.end(&endings[4..]).await.unwrap();
        assert_eq!(again[0], records[4], "a redelivered dead message changes nothing");
        assert!(matches!(admit_one(&store, plain(unknown)).await, Admitted::Known(_)));
    }

    /// A leader that the broker gave up is followed by a waiting job.
    async fn failed_leaders_are_replaced(store: Store) {
        let jobs = [cached("p"), cached("p")];
        store.admit(&jobs, LONG).await.unwrap();
        let ending = (jobs[0].head.clone(), JobState::Failed, reason("delivery_limit"));
        store.end(&[ending]).await.unwrap();
        assert_eq!(store.take_over_flights(10, LONG).await.unwrap().len(), 1);
    }

    /// A lost attempt whose job the broker gave up is lost for good.
    async fn ends_lost_attempts(store: Store) {
        let job = plain(head());
        admit_one(&store, job.clone()).await;
        let hasty = Claimant { lease: Duration::ZERO, ..claimant("worker-1") };
        claim_as(&store, &hasty, job.head.id, false).await;
        let ending = (job.head.clone(), JobState::Failed, reason("delivery_limit"));
        let records = store.end(&[ending]).await.unwrap();
        assert_eq!(records[0].state, JobState::Failed);
        let late = Settlement { ..settlement(job.head.id, 1, AttemptOutcome::Succeeded(answer("late"))) };
        assert_eq!(settle_one(&store, late).await, Settled::Fenced);
        let attempts = store.attempts(job.head.id).await.unwrap();
        assert_eq!(outcomes(&attempts), ["lost"]);
    }
}
