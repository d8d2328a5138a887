//! Deferred, stuck and cancelled jobs; tenants and keys.

use std::time::Duration;

use chrono::TimeDelta;
use promptyard::{
    job::{JobHead, JobId, JobState, ModelPair, Priority, ServedModel, Tier},
    store::{
        Admission, AdmissionDecision, Admitted, ApiKey, AttemptOutcome, CancelFilter, Claimant,
        Claimed, Deferral, DeferredQueue, KeyDigest, Released, RescueRules, Settled, Store,
        TenantLimits,
    },
};

use crate::{
    contract,
    support::store::{
        LONG, admission, admit_one, answer, cache_key, cached, claim_as, claim_one, claimant,
        committed, head, keyed, now, plain, reason, record, route, run_one, settle_one, settlement,
        succeed, tenant,
    },
};

const SMALL: DeferredQueue = DeferredQueue::Tier(Tier::Small);

fn deferred(head: JobHead, hold: Deferral) -> Admission {
    let AdmissionDecision::Route(mut route) = route(Tier::Small, None) else {
        unreachable!("the fixture routes")
    };
    route.deferral = Some(hold);
    admission(head, "a prompt", AdmissionDecision::Route(route))
}

fn of(name: &str) -> JobHead {
    JobHead {
        tenant: tenant(name),
        ..head()
    }
}

fn turn(seconds_ago: i64, tokens: u32) -> Deferral {
    Deferral::for_turn(
        now() - TimeDelta::seconds(seconds_ago),
        Priority::Normal,
        tokens,
    )
}

async fn ids(store: &Store, queue: DeferredQueue, each: usize) -> Vec<JobId> {
    store
        .deferred(queue, each)
        .await
        .unwrap()
        .iter()
        .map(|deferred| deferred.job)
        .collect()
}

fn rules(stuck_after: TimeDelta) -> RescueRules {
    RescueRules {
        stuck_after,
        stuck_after_busy: stuck_after,
        is_empty: [true; 3],
        limit: 100,
        from: None,
        looked_at_max: 100,
    }
}

fn released_ids(released: &[Released]) -> Vec<JobId> {
    let id = |released: &Released| match released {
        Released::Router(job) => job.head.id,
        Released::Tier(routed) => routed.job.head.id,
    };
    released.iter().map(id).collect()
}

