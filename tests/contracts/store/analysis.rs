//! The views give the figures that the jobs' own rows add up to, alike in both dialects.

use promptyard::{
    config::StoreConfig,
    job::{ContextSavings, Tier},
    store::{AttemptOutcome, DeadLetter, Settled, Settlement, Store},
};
use sqlx::{Connection, SqliteConnection};
use uuid::Uuid;

use crate::{
    store::escalation::{big_answer, escalate, large},
    support::store::{
        LONG, admission, admit_one, answer, cache_key, cached, claim_as, committed, head, now,
        plain, reason, record, route, run_one, settle_one, settlement, succeed, with_postgres,
        with_sqlite,
    },
};

/// Two computed answers (one after a retry), one shared, two hits, one failure, one job for large.
async fn fill(store: &Store) {
    let jobs = [cached("p"), cached("p"), plain(head()), plain(head())];
    store.admit(&jobs, LONG).await.unwrap();
    succeed(store, jobs[0].head.id, "yes", Some(cache_key("p"))).await;
    store
        .admit(&[cached("p"), cached("p")], LONG)
        .await
        .unwrap();
    let attempt = run_one(store, jobs[2].head.id).await;
    let retry = AttemptOutcome::Retry(reason("engine_unavailable"));
    settle_one(store, settlement(jobs[2].head.id, attempt, retry)).await;
    let id = jobs[2].head.id;
    let saving = Settlement {
        saved: ContextSavings {
            cleaned_tokens: 5,
            pruned_tokens: 9,
        },
        ..settlement(
            id,
            run_one(store, id).await,
            AttemptOutcome::Succeeded(answer("yes")),
        )
    };
    // An attempt that was overtaken saves nothing.
    let late = Settlement {
        attempt: 1,
        ..saving.clone()
    };
    assert_eq!(settle_one(store, late).await, Settled::Fenced);
    let (ended, _) = committed(settle_one(store, saving.clone()).await);
    assert_eq!(ended.saved, saving.saved);
    assert_eq!(record(store, id).await.saved, saving.saved);
    let attempt = run_one(store, jobs[3].head.id).await;
    let failed = AttemptOutcome::Failed(reason("unservable"));
    settle_one(
        store,
        Settlement {
            ..settlement(jobs[3].head.id, attempt, failed)
        },
    )
    .await;
    admit_one(store, admission(head(), "large", route(Tier::Large, None))).await;
    let letter = DeadLetter {
        id: Uuid::now_v7(),
        job: None,
        tenant: None,
        queue: "jobs.in".to_owned(),
        reason: reason("expired"),
        body: Vec::new(),
        died_at: now(),
    };
    store.keep_dead_letters(&[letter]).await.unwrap();
    assert_eq!(answer("yes").usage.completion_tokens, 7);
}

/// What each view is asked, and what it must answer. Sums go over hours, so that a test which
/// straddles one still adds up.
const FIGURES: [(&str, &str); 12] = [
    ("select cast(sum(jobs) as text) from latency where tier = 'small'", "5"),
    (
        "select case when min(p50_s) >= 0 and max(p99_s) < 60 and min(p99_s) >= min(p50_s)
                     then 'sane' else 'odd' end from latency",
        "sane",
    ),
    (
        "select cast(sum(case when tier = 'large' then jobs end) as text) || ' of ' || cast(sum(jobs) as text)
           from route_mix where scorer = 'length-1' and score_mean = 0.25 and share > 0 and share < 1",
        "1 of 7",
    ),
    (
        "select cast(sum(computed) as text) || ' ' || cast(sum(from_cache) as text) || ' '
                || cast(sum(shared) as text) || ' ' || cast(sum(prompt_tokens_saved) as text) || ' '
                || cast(sum(completion_tokens_saved) as text) from cache_savings",
        "2 2 1 60 21",
    ),
    (
        "select cast(sum(prompt_tokens_sent) as text) || ' ' || cast(sum(prompt_tokens_computed) as text)
                || ' ' || cast(sum(completion_tokens) as text) from tokens where model = 'tiny'",
        "40 30 14",
    ),
    (
        "select cast(sum(prompt_tokens_sent) as text) || ' ' || cast(sum(prompt_tokens_computed) as text)
                || ' ' || cast(sum(reused_tokens) as text) || ' ' || cast(sum(prefix_tokens) as text)
                || ' ' || cast(sum(cleaned_tokens) as text) || ' ' || cast(sum(pruned_tokens) as text)
           from token_savings",
        "40 30 60 10 5 9",
    ),
    (
        "select cast(sum(case when outcome = 'succeeded' then attempts end) as text) || ' '
                || cast(sum(case when reason_code = 'engine_unavailable' then attempts end) as text) || ' '
                || cast(sum(case when outcome = 'failed' then attempts end) as text) from attempt_outcomes",
        "2 1 1",
    ),
    (
        "select cast(sum(jobs) as text) || ' ' || cast(sum(succeeded) as text) || ' '
                || cast(sum(unanswered) as text) || ' ' || cast(sum(unfinished) as text) || ' '
                || cast(sum(prompt_tokens) as text) || ' ' || cast(sum(completion_tokens) as text)
           from tenant_usage where tenant = 'default'",
        "7 5 1 1 40 14",
    ),
    (
        "select cast(sum(jobs) as text) || ' ' || min(route_reason) from route_decisions
          where score_mean = 0.25 and threshold_mean = 0.5",
        "7 score",
    ),
    (
        "select cast(sum(jobs) as text) from share_delivered where share = 0 and share_asked is null",
        "7",
    ),
    (
        "select cast(sum(jobs) as text) from score_distribution where score_from = 0.25",
        "7",
    ),
    (
        "select queue || ' ' || reason_code || ' ' || resolution || ' ' || cast(letters as text)
           from dead_letter_causes",
        "jobs.in expired open 1",
    ),
];

