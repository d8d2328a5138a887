//! Many actors work on the same jobs concurrently; their observations must form one consistent history.

use std::collections::{HashMap, HashSet};

use chrono::TimeDelta;
use promptyard::{
    job::{AnswerSource, JobHead, JobId, JobRecord, JobState, Priority, Tenant, Tier},
    store::{Admission, AdmissionDecision, DeadFilter, Deferral, Store},
};

use crate::{
    actors::{ATTEMPTS_MAX, Actor, Observed, key_of},
    history_checks::judge_attempts,
    support::store::{admission, cache_key, head, now, route},
};

const WORKERS: u64 = 4;
const ROUTERS: u64 = 2;
const RELEASERS: u64 = 2;

/// Jobs of one tenant: a third are unique, the others identical in small groups. Some keys have two ids,
/// some jobs are deferred, some are due soon and some get fewer attempts.
fn jobs_of(tenant: &Tenant) -> Vec<Admission> {
    (0..48)
        .map(|nr| {
            let prompt = format!("prompt {}", nr % 12);
            let key = (nr % 3 > 0).then(|| cache_key(&format!("{tenant} {prompt}")));
            let head = JobHead {
                tenant: tenant.clone(),
                // Every twelfth job has the same prompt, so these repeat a key under another id.
                key: (nr % 4 == 0).then(|| format!("key {}", nr % 24)),
                deadline: (nr % 16 == 7).then(|| now() + TimeDelta::milliseconds(20)),
                attempts_max: (nr % 5 == 0).then_some(2),
                ..head()
            };
            let mut course = route(Tier::Small, key);
            if let AdmissionDecision::Route(route) = &mut course {
                route.deferral =
                    (nr % 6 == 0).then(|| Deferral::for_turn(now(), Priority::Normal, 1));
            }
            admission(head, &prompt, course)
        })
        .collect()
}

/// Runs all actors on some jobs, ends the jobs left open and checks the history.
pub async fn play(store: &Store, seed: u64) {
    let tenant: Tenant = JobId::now().0.simple().to_string().parse().unwrap();
    let jobs = jobs_of(&tenant);
    // Heartbeats outlast a round, so each round has its own workers.
    let actor =
        |name: &str, nr: u64| Actor::new(store, format!("{name}-{tenant}"), seed * 100 + nr, &jobs);
    let mut tasks = Vec::new();
    for nr in 0..ROUTERS {
        tasks.push(tokio::spawn(actor("router", nr).route()));
    }
    for nr in 0..WORKERS {
        tasks.push(tokio::spawn(actor(&format!("worker-{nr}"), 10 + nr).work()));
    }
    tasks.push(tokio::spawn(actor("dead letters", 20).tend()));
    tasks.push(tokio::spawn(actor("canceller", 21).cancel_some()));
    for nr in 0..RELEASERS {
        tasks.push(tokio::spawn(actor("releaser", 22 + nr).release_calls()));
    }
    tasks.push(tokio::spawn(actor("rescuer", 25).clean()));
    let mut observed = Observed::default();
    for task in tasks {
        observed.hear(task.await.unwrap());
    }
    let last = actor("last", 30).drain(&observed.taken_over).await;
    observed.hear(last);
    judge(store, &tenant, &jobs, &observed, seed).await;
}

/// Checks that every job ended once.
async fn judge(store: &Store, tenant: &Tenant, jobs: &[Admission], observed: &Observed, seed: u64) {
    let ids: Vec<JobId> = jobs.iter().map(|admission| admission.head.id).collect();
    let records: HashMap<JobId, JobRecord> = store
        .records(&ids)
        .await
        .unwrap()
        .into_iter()
        .map(|record| (record.id, record))
        .collect();
    let once: HashSet<JobId> = observed.ended.iter().copied().collect();
    assert_eq!(
        once.len(),
        observed.ended.len(),
        "seed {seed}: a job was ended twice"
    );
    let once: HashSet<JobId> = observed.released.iter().copied().collect();
    assert_eq!(
        once.len(),
        observed.released.len(),
        "seed {seed}: a job was released twice"
    );
    for id in &observed.lost {
        assert!(
            !observed.deferred.contains(id) || observed.release_calls.contains(id),
            "seed {seed}: {id} was held, not lost"
        );
    }
    for seen in &observed.terminal {
        assert_eq!(
            Some(seen),
            records.get(&seen.id),
            "seed {seed}: it changed after its end"
        );
    }
    let fenced = observed
        .words
        .iter()
        .filter(|word| !word.is_committed)
        .map(|word| &word.text);
    let committed = observed
        .words
        .iter()
        .filter(|word| word.is_committed)
        .map(|word| &word.text);
    let committed: HashSet<&String> = committed.collect();
    let fenced: HashSet<&String> = fenced.filter(|text| !committed.contains(text)).collect();
    for admission in jobs {
        let id = admission.head.id;
        let Some(record) = records.get(&id) else {
            let repeated = admission.head.key.is_some();
            assert!(repeated, "seed {seed}: {id} was lost");
            continue;
        };
        assert!(record.state.is_terminal(), "seed {seed}: {record:?}");
        assert_eq!(record.answer.is_some(), record.state == JobState::Succeeded);
        if let Some(answer) = &record.answer {
            assert!(!fenced.contains(&answer.text), "seed {seed}: {record:?}");
        }
        if let Some(by) = record.answered_by {
            let leader = &records[&by];
            assert_ne!(record.source, Some(AnswerSource::Computed));
            assert_eq!(
                leader.source,
                Some(AnswerSource::Computed),
                "seed {seed}: {leader:?}"
            );
            assert_eq!(record.answer, leader.answer, "seed {seed}: {record:?}");
            let of = |id| key_of(jobs.iter().find(|job| job.head.id == id).unwrap());
            assert_eq!(of(by), of(id), "seed {seed}: another question's answer");
        }
        assert_eq!(
            record.state == JobState::Cancelled,
            observed.cancelled.contains(&id),
            "seed {seed}: {record:?}"
        );
        let attempts_max = admission.head.attempts_max.unwrap_or(ATTEMPTS_MAX);
        judge_attempts(store, record, observed, (attempts_max, seed)).await;
    }
    let letters = DeadFilter {
        tenant: Some(tenant.clone()),
        ..DeadFilter::default()
    };
    let letters = store.dead_letters(&letters, 1000).await.unwrap();
    let mut dead: Vec<JobId> = letters.iter().filter_map(|letter| letter.job).collect();
    dead.sort_unstable();
    let is_dead = |record: &&JobRecord| {
        let code = record.reason.as_ref().map(|reason| reason.code.as_str());
        record.state == JobState::Failed && code != Some("delivery_limit")
    };
    let mut failed: Vec<JobId> = records
        .values()
        .filter(is_dead)
        .map(|record| record.id)
        .collect();
    failed.sort_unstable();
    assert_eq!(
        dead, failed,
        "seed {seed}: one letter for each job whose attempts were spent"
    );
}