contract! {
    /// Held jobs come by tenant and rank, and each is released once, with all that its message carries.
    async fn deferred_jobs_are_released_once(store: Store) {
        let (late, early) = (deferred(of("a"), turn(1, 5)), deferred(of("a"), turn(9, 6)));
        let other = deferred(of("b"), turn(5, 7));
        let mut paired = deferred(of("c"), turn(0, 8));
        let model = |model: &str| ServedModel { model: model.to_owned(), revision: "1".to_owned() };
        let pair = ModelPair { small: model("s"), large: model("l") };
        if let AdmissionDecision::Route(route) = &mut paired.decision {
            route.pair = Some(pair.clone());
        }
        for job in [&late, &early, &other, &paired] {
            assert_eq!(admit_one(&store, job.clone()).await, Admitted::Deferred);
            assert_eq!(record(&store, job.head.id).await.state, JobState::Routed);
        }
        // A repeated message changes nothing.
        assert_eq!(admit_one(&store, late.clone()).await, Admitted::Deferred);
        assert_eq!(
            ids(&store, SMALL, 9).await,
            [early.head.id, late.head.id, other.head.id, paired.head.id]
        );
        assert_eq!(ids(&store, SMALL, 1).await, [early.head.id, other.head.id, paired.head.id]);
        assert_eq!(ids(&store, DeferredQueue::Tier(Tier::Large), 9).await, []);
        let mut tenants = store.deferred_tenants().await.unwrap();
        tenants.sort();
        assert_eq!(tenants, ["a", "b", "c"].map(|name| (SMALL, tenant(name))));
        assert_eq!(store.deferred_counts(100).await.unwrap(), [0, 4, 0]);
        assert_eq!(store.deferred_counts(3).await.unwrap(), [0, 3, 0]);

        let wanted = [paired.head.id, early.head.id];
        let twice = [paired.head.id, early.head.id, paired.head.id];
        let released = store.release(&twice, false).await.unwrap();
        assert_eq!(released_ids(&released), wanted);
        let Released::Tier(routed) = &released[0] else { panic!("{released:?}") };
        assert_eq!((routed.pair.as_ref(), &routed.job.head), (Some(&pair), &paired.head));
        assert_eq!(store.release(&wanted, false).await.unwrap(), []);
        // A router that missed the outcome releases again.
        assert_eq!(store.release(&wanted, true).await.unwrap(), released);
        assert_eq!(ids(&store, SMALL, 9).await, [late.head.id, other.head.id]);
        // A released job is an ordinary job.
        succeed(&store, early.head.id, "yes", None).await;
    }

    /// Released jobs that are not known to be published are listed until their next stage has seen them.
    async fn released_jobs_are_unpublished_until_noted(store: Store) {
        let unpublished = async |span| store.unpublished(span, 9).await.unwrap();
        let soon = now() + TimeDelta::milliseconds(30);
        let later = JobHead { not_before: Some(soon), ..head() };
        let jobs = [head(), head(), head(), later].map(|head| match head.not_before {
            Some(start) => admission(head, "a prompt", AdmissionDecision::Schedule(Deferral::until(start, 3))),
            None => deferred(head, turn(1, 5)),
        });
        let [first, second, third, scheduled] = jobs.clone().map(|job| job.head.id);
        for job in jobs.clone() {
            assert_eq!(admit_one(&store, job).await, Admitted::Deferred);
        }
        // Deferred jobs are not published, even if noted as such.
        store.note_published(&[first]).await.unwrap();
        assert_eq!(unpublished(Duration::ZERO).await, []);
        store.clock().advance(Duration::from_millis(40));
        for id in [scheduled, first, second, third] {
            assert_eq!(store.release(&[id], false).await.unwrap().len(), 1);
            store.clock().advance(Duration::from_millis(2));
        }
        assert_eq!(unpublished(Duration::ZERO).await, [scheduled, first, second, third]);
        assert_eq!(store.unpublished(Duration::ZERO, 2).await.unwrap(), [scheduled, first]);
        assert_eq!(unpublished(LONG).await, [], "not for long");
        store.note_published(&[second]).await.unwrap();
        claim_one(&store, third, false).await;
        assert_eq!(unpublished(Duration::ZERO).await, [scheduled, first]);
        // The router defers it once more.
        let mut again = deferred(jobs[3].head.clone(), turn(0, 3));
        again.head.id = scheduled;
        assert_eq!(admit_one(&store, again).await, Admitted::Deferred);
        assert_eq!(unpublished(Duration::ZERO).await, [first]);
        assert_eq!(store.release(&[scheduled], false).await.unwrap().len(), 1);
        assert_eq!(unpublished(Duration::ZERO).await, [first, scheduled]);
        // They are published as for the first time.
        assert_eq!(store.release(&[first, scheduled], true).await.unwrap().len(), 2);
        store.note_published(&[first, scheduled]).await.unwrap();
        assert_eq!(unpublished(Duration::ZERO).await, []);
    }

    /// A job scheduled for later is queued until then, and routed by the message of its release.
    async fn scheduled_jobs_go_to_the_router_when_due(store: Store) {
        let start = now() + TimeDelta::milliseconds(900);
        let head = JobHead { not_before: Some(start), attempts_max: Some(2), ..keyed("later") };
        let scheduled = admission(head.clone(), "a prompt", AdmissionDecision::Schedule(Deferral::until(start, 3)));
        assert_eq!(admit_one(&store, scheduled.clone()).await, Admitted::Deferred);
        assert_eq!(admit_one(&store, scheduled).await, Admitted::Deferred);
        assert_eq!(record(&store, head.id).await.state, JobState::Queued);
        assert_eq!(ids(&store, DeferredQueue::In, 9).await, []);
        // Not lost, however long it is deferred.
        assert_eq!(store.rescue(rules(TimeDelta::zero())).await.unwrap().stuck, []);
        store.clock().advance(Duration::from_millis(1000));
        assert_eq!(ids(&store, DeferredQueue::In, 9).await, [head.id]);
        let released = store.release(&[head.id], false).await.unwrap();
        let [Released::Router(job)] = &released[..] else { panic!("{released:?}") };
        assert_eq!(job.head, head);
        // The fleet is busy: it is deferred once more, for its tier.
        let mut again = deferred(head.clone(), turn(0, 3));
        again.head = job.head.clone();
        assert_eq!(admit_one(&store, again).await, Admitted::Deferred);
        assert_eq!(ids(&store, SMALL, 9).await, [head.id]);
        store.release(&[head.id], false).await.unwrap();
        succeed(&store, head.id, "yes", None).await;
    }

    /// A producer's own limit of attempts counts where it is lower than the fleet's.
    async fn the_producer_may_lower_the_attempt_limit(store: Store) {
        let job = plain(JobHead { attempts_max: Some(1), ..head() });
        admit_one(&store, job.clone()).await;
        let claimed = claim_one(&store, job.head.id, false).await;
        assert_eq!(claimed, Claimed::Run { attempt: 1, poison_candidate: false, last: true });
        let many = plain(JobHead { attempts_max: Some(100), ..head() });
        admit_one(&store, many.clone()).await;
        for attempt in 1..=3 {
            let claimed = claim_one(&store, many.head.id, false).await;
            assert_eq!(claimed, Claimed::Run { attempt, poison_candidate: false, last: attempt == 3 });
            settle_one(&store, settlement(many.head.id, attempt, AttemptOutcome::Retry(reason("busy")))).await;
        }
        assert!(matches!(claim_one(&store, many.head.id, false).await, Claimed::Ended(_)));
    }

    /// An attempt that may have been brought down by a neighbour does not count.
    async fn crashes_in_a_shared_batch_do_not_count(store: Store) {
        let job = plain(head());
        admit_one(&store, job.clone()).await;
        for attempt in 1..=5 {
            let claimed = claim_one(&store, job.head.id, false).await;
            assert_eq!(claimed, Claimed::Run { attempt, poison_candidate: false, last: false });
            let crash = AttemptOutcome::RetryIsolated(reason("engine_crashed"));
            settle_one(&store, settlement(job.head.id, attempt, crash)).await;
        }
        let attempts = store.attempts(job.head.id).await.unwrap();
        assert!(attempts.iter().all(|attempt| attempt.outcome == "retried"));
        assert_eq!(attempts[0].reason.as_ref().unwrap().code, "engine_crashed");
    }

    /// Jobs are cancelled wherever they are; one that runs keeps what it had written with its attempt.
    async fn jobs_are_cancelled(store: Store) {
        let queued = admission(head(), "a prompt", AdmissionDecision::Queue);
        let (waiting, running) = (deferred(head(), turn(0, 1)), plain(head()));
        let done = plain(head());
        for job in [&queued, &waiting, &running, &done] {
            admit_one(&store, job.clone()).await;
        }
        succeed(&store, done.head.id, "yes", None).await;
        let attempt = run_one(&store, running.head.id).await;
        let deferred = [(running.head.id, attempt)];
        assert_eq!(store.superseded(&deferred).await.unwrap(), []);
        let all = [&queued, &waiting, &running, &done].map(|job| job.head.id);
        let none = CancelFilter::Jobs(Some(tenant("other")), all.to_vec());
        assert_eq!(store.cancel(&none, 9).await.unwrap(), []);
        let cancelled = store.cancel(&CancelFilter::Jobs(None, all.to_vec()), 9).await.unwrap();
        let mut ids: Vec<_> = cancelled.iter().map(|record| record.id).collect();
        ids.sort();
        let mut expected = all[..3].to_vec();
        expected.sort();
        assert_eq!(ids, expected);
        for job in &cancelled {
            assert_eq!(job.state, JobState::Cancelled);
            assert_eq!(job.reason.as_ref().unwrap().code, "cancelled");
            assert_eq!(*job, record(&store, job.id).await);
        }
        assert_eq!(store.cancel(&CancelFilter::Jobs(None, all.to_vec()), 9).await.unwrap(), []);
        assert_eq!(store.release(&[waiting.head.id], false).await.unwrap(), []);
        assert_eq!(store.deferred_counts(9).await.unwrap(), [0; 3]);

        assert_eq!(store.superseded(&deferred).await.unwrap(), [running.head.id]);
        let before = record(&store, running.head.id).await;
        let end = AttemptOutcome::Cancelled(reason("superseded"), Some(Box::new(answer("half of"))));
        let end = settlement(running.head.id, attempt, end);
        for _ in 0..2 {
            assert_eq!(settle_one(&store, end.clone()).await, Settled::Fenced);
        }
        let late = AttemptOutcome::Succeeded(answer("all of it"));
        let late = settle_one(&store, settlement(running.head.id, attempt, late)).await;
        assert_eq!(late, Settled::Fenced);
        assert_eq!(record(&store, running.head.id).await, before);
        let attempts = store.attempts(running.head.id).await.unwrap();
        assert_eq!(attempts[0].outcome, "cancelled");
        assert_eq!(attempts[0].answer.as_deref(), Some("half of"));
        assert_eq!(attempts[0].completion_tokens, Some(7));
    }

    /// An answer that comes too late for a job that was cancelled stays with its attempt.
    async fn late_answers_close_their_attempt(store: Store) {
        let job = plain(head());
        admit_one(&store, job.clone()).await;
        let attempt = run_one(&store, job.head.id).await;
        store.cancel(&CancelFilter::Jobs(None, vec![job.head.id]), 1).await.unwrap();
        let late = AttemptOutcome::Succeeded(answer("all of it"));
        let late = settle_one(&store, settlement(job.head.id, attempt, late)).await;
        assert_eq!(late, Settled::Fenced);
        let attempts = store.attempts(job.head.id).await.unwrap();
        assert_eq!(attempts[0].outcome, "cancelled");
        assert_eq!(attempts[0].answer.as_deref(), Some("all of it"));
    }

    /// A batch is cancelled in steps, for one tenant if one is named.
    async fn batches_are_cancelled(store: Store) {
        let batch = |name: &str| JobHead { batch: Some("b".to_owned()), ..of(name) };
        for name in ["x", "x", "x", "y"] {
            admit_one(&store, plain(batch(name))).await;
        }
        admit_one(&store, plain(of("x"))).await;
        let filter = CancelFilter::Batch(Some(tenant("x")), "b".to_owned());
        assert_eq!(store.cancel(&filter, 2).await.unwrap().len(), 2);
        assert_eq!(store.cancel(&filter, 2).await.unwrap().len(), 1);
        assert_eq!(store.cancel(&filter, 2).await.unwrap(), []);
        let filter = CancelFilter::Batch(None, "b".to_owned());
        assert_eq!(store.cancel(&filter, 9).await.unwrap().len(), 1);
        // What of it comes in later is known to be meant.
        let since = now() - TimeDelta::minutes(1);
        let mut cancelled = store.cancelled_batches(since).await.unwrap();
        cancelled.sort_by_key(|batch| batch.tenant.clone());
        let [all, of_x] = &cancelled[..] else { panic!("{cancelled:?}") };
        assert_eq!((&all.tenant, &of_x.tenant), (&None, &Some(tenant("x"))));
        assert_eq!((all.batch.as_str(), of_x.batch.as_str()), ("b", "b"));
        assert!(all.cancelled_at >= of_x.cancelled_at && all.means(&JobHead { submitted_at: since, ..batch("z") }));
        assert_eq!(store.cancelled_batches(now() + TimeDelta::minutes(1)).await.unwrap(), []);
    }

    /// When the job that computes an answer for others is cancelled, one of those takes over.
    async fn waiting_jobs_survive_a_cancelled_leader(store: Store) {
        let (leader, waiting) = (cached("p"), cached("p"));
        admit_one(&store, leader.clone()).await;
        assert_eq!(admit_one(&store, waiting.clone()).await, Admitted::Waiting);
        run_one(&store, leader.head.id).await;
        store.cancel(&CancelFilter::Jobs(None, vec![leader.head.id]), 1).await.unwrap();
        let taken_over = store.take_over_flights(9, LONG).await.unwrap();
        assert_eq!(taken_over.len(), 1);
        assert_eq!(taken_over[0].job.head.id, waiting.head.id);
        let (record, _) = succeed(&store, waiting.head.id, "yes", Some(cache_key("p"))).await;
        assert_eq!(record.state, JobState::Succeeded);
    }

    /// What an expired attempt had written is not taken for an escalated answer.
    async fn partial_answers_are_not_reused(store: Store) {
        let job = plain(head());
        admit_one(&store, job.clone()).await;
        let attempt = run_one(&store, job.head.id).await;
        let escalate = AttemptOutcome::Escalate {
            to: Tier::Large,
            reason: reason("low_confidence"),
            answer: Some(Box::new(answer("perhaps"))),
        };
        settle_one(&store, settlement(job.head.id, attempt, escalate)).await;
        let large = Claimant { tier: Tier::Large, ..claimant("worker-2") };
        let Claimed::Run { attempt, .. } = claim_as(&store, &large, job.head.id, false).await else {
            panic!("it must run")
        };
        let partial = AttemptOutcome::Expired(reason("deadline_passed"), Some(Box::new(answer("cut sho"))));
        let (record, _) = committed(settle_one(&store, settlement(job.head.id, attempt, partial)).await);
        assert_eq!(record.state, JobState::Succeeded, "the escalated answer serves");
        assert_eq!(record.answer.unwrap().text, "perhaps");
        let alone = plain(head());
        admit_one(&store, alone.clone()).await;
        let attempt = run_one(&store, alone.head.id).await;
        let partial = AttemptOutcome::Expired(reason("deadline_passed"), Some(Box::new(answer("cut sho"))));
        let (record, _) = committed(settle_one(&store, settlement(alone.head.id, attempt, partial)).await);
        assert_eq!((record.state, record.answer), (JobState::Expired, None));
        let attempts = store.attempts(alone.head.id).await.unwrap();
        assert_eq!(attempts[0].answer.as_deref(), Some("cut sho"));
    }

    /// The rescuer finds jobs without a message: queued, routed, and running on a dead worker. Each again only
    /// after the same time.
    async fn the_rescuer_finds_stuck_jobs(store: Store) {
        let queued = admission(head(), "a prompt", AdmissionDecision::Queue);
        let (routed, alive, dead) = (plain(head()), plain(head()), plain(head()));
        let (deferred, led) = (deferred(head(), turn(0, 1)), cached("p"));
        let waiting = cached("p");
        for job in [&queued, &routed, &alive, &dead, &deferred, &led, &waiting] {
            admit_one(&store, job.clone()).await;
        }
        run_one(&store, alive.head.id).await;
        let brief = Claimant { lease: Duration::from_millis(1), ..claimant("worker-dead") };
        claim_as(&store, &brief, dead.head.id, false).await;
        run_one(&store, led.head.id).await;
        store.clock().advance(Duration::from_millis(800));
        let age = TimeDelta::milliseconds(700);
        let rescued = store.rescue(rules(age)).await.unwrap();
        let mut lost = released_ids(&rescued.stuck);
        lost.sort();
        let mut expected = [queued.head.id, routed.head.id, dead.head.id];
        expected.sort();
        assert_eq!(lost, expected);
        assert!(rescued.stuck.iter().any(|lost| matches!(lost, Released::Router(_))));
        assert_eq!(store.rescue(rules(age)).await.unwrap().stuck, [], "once in that time");
        let again = claim_one(&store, dead.head.id, false).await;
        assert_eq!(again, Claimed::Run { attempt: 2, poison_candidate: true, last: false });
        store.clock().advance(Duration::from_millis(800));
        let busy = RescueRules { stuck_after_busy: TimeDelta::hours(1), is_empty: [true, false, true], ..rules(age) };
        let rescued = store.rescue(busy).await.unwrap();
        assert_eq!(released_ids(&rescued.stuck), [queued.head.id], "small's queue has jobs yet");
    }

    /// Each rescue scans some open jobs; successive ones find every stuck job.
    async fn the_rescuer_continues_after_its_last_job(store: Store) {
        let (mut expected, mut found) = (Vec::new(), Vec::new());
        for at in 0..5 {
            let (lost, deferred) = (plain(head()), deferred(head(), turn(at, 1)));
            admit_one(&store, lost.clone()).await;
            admit_one(&store, deferred).await;
            expected.push(lost.head.id);
        }
        store.clock().advance(Duration::from_millis(300));
        let (mut from, mut sweeps) = (None, 0);
        loop {
            let rules = RescueRules { from, looked_at_max: 3, ..rules(TimeDelta::milliseconds(200)) };
            let rescued = store.rescue(rules).await.unwrap();
            found.extend(released_ids(&rescued.stuck));
            sweeps += 1;
            from = rescued.next;
            if from.is_none() {
                break;
            }
        }
        expected.sort();
        found.sort();
        assert_eq!((found, sweeps), (expected, 4));
    }

    /// The rescuer ends overdue jobs without a live worker, and returns records for replies.
    async fn the_rescuer_expires_overdue_jobs(store: Store) {
        let due = || JobHead { deadline: Some(now() + TimeDelta::milliseconds(600)), ..head() };
        let (routed, alive, deferred) = (plain(due()), plain(due()), deferred(due(), turn(0, 1)));
        for job in [&routed, &alive, &deferred] {
            admit_one(&store, job.clone()).await;
        }
        run_one(&store, alive.head.id).await;
        store.clock().advance(Duration::from_millis(700));
        let rescued = store.rescue(rules(TimeDelta::hours(1))).await.unwrap();
        let mut expired: Vec<_> = rescued.expired.iter().map(|record| record.id).collect();
        expired.sort();
        let mut expected = [routed.head.id, deferred.head.id];
        expected.sort();
        assert_eq!(expired, expected);
        for record in &rescued.expired {
            assert_eq!(record.state, JobState::Expired);
            assert_eq!(record.reason.as_ref().unwrap().code, "deadline_passed");
        }
        assert_eq!(store.rescue(rules(TimeDelta::hours(1))).await.unwrap().expired, []);
    }

    /// One holder leads at a time, until its lease is over.
    async fn one_holder_leads_at_a_time(store: Store) {
        let brief = Duration::from_millis(600);
        assert!(store.acquire_leadership("rescue", "a", brief).await.unwrap());
        assert!(store.acquire_leadership("rescue", "a", brief).await.unwrap());
        assert!(!store.acquire_leadership("rescue", "b", brief).await.unwrap());
        assert!(store.acquire_leadership("release", "b", brief).await.unwrap());
        store.clock().advance(Duration::from_millis(900));
        assert!(store.acquire_leadership("rescue", "b", brief).await.unwrap());
        assert!(!store.acquire_leadership("rescue", "a", brief).await.unwrap());
    }

    /// Released jobs count until they end, and their tokens for a minute where the tenant has a quota.
    async fn released_jobs_count_against_their_tenant(store: Store) {
        let quota = TenantLimits { tokens_per_minute: Some(100), ..TenantLimits::of(tenant("q")) };
        store.set_tenant(&quota).await.unwrap();
        let jobs = [deferred(of("q"), turn(2, 30)), deferred(of("q"), turn(1, 12)), deferred(of("p"), turn(0, 5))];
        for job in &jobs {
            admit_one(&store, job.clone()).await;
        }
        assert_eq!(store.tenant_loads().await.unwrap(), []);
        store.release(&jobs.clone().map(|job| job.head.id), false).await.unwrap();
        let loads = async || {
            let mut loads = store.tenant_loads().await.unwrap();
            loads.sort_by_key(|load| load.tenant.clone());
            let load = |load: promptyard::store::TenantLoad| (load.tenant.to_string(), load.running, load.tokens_last_minute);
            loads.into_iter().map(load).collect::<Vec<_>>()
        };
        assert_eq!(loads().await, [("p".to_owned(), 1, 5), ("q".to_owned(), 2, 42)]);
        for job in &jobs {
            succeed(&store, job.head.id, "yes", None).await;
        }
        assert_eq!(loads().await, [("q".to_owned(), 0, 42)], "tokens count on, jobs do not");
    }

    /// What tenants are entitled to can be said, changed and forgotten.
    async fn tenants_have_limits(store: Store) {
        assert_eq!(store.tenants().await.unwrap(), []);
        let all = TenantLimits {
            weight: 2.5,
            tokens_per_minute: Some(1000),
            running_max: Some(4),
            requests_per_minute: Some(60),
            ..TenantLimits::of(tenant("b"))
        };
        let plain = TenantLimits::of(tenant("a"));
        for terms in [&all, &plain, &all] {
            store.set_tenant(terms).await.unwrap();
        }
        assert_eq!(store.tenants().await.unwrap(), [plain.clone(), all]);
        assert!(store.forget_tenant(&tenant("b")).await.unwrap());
        assert!(!store.forget_tenant(&tenant("b")).await.unwrap());
        assert_eq!(store.tenants().await.unwrap(), [plain]);
    }

    /// A key is found by its digest while it is good.
    async fn keys_are_valid_until_revoked(store: Store) {
        let key = |name: &str, days: Option<i64>| ApiKey {
            id: uuid::Uuid::now_v7(),
            name: name.to_owned(),
            tenant: Some(tenant("t")),
            scopes: "submit,read".parse().unwrap(),
            created_at: now(),
            expires_at: days.map(|days| now() + TimeDelta::days(days)),
            revoked_at: None,
        };
        let (good, old, brief) = (key("good \0", None), key("old", Some(-1)), key("brief", Some(1)));
        for one in [&good, &old, &brief] {
            store.add_key(one, KeyDigest::of(&one.name)).await.unwrap();
        }
        let find = async |name: &str| store.find_key(KeyDigest::of(name)).await.unwrap();
        assert_eq!(find("good \0").await, Some(good.clone()));
        assert_eq!(find("brief").await, Some(brief.clone()));
        assert_eq!((find("old").await, find("none").await), (None, None));
        assert!(store.revoke_key(good.id).await.unwrap());
        assert!(!store.revoke_key(good.id).await.unwrap());
        assert_eq!(find("good \0").await, None);
        let keys = store.keys().await.unwrap();
        assert_eq!(keys.iter().map(|key| key.id).collect::<Vec<_>>(), [good.id, old.id, brief.id]);
        assert!(keys[0].revoked_at.is_some());
    }
}
