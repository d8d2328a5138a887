//! Kept answers as a whole: what goes by itself, what people remove, and what must not go.

use std::time::Duration;

use promptyard::{
    job::{JobId, ReplyTo},
    store::{
        Admission, Admitted, AttemptOutcome, CacheFilter, CacheLimits, CacheUpkeep, Claimant,
        Heartbeat, Settlement, Store,
    },
};

use crate::{
    contract,
    support::store::{
        LONG, admission, admit_one, answer, cache_key, cached, claim_as, claimant, head, heartbeat,
        now, route, run_one, settle_one, settlement, succeed, tenant,
    },
};

const ROOMY: CacheLimits = CacheLimits {
    entries_max: 1000,
    tenant_entries_max: 1000,
    bytes_max: 1 << 30,
    stale_after: LONG,
};

/// Keeps an answer to a prompt, for a tenant; returns the job.
async fn keep(store: &Store, name: &str, prompt: &str) -> JobId {
    let mut asked = cached(prompt);
    asked.head.tenant = tenant(name);
    admit_one(store, asked.clone()).await;
    succeed(store, asked.head.id, "an answer", Some(cache_key(prompt))).await;
    asked.head.id
}

async fn tend(store: &Store, limits: CacheLimits) -> CacheUpkeep {
    store
        .tend_cache(limits)
        .await
        .unwrap()
        .expect("nobody else is at it")
}

/// Whether a prompt's answer is still there.
async fn is_kept(store: &Store, prompt: &str) -> bool {
    store.cached(cache_key(prompt)).await.unwrap().is_some()
}

