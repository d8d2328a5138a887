//! Reads: pages, dead letters, workers, overview.

use std::{collections::HashMap, time::Duration};

use chrono::TimeDelta;
use promptyard::{
    job::{JobHead, JobId, JobState},
    store::{
        AdmissionDecision, DeadFilter, DeadLetter, DeadResolution, RecordFilter, Store,
        WorkerRecord,
    },
};
use uuid::Uuid;

use crate::{
    contract,
    support::store::{
        LONG, admission, claimant, head, heartbeat, now, plain, reason, run_one, succeed, tenant,
    },
};

fn rejected(head: JobHead) -> promptyard::store::Admission {
    let end = AdmissionDecision::End {
        state: JobState::Rejected,
        reason: reason("invalid_value"),
    };
    admission(head, "a prompt", end)
}

fn letter(code: &str, owner: &str, age_s: i64) -> DeadLetter {
    DeadLetter {
        id: Uuid::now_v7(),
        job: Some(JobId::now()),
        tenant: Some(tenant(owner)),
        queue: "jobs.in".to_owned(),
        reason: reason(code),
        body: vec![0, 255, b'{'],
        died_at: now() - TimeDelta::seconds(age_s),
    }
}

contract! {
    /// Pages of finished jobs, put together, are all of them, each once, in order.
    async fn pages_are_complete(store: Store) {
        for _ in 0..5 {
            let batch: Vec<_> = (0..5).map(|_| rejected(head())).collect();
            store.admit(&batch, LONG).await.unwrap();
        }
        store.admit(&[plain(head())], LONG).await.unwrap();
        let mut filter = RecordFilter::default();
        let mut seen = Vec::new();
        loop {
            let page = store.finished(&filter, 4).await.unwrap();
            let Some(last) = page.last() else { break };
            filter.after = Some((last.finished_at.unwrap(), last.id));
            seen.extend(page.iter().map(|record| (record.finished_at.unwrap(), record.id)));
        }
        assert_eq!(seen.len(), 25);
        assert!(seen.is_sorted_by(|a, b| a < b));
    }

    /// Finished jobs can be chosen by tenant, batch and time.
    async fn pages_are_filtered(store: Store) {
        let ours = JobHead { tenant: tenant("ours"), batch: Some("b".to_owned()), ..head() };
        store.admit(&[rejected(ours.clone()), rejected(head())], LONG).await.unwrap();
        let find = async |filter| {
            let records = store.finished(&filter, 10).await.unwrap();
            records.iter().map(|record| record.id).collect::<Vec<_>>()
        };
        let all = RecordFilter::default;
        assert_eq!(find(all()).await.len(), 2);
        assert_eq!(find(RecordFilter { tenant: Some(tenant("ours")), ..all() }).await, [ours.id]);
        assert_eq!(find(RecordFilter { batch: Some("b".to_owned()), ..all() }).await, [ours.id]);
        assert!(find(RecordFilter { batch: Some("c".to_owned()), ..all() }).await.is_empty());
        let since = |at| RecordFilter { finished_since: Some(at), ..all() };
        assert_eq!(find(since(now() - TimeDelta::hours(1))).await.len(), 2);
        assert!(find(since(now() + TimeDelta::hours(1))).await.is_empty());
        let exact = store.records(&[ours.id]).await.unwrap()[0].finished_at.unwrap();
        assert!(find(since(exact)).await.contains(&ours.id), "since includes its instant");
    }

    /// Dead letters are kept once, listed oldest first by any filter, and resolved once.
    async fn dead_letters_are_stored(store: Store) {
        let letters = [letter("delivery_limit", "a", 20), letter("expired", "a", 30), letter("expired", "b", 10)];
        store.keep_dead_letters(&letters).await.unwrap();
        store.keep_dead_letters(&letters[..1]).await.unwrap();
        let find = async |filter: DeadFilter, limit| {
            let found = store.dead_letters(&filter, limit).await.unwrap();
            found.iter().map(|letter| letter.id).collect::<Vec<_>>()
        };
        let [first, second, third] = [letters[0].id, letters[1].id, letters[2].id];
        let all = DeadFilter::default;
        assert_eq!(find(all(), 10).await, [second, first, third]);
        assert_eq!(find(all(), 1).await, [second]);
        assert_eq!(store.dead_letters(&all(), 10).await.unwrap()[1], letters[0]);
        assert_eq!(find(DeadFilter { ids: vec![third, first], ..all() }, 10).await, [first, third]);
        assert_eq!(find(DeadFilter { reason: Some("expired".to_owned()), ..all() }, 10).await, [second, third]);
        assert_eq!(find(DeadFilter { tenant: Some(tenant("b")), ..all() }, 10).await, [third]);
        let before = now() - TimeDelta::seconds(15);
        assert_eq!(find(DeadFilter { died_before: Some(before), ..all() }, 10).await, [second, first]);
        let done = store.resolve_dead(&[first, second], DeadResolution::Redriven).await.unwrap();
        assert_eq!(done, 2);
        let again = store.resolve_dead(&[second, third], DeadResolution::Discarded).await.unwrap();
        assert_eq!(again, 1);
        assert!(find(all(), 10).await.is_empty());
        assert_eq!(store.overview().await.unwrap().dead_letters, 0);
    }

    /// A dead letter without a readable job is kept.
    async fn dead_letters_without_a_job_are_stored(store: Store) {
        let bare = DeadLetter { job: None, tenant: None, body: Vec::new(), ..letter("foreign", "a", 0) };
        store.keep_dead_letters(std::slice::from_ref(&bare)).await.unwrap();
        assert_eq!(store.dead_letters(&DeadFilter::default(), 10).await.unwrap(), [bare]);
    }

    /// Workers are known by their last heartbeat, the latest first.
    async fn workers_show_signs_of_life(store: Store) {
        store.heartbeat(&heartbeat(claimant("a"))).await.unwrap();
        store.heartbeat(&heartbeat(claimant("b"))).await.unwrap();
        let mut last = heartbeat(claimant("a"));
        (last.running, last.draining) = (5, true);
        store.heartbeat(&last).await.unwrap();
        let workers = store.workers(LONG).await.unwrap();
        assert_eq!(workers.iter().map(|w| w.worker.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        let expected = WorkerRecord {
            worker: "a".to_owned(),
            tier: promptyard::job::Tier::Small,
            model: "tiny".to_owned(),
            revision: "r1".to_owned(),
            batch_max: 16,
            context_tokens: Some(2048),
            running: 5,
            draining: true,
            takes_affinity_queues: true,
            lease_until: workers[0].lease_until,
            seen_at: workers[0].seen_at,
        };
        assert_eq!(workers[0], expected);
        assert!(now() - workers[0].seen_at < TimeDelta::minutes(1));
        assert_eq!(store.workers(Duration::ZERO).await.unwrap(), []);
    }

    /// The overview counts states, the last minute's work and open dead letters.
    async fn overview_counts(store: Store) {
        assert_eq!(store.overview().await.unwrap(), promptyard::store::Overview::default());
        let jobs: Vec<_> = (0..4).map(|_| plain(head())).collect();
        store.admit(&jobs, LONG).await.unwrap();
        store.admit(&[rejected(head())], LONG).await.unwrap();
        succeed(&store, jobs[0].head.id, "yes", None).await;
        run_one(&store, jobs[1].head.id).await;
        store.keep_dead_letters(&[letter("expired", "a", 0)]).await.unwrap();
        let overview = store.overview().await.unwrap();
        let states: HashMap<_, _> = overview.states.into_iter().collect();
        let expected = [
            (JobState::Routed, 2), (JobState::Running, 1), (JobState::Succeeded, 1), (JobState::Rejected, 1),
        ];
        assert_eq!(states, HashMap::from(expected));
        assert_eq!(overview.finished_last_minute, 2);
        assert_eq!(overview.completion_tokens_last_minute, 7);
        assert_eq!(overview.dead_letters, 1);
    }

    /// A migrated database fits and can be reached; migrating again does nothing; dropped, it does not fit.
    async fn schema_is_checked(store: Store) {
        store.check_schema().await.unwrap();
        assert_eq!(store.migrate().await.unwrap(), 0);
        store.ensure_partitions().await.unwrap();
        assert!(store.is_reachable().await);
        store.drop_all().await.unwrap();
        let error = store.check_schema().await.unwrap_err();
        assert!(matches!(error, promptyard::store::StoreError::Schema { .. }), "{error}");
        let error = store.records(&[JobId::now()]).await.unwrap_err();
        assert!(matches!(error, promptyard::store::StoreError::Schema { .. }), "{error}");
        assert!(!error.is_transient());
        assert!(store.migrate().await.unwrap() > 0);
        store.check_schema().await.unwrap();
    }
}