/// The views after one escalated job.
const ESCALATED: [(&str, &str); 4] = [
    (
        "select cast(sum(scored) as text) || ' ' || cast(sum(low_confidence) as text) || ' '
                || cast(sum(not_servable) as text) || ' ' || cast(sum(completion_tokens) as text) || ' '
                || case when avg(confidence_mean) = 0.25 then 'mean' else 'odd' end
           from escalations where model = 'tiny'",
        "1 1 0 7 mean",
    ),
    (
        "select cast(sum(prompt_tokens) as text) || ' ' || cast(sum(completion_tokens) as text)
           from tenant_usage",
        "42 37",
    ),
    (
        "select cast(sum(prompt_tokens_sent) as text) || ' ' || cast(sum(prompt_tokens_computed) as text)
                || ' ' || cast(sum(prefix_tokens) as text) from token_savings",
        "42 37 5",
    ),
    (
        "select cast(sum(prompt_tokens_sent) as text) || ' ' || cast(sum(prompt_tokens_computed) as text)
                || ' ' || cast(sum(completion_tokens) as text) from tokens",
        "42 37 37",
    ),
];

async fn fill_escalated(store: &Store) {
    let head = head();
    let job = head.id;
    escalate(store, head).await;
    claim_as(store, &large(), job, false).await;
    let end = AttemptOutcome::Succeeded(big_answer());
    settle_one(store, settlement(job, 2, end)).await;
}

/// Escalated attempts count as computed, alike in both dialects.
#[tokio::test]
async fn escalated_tokens_are_counted() {
    with_postgres(async |store, config| {
        fill_escalated(&store).await;
        let mut raw = crate::store::postgres::connection(&config).await;
        for (question, expected) in ESCALATED {
            let found: String = sqlx::query_scalar(question)
                .fetch_one(&mut raw)
                .await
                .unwrap();
            assert_eq!(found, expected, "{question}");
        }
    })
    .await;
    with_sqlite(async |store: Store, config: StoreConfig| {
        fill_escalated(&store).await;
        let mut raw = SqliteConnection::connect(config.url.expose())
            .await
            .unwrap();
        for (question, expected) in ESCALATED {
            let found: String = sqlx::query_scalar(question)
                .fetch_one(&mut raw)
                .await
                .unwrap();
            assert_eq!(found, expected, "{question}");
        }
    })
    .await;
}

/// The views of Postgres add up.
#[tokio::test]
async fn postgres_views_add_up() {
    with_postgres(async |store, config| {
        fill(&store).await;
        let mut raw = crate::store::postgres::connection(&config).await;
        for (question, expected) in FIGURES {
            let found: String = sqlx::query_scalar(question)
                .fetch_one(&mut raw)
                .await
                .unwrap();
            assert_eq!(found, expected, "{question}");
        }
    })
    .await;
}

/// The views of SQLite add up to the same.
#[tokio::test]
async fn sqlite_views_add_up() {
    with_sqlite(async |store: Store, config: StoreConfig| {
        fill(&store).await;
        let mut raw = SqliteConnection::connect(config.url.expose())
            .await
            .unwrap();
        for (question, expected) in FIGURES {
            let found: String = sqlx::query_scalar(question)
                .fetch_one(&mut raw)
                .await
                .unwrap();
            assert_eq!(found, expected, "{question}");
        }
    })
    .await;
}