contract! {
    /// Entries within their age and limits stay.
    async fn expired_entries_are_removed(store: Store) {
        keep(&store, "a", "fresh").await;
        let over = cached("over");
        admit_one(&store, over.clone()).await;
        let attempt = run_one(&store, over.head.id).await;
        let settled = Settlement {
            cache_key: Some(cache_key("over")),
            ..settlement(over.head.id, attempt, AttemptOutcome::Succeeded(answer("old")))
        };
        store.settle(&[settled], Duration::ZERO).await.unwrap();
        let done = tend(&store, ROOMY).await;
        assert_eq!((done.expired, done.evicted, done.stale, done.abandoned), (1, 0, 0, 0));
        assert_eq!(done.entries, 1);
        assert!(done.bytes > 20, "{done:?}");
        assert!(is_kept(&store, "fresh").await && !is_kept(&store, "over").await);
        let again = tend(&store, ROOMY).await;
        assert_eq!(again, CacheUpkeep { expired: 0, ..done });
    }

    /// Beyond the limits the answers used longest ago go; one tenant's flood takes nothing from another.
    async fn the_least_recently_used_entries_are_evicted(store: Store) {
        for prompt in ["one", "two", "three", "four"] {
            keep(&store, "flood", prompt).await;
        }
        keep(&store, "trickle", "mine").await;
        assert!(is_kept(&store, "one").await, "and so used last");
        let done = tend(&store, CacheLimits { tenant_entries_max: 2, ..ROOMY }).await;
        assert_eq!((done.evicted, done.entries), (2, 3));
        let stats = store.cache_stats().await.unwrap();
        let kept: Vec<_> = stats.iter().map(|s| (s.tenant.as_str(), s.entries, s.hits)).collect();
        assert_eq!(kept, [("flood", 2, 1), ("trickle", 1, 0)]);
        let done = tend(&store, CacheLimits { entries_max: 2, ..ROOMY }).await;
        assert_eq!((done.evicted, done.entries), (1, 2));
        assert!(!is_kept(&store, "four").await, "the oldest of those never used");
        let one = done.bytes / 2;
        let done = tend(&store, CacheLimits { bytes_max: one + one / 2, ..ROOMY }).await;
        assert_eq!((done.evicted, done.entries), (1, 1));
        assert!(is_kept(&store, "one").await);
        let done = tend(&store, CacheLimits { bytes_max: 0, ..ROOMY }).await;
        assert_eq!((done.entries, done.bytes), (0, 0));
    }

    /// Answers of a revision that nobody serves any more go once another one is served; a name that
    /// no worker ever served so (a model server's own fingerprint) says nothing.
    async fn answers_of_retired_revisions_are_removed(store: Store) {
        let old = Claimant { revision: "r1+1234abcd".to_owned(), ..claimant("old") };
        let new = |revision: &str| Heartbeat {
            claimant: Claimant { revision: revision.to_owned(), ..claimant("new") },
            ..heartbeat(claimant("new"))
        };
        store.heartbeat(&heartbeat(old.clone())).await.unwrap();
        let asked = cached("p");
        admit_one(&store, asked.clone()).await;
        claim_as(&store, &old, asked.head.id, false).await;
        let settled = Settlement {
            cache_key: Some(cache_key("p")),
            ..settlement(asked.head.id, 1, AttemptOutcome::Succeeded(answer("so")))
        };
        settle_one(&store, settled).await;
        let hasty = CacheLimits { stale_after: Duration::ZERO, ..ROOMY };
        // Nobody serves another revision: it may come back.
        assert_eq!(tend(&store, hasty).await.stale, 0);
        store.heartbeat(&new("r2")).await.unwrap();
        assert_eq!(tend(&store, ROOMY).await.stale, 0, "its worker was seen a moment ago");
        store.heartbeat(&new("r2")).await.unwrap();
        let soon = CacheLimits { stale_after: Duration::from_millis(300), ..ROOMY };
        store.clock().advance(Duration::from_millis(400));
        store.heartbeat(&new("r2")).await.unwrap();
        assert_eq!(tend(&store, soon).await.stale, 1);
        assert!(!is_kept(&store, "p").await);
    }

    /// An entry that a job computes, or that jobs wait for, is no answer and stays.
    async fn entries_in_computation_are_kept(store: Store) {
        let leader = cached("p");
        admit_one(&store, leader.clone()).await;
        let nothing = CacheLimits { entries_max: 0, tenant_entries_max: 0, bytes_max: 0, stale_after: Duration::ZERO };
        assert_eq!(tend(&store, nothing).await, CacheUpkeep::default());
        assert_eq!(admit_one(&store, cached("p")).await, Admitted::Waiting);
        assert_eq!(store.drop_cached(&CacheFilter::default()).await.unwrap(), 0);
        let (_, shared) = succeed(&store, leader.head.id, "so", Some(cache_key("p"))).await;
        assert_eq!(shared.len(), 1);
    }

    /// People remove what a filter means, and nothing else; jobs keep their answers.
    async fn entries_are_dropped_by_filter(store: Store) {
        let first = keep(&store, "a", "one").await;
        keep(&store, "a", "two").await;
        keep(&store, "b", "three").await;
        let of = |change: fn(&mut CacheFilter)| { let mut filter = CacheFilter::default(); change(&mut filter); filter };
        for (filter, meant) in [
            (of(|_| {}), 3),
            (of(|f| f.tenant = Some(tenant("a"))), 2),
            (of(|f| f.model = Some("tiny".to_owned())), 3),
            (of(|f| f.revision = Some("r2".to_owned())), 0),
            (of(|f| f.answered_before = Some(now() + Duration::from_secs(5))), 3),
            (of(|f| f.answered_before = Some(now() - LONG)), 0),
            (CacheFilter { job: Some(first), ..CacheFilter::default() }, 1),
            (CacheFilter { job: Some(first), tenant: Some(tenant("b")), ..CacheFilter::default() }, 0),
        ] {
            assert_eq!(store.count_cached(&filter).await.unwrap(), meant, "{filter:?}");
        }
        let mine = CacheFilter { job: Some(first), ..CacheFilter::default() };
        assert_eq!(store.drop_cached(&mine).await.unwrap(), 1);
        assert!(!is_kept(&store, "one").await && is_kept(&store, "two").await);
        let all = of(|f| f.tenant = Some(tenant("a")));
        assert_eq!(store.drop_cached(&all).await.unwrap(), 1);
        assert_eq!(store.count_cached(&CacheFilter::default()).await.unwrap(), 1);
        let records = store.records(&[first]).await.unwrap();
        assert_eq!(records[0].answer.as_ref().unwrap().text, "an answer");
    }

    /// The jobs that were settled with another's answer are found again by it, if they want a reply.
    async fn jobs_answered_by_single_flight_are_found(store: Store) {
        let asking = |queue: Option<&str>| {
            let reply_to = queue.map(|queue| ReplyTo { queue: queue.to_owned(), correlation_id: None });
            let mut head = head();
            head.reply_to = reply_to;
            admission(head, "p", route(promptyard::job::Tier::Small, Some(cache_key("p"))))
        };
        let jobs: Vec<Admission> = [Some("q1"), Some("q2"), None, Some("q3")].map(asking).into();
        store.admit(&jobs, LONG).await.unwrap();
        succeed(&store, jobs[0].head.id, "so", Some(cache_key("p"))).await;
        // A later one was answered by itself, from the cache.
        admit_one(&store, asking(Some("q4"))).await;
        let along = store.answered_along(&[jobs[0].head.id]).await.unwrap();
        let ids: Vec<_> = along.iter().map(|record| record.id).collect();
        assert_eq!(ids, [jobs[1].head.id, jobs[3].head.id]);
        assert_eq!(along[0].answer.as_ref().unwrap().text, "so");
        assert!(store.answered_along(&[JobId::now()]).await.unwrap().is_empty());
    }
}
