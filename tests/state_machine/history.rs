//! Many act on the same jobs at once; what they were told must be the story of one ledger.

use std::collections::{BTreeMap, HashMap, HashSet};

use promptyard::{
    job::{AnswerSource, JobHead, JobId, JobRecord, JobState, Tenant, Tier},
    store::{Admission, DeadFilter, Store},
};

use crate::{
    actors::{ATTEMPTS_MAX, Actor, Run, Told, key_of},
    fixture::{admission, cache_key, head, route},
};

const WORKERS: u64 = 4;
const ROUTERS: u64 = 2;

/// Jobs of one tenant, a third of them alone, the others in small groups that ask the same; some keys
/// come under two ids.
fn jobs_of(tenant: &Tenant) -> Vec<Admission> {
    (0..48)
        .map(|nr| {
            let prompt = format!("prompt {}", nr % 12);
            let key = (nr % 3 > 0).then(|| cache_key(&format!("{tenant} {prompt}")));
            let head = JobHead {
                tenant: tenant.clone(),
                // Jobs 12 apart ask the same, so these are repetitions under another id.
                key: (nr % 4 == 0).then(|| format!("key {}", nr % 24)),
                ..head()
            };
            admission(head, &prompt, route(Tier::Small, key))
        })
        .collect()
}

/// Has many act on some jobs, ends what they left open and judges the history.
pub async fn play(store: &Store, seed: u64) {
    let tenant: Tenant = JobId::now().0.simple().to_string().parse().unwrap();
    let jobs = jobs_of(&tenant);
    // Signs of life outlast a round, so each has workers of its own.
    let actor =
        |name: &str, nr: u64| Actor::new(store, format!("{name}-{tenant}"), seed * 100 + nr, &jobs);
    let mut tasks = Vec::new();
    for nr in 0..ROUTERS {
        tasks.push(tokio::spawn(actor("router", nr).route()));
    }
    for nr in 0..WORKERS {
        tasks.push(tokio::spawn(actor(&format!("worker-{nr}"), 10 + nr).work()));
    }
    tasks.push(tokio::spawn(actor("undertaker", 20).tend()));
    let mut told = Told::default();
    let hear = |told: &mut Told, part: Told| {
        told.runs.extend(part.runs);
        told.words.extend(part.words);
        told.ended.extend(part.ended);
        told.terminal.extend(part.terminal);
        told.promoted.extend(part.promoted);
    };
    for task in tasks {
        hear(&mut told, task.await.unwrap());
    }
    let last = actor("last", 30).drain(&told.promoted).await;
    hear(&mut told, last);
    judge(store, &tenant, &jobs, &told, seed).await;
}

/// One story, in which every job ends once.
async fn judge(store: &Store, tenant: &Tenant, jobs: &[Admission], told: &Told, seed: u64) {
    let ids: Vec<JobId> = jobs.iter().map(|admission| admission.head.id).collect();
    let records: HashMap<JobId, JobRecord> = store
        .records(&ids)
        .await
        .unwrap()
        .into_iter()
        .map(|record| (record.id, record))
        .collect();
    let once: HashSet<JobId> = told.ended.iter().copied().collect();
    assert_eq!(
        once.len(),
        told.ended.len(),
        "seed {seed}: a job was ended twice"
    );
    for seen in &told.terminal {
        assert_eq!(
            Some(seen),
            records.get(&seen.id),
            "seed {seed}: it changed after its end"
        );
    }
    let fenced = told
        .words
        .iter()
        .filter(|word| !word.is_committed)
        .map(|word| &word.text);
    let committed = told
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
        judge_attempts(store, record, told, seed).await;
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

/// Every attempt was given to one worker and came to what that worker was told, or was lost.
async fn judge_attempts(store: &Store, record: &JobRecord, told: &Told, seed: u64) {
    let id = record.id;
    let rows = store.attempts(id).await.unwrap();
    let mut runs: BTreeMap<u32, &Run> = BTreeMap::new();
    for run in told.runs.iter().filter(|run| run.job == id) {
        let earlier = runs.insert(run.attempt, run);
        assert!(
            earlier.is_none(),
            "seed {seed}: {run:?} and {earlier:?} are one attempt"
        );
    }
    let numbers: Vec<u32> = rows.iter().map(|row| row.attempt).collect();
    assert_eq!(
        numbers,
        (1..=record.attempts).collect::<Vec<_>>(),
        "seed {seed}: {id}"
    );
    assert!(
        runs.keys().eq(&numbers),
        "seed {seed}: {runs:?} are not {numbers:?}"
    );
    let (mut counted, mut before) = (0, "");
    for row in &rows {
        let run = runs[&row.attempt];
        let words = told
            .words
            .iter()
            .filter(|word| word.job == id && word.attempt == row.attempt && word.is_committed);
        let outcomes: Vec<&str> = words.map(|word| word.outcome).collect();
        let expected = outcomes.first().copied().unwrap_or("lost");
        assert!(
            outcomes.len() <= 1,
            "seed {seed}: settled {outcomes:?} {row:?}"
        );
        assert_eq!(row.outcome, expected, "seed {seed}: {id} {row:?}");
        assert_eq!(row.worker, run.worker);
        assert_eq!(
            run.suspect,
            before == "lost",
            "seed {seed}: {run:?} after {before:?}"
        );
        counted += u32::from(expected != "returned");
        assert!(
            counted <= ATTEMPTS_MAX,
            "seed {seed}: {id} has {counted} attempts"
        );
        let would_count = counted + u32::from(expected == "returned");
        assert_eq!(
            run.last,
            would_count == ATTEMPTS_MAX,
            "seed {seed}: {run:?}"
        );
        let is_end = matches!(expected, "succeeded" | "failed" | "expired");
        assert!(
            !is_end || row.attempt == record.attempts,
            "seed {seed}: {rows:?}"
        );
        before = expected;
    }
}
