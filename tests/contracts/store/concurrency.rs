//! Many processes at one database: every job still ends once.

use std::collections::HashSet;

use promptyard::{
    job::{AnswerSource, JobId, JobState},
    store::{
        Admission, Admitted, AttemptOutcome, Claim, Claimed, RecordFilter, Settled, Settlement,
        Store,
    },
};

use crate::{
    contract,
    support::store::{
        LONG, admission, answer, cache_key, cached, claimant, keyed, route, settlement,
    },
};

/// One of several that do the same: admits all jobs, runs those it may, takes over the rest.
async fn work(store: Store, name: usize, jobs: Vec<Admission>) -> Vec<JobId> {
    let mut settled = Vec::new();
    let claimant = claimant(&format!("worker-{name}"));
    // Each begins elsewhere, so that they meet in every order.
    let mut order = jobs.clone();
    order.rotate_left(name * jobs.len() / 8);
    for batch in order.chunks(32) {
        let outcomes = store.admit(batch, LONG).await.unwrap();
        let routed: Vec<Claim> = batch
            .iter()
            .zip(&outcomes)
            .filter_map(|(admission, outcome)| match outcome {
                Admitted::Routed => Some(admission.head.id),
                // A message that is redelivered is put on its queue again.
                Admitted::Known(record) if record.state == JobState::Routed => Some(record.id),
                _ => None,
            })
            .map(|job| Claim {
                job,
                redelivered: false,
            })
            .collect();
        let claimed = store.claim(&claimant, &routed).await.unwrap();
        let ends: Vec<Settlement> = routed
            .iter()
            .zip(claimed)
            .filter_map(|(claim, outcome)| match outcome {
                Claimed::Run { attempt, .. } => {
                    let admission = jobs.iter().find(|job| job.head.id == claim.job)?;
                    Some(Settlement {
                        cache_key: key_of(admission),
                        ..settlement(claim.job, attempt, AttemptOutcome::Succeeded(answer("yes")))
                    })
                }
                _ => None,
            })
            .collect();
        for outcome in store.settle(&ends, LONG).await.unwrap() {
            if let Settled::Committed { record, shared } = outcome {
                settled.push(record.id);
                settled.extend(shared.iter().map(|record| record.id));
            }
        }
    }
    settled
}

fn key_of(admission: &Admission) -> Option<promptyard::job::CacheKey> {
    match &admission.decision {
        promptyard::store::AdmissionDecision::Route(route) => route.cache_key,
        _ => None,
    }
}

contract! {
    /// Eight tasks admit, claim and settle the same 200 jobs: each ends in one terminal row, settled
    /// by one task, and each key was computed by some job.
    async fn every_job_ends_once(store: Store) {
        let jobs: Vec<Admission> = (0..200)
            .map(|nr| {
                let prompt = format!("prompt {}", nr % 60);
                let key = (nr % 3 > 0).then(|| cache_key(&prompt));
                admission(keyed(&format!("key-{nr}")), &prompt, route(promptyard::job::Tier::Small, key))
            })
            .collect();
        let tasks: Vec<_> = (0..8)
            .map(|name| tokio::spawn(work(store.clone(), name, jobs.clone())))
            .collect();
        let mut settled = Vec::new();
        for task in tasks {
            settled.extend(task.await.unwrap());
        }
        let unique: HashSet<JobId> = settled.iter().copied().collect();
        assert_eq!(unique.len(), settled.len(), "no job was settled twice");
        let records = store.finished(&RecordFilter::default(), 1000).await.unwrap();
        assert_eq!(records.len(), 200);
        let mut attempts = 0;
        for record in &records {
            assert_eq!(record.state, JobState::Succeeded);
            assert_eq!(record.answer, Some(answer("yes")));
            let own = store.attempts(record.id).await.unwrap();
            assert_eq!(own.len(), record.attempts as usize);
            assert!(own.iter().all(|attempt| attempt.outcome == "succeeded"), "{own:?}");
            attempts += own.len();
        }
        let computed = records.iter().filter(|r| r.source == Some(AnswerSource::Computed)).count();
        assert_eq!(attempts, computed);
        let hits = records.iter().filter(|r| r.source == Some(AnswerSource::Cache)).count();
        assert_eq!(settled.len() + hits, 200, "every other job was a hit");
    }

    /// Of many that ask for the same answer at once, one leads.
    async fn one_job_leads(store: Store) {
        let tasks: Vec<_> = (0..16)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move { store.admit(&[cached("p")], LONG).await.unwrap().remove(0) })
            })
            .collect();
        let mut led = 0;
        for task in tasks {
            match task.await.unwrap() {
                Admitted::Routed => led += 1,
                other => assert_eq!(other, Admitted::Waiting),
            }
        }
        assert_eq!(led, 1);
    }

    /// Jobs that join while the leader settles are answered with it or by the cache, never forgotten.
    async fn no_waiting_job_is_forgotten(store: Store) {
        for round in 0..20 {
            let prompt = format!("p{round}");
            let leader = cached(&prompt);
            store.admit(std::slice::from_ref(&leader), LONG).await.unwrap();
            let claims = [Claim { job: leader.head.id, redelivered: false }];
            store.claim(&claimant("w"), &claims).await.unwrap();
            let joining: Vec<_> = (0..4)
                .map(|_| {
                    let (store, admission) = (store.clone(), cached(&prompt));
                    tokio::spawn(async move { store.admit(&[admission], LONG).await.unwrap().remove(0) })
                })
                .collect();
            let end = Settlement {
                cache_key: Some(cache_key(&prompt)),
                ..settlement(leader.head.id, 1, AttemptOutcome::Succeeded(answer("yes")))
            };
            let mut settled = store.settle(&[end], LONG).await.unwrap();
            let (_, shared) = crate::support::store::committed(settled.remove(0));
            let mut waiting = 0;
            for task in joining {
                waiting += usize::from(task.await.unwrap() == Admitted::Waiting);
            }
            assert_eq!(waiting, shared.len());
        }
    }

    /// Concurrent takeovers take each waiting job once.
    async fn concurrent_takeovers_do_not_collide(store: Store) {
        let mut jobs = Vec::new();
        for nr in 0..40 {
            jobs.extend([cached(&format!("p{nr}")), cached(&format!("p{nr}"))]);
        }
        store.admit(&jobs, std::time::Duration::ZERO).await.unwrap();
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move { store.take_over_flights(100, LONG).await.unwrap() })
            })
            .collect();
        let mut taken_over = Vec::new();
        for task in tasks {
            taken_over.extend(task.await.unwrap().into_iter().map(|routed| routed.job.head.id));
        }
        let unique: HashSet<JobId> = taken_over.iter().copied().collect();
        assert_eq!((unique.len(), taken_over.len()), (40, 40));
    }
}
