//! What only Postgres has: partitions, schemas, roles.

use chrono::TimeDelta;
use promptyard::{
    config::StoreConfig,
    job::{JobHead, JobId, JobState, Tier},
    store::{AdmissionDecision, Admitted, Claimed, RescueRules, Store, StoreError},
};
use sqlx::{Connection, PgConnection, Row, postgres::PgConnectOptions};
use uuid::Uuid;

use crate::support::{
    servers::database_url,
    store::{
        LONG, admission, admit_one, cache_key, cached, claim_one, head, plain, postgres_config,
        record, route, succeed, with_postgres,
    },
};

pub async fn connection(config: &StoreConfig) -> PgConnection {
    let options: PgConnectOptions = database_url().parse().unwrap();
    let options = options.options([("search_path", config.schema.as_str())]);
    PgConnection::connect_with(&options).await.unwrap()
}

async fn count(connection: &mut PgConnection, statement: &'static str) -> i64 {
    sqlx::query_scalar(statement)
        .fetch_one(connection)
        .await
        .unwrap()
}

/// Waits until another connection waits for a lock that the backend of this number holds.
async fn wait_until_blocked_by(watch: &mut PgConnection, backend: i32) {
    let mut blocked = 0_i64;
    while blocked == 0 {
        blocked = sqlx::query_scalar(
            "select count(*) from pg_stat_activity where $1 = any(pg_blocking_pids(pid))",
        )
        .bind(backend)
        .fetch_one(&mut *watch)
        .await
        .unwrap();
    }
}

/// New jobs lie in this week's partition; ids of no week lie in the default one and work as well.
#[tokio::test]
async fn foreign_ids_are_stored_in_the_default_partition() {
    with_postgres(async |store, config| {
        let mut raw = connection(&config).await;
        let odd = JobHead {
            id: JobId(Uuid::from_u128(u128::MAX - 1)),
            ..head()
        };
        admit_one(&store, plain(head())).await;
        assert_eq!(
            count(&mut raw, "select count(*) from jobs_default").await,
            0
        );
        assert_eq!(
            admit_one(&store, plain(odd.clone())).await,
            Admitted::Routed
        );
        assert_eq!(
            count(&mut raw, "select count(*) from jobs_default").await,
            1
        );
        let (settled, _) = succeed(&store, odd.id, "yes", None).await;
        assert_eq!(record(&store, odd.id).await, settled);
        assert_eq!(
            count(&mut raw, "select count(*) from answers_default").await,
            1
        );
    })
    .await;
}

/// Partitions are made ahead of need, once, and take over what the default ones hold of their range.
#[tokio::test]
async fn partitions_are_made_ahead() {
    with_postgres(async |store, config| {
        let mut raw = connection(&config).await;
        let partitions = "select count(*) from pg_inherits where inhparent = 'jobs'::regclass";
        let before = count(&mut raw, partitions).await;
        assert_eq!(before, 4, "this week, the next two, the default");
        store.ensure_partitions().await.unwrap();
        assert_eq!(count(&mut raw, partitions).await, before);
        let later = chrono::Utc::now() + TimeDelta::days(35);
        let millis = u64::try_from(later.timestamp_millis()).unwrap();
        let early = JobHead {
            id: JobId(uuid::Builder::from_unix_timestamp_millis(millis, &[7; 10]).into_uuid()),
            ..head()
        };
        admit_one(&store, plain(early.clone())).await;
        succeed(&store, early.id, "yes", None).await;
        assert_eq!(
            count(&mut raw, "select count(*) from jobs_default").await,
            1
        );
        let made: i32 = sqlx::query_scalar("select make_partitions($1, 0)")
            .bind(later)
            .fetch_one(&mut raw)
            .await
            .unwrap();
        assert_eq!(made, 5);
        assert_eq!(
            count(&mut raw, "select count(*) from jobs_default").await,
            0
        );
        assert_eq!(record(&store, early.id).await.answer.unwrap().text, "yes");
    })
    .await;
}

/// Many processes may migrate and make partitions at once; one does the work.
#[tokio::test]
async fn migrations_run_concurrently() {
    let config = postgres_config();
    let mut tasks = Vec::new();
    for _ in 0..6 {
        let config = config.clone();
        tasks.push(tokio::spawn(async move {
            let store = Store::connect(&config).await.unwrap();
            let applied = store.migrate().await.unwrap();
            store.ensure_partitions().await.unwrap();
            store.close().await;
            applied
        }));
    }
    let mut applied = Vec::new();
    for task in tasks {
        applied.push(task.await.unwrap());
    }
    let store = Store::connect(&config).await.unwrap();
    store.check_schema().await.unwrap();
    store.drop_all().await.unwrap();
    assert_eq!(
        applied.iter().filter(|count| **count > 0).count(),
        1,
        "{applied:?}"
    );
}

/// Analysts read metadata and views, but no prompt, no answer, no dead body; and they write nothing.
#[tokio::test]
async fn analysts_see_no_text() {
    with_postgres(async |store, config| {
        admit_one(&store, plain(head())).await;
        let mut raw = connection(&config).await;
        sqlx::query("set role promptyard_analyst")
            .execute(&mut raw)
            .await
            .unwrap();
        assert_eq!(count(&mut raw, "select count(*) from jobs").await, 1);
        for allowed in [
            "select 1 from attempts",
            "select 1 from workers",
            "select scope, target from route_targets",
            "select 1 from latency",
            "select 1 from route_mix",
            "select 1 from cache_savings",
            "select 1 from tokens",
            "select 1 from attempt_outcomes",
            "select 1 from tenant_usage",
            "select 1 from dead_letter_causes",
            "select key, hits from cache_entries",
            "select id, reason_message from dead_letters",
            "select count(*) from jobs where id >= uuid7_floor(now() - interval '1 day')",
        ] {
            sqlx::query(allowed)
                .execute(&mut raw)
                .await
                .unwrap_or_else(|error| panic!("{allowed}: {error}"));
        }
        for forbidden in [
            "select * from requests",
            "select * from answers",
            "select * from requests_default",
            "select answer from cache_entries",
            "select body from dead_letters",
            "select * from idempotency",
            "update jobs set state = 'failed'",
            "delete from attempts",
            "create table notes (t text)",
        ] {
            let error = sqlx::query(forbidden).execute(&mut raw).await.unwrap_err();
            let code = error
                .as_database_error()
                .and_then(|error| error.code())
                .map(String::from);
            assert_eq!(code.as_deref(), Some("42501"), "{forbidden}: {error}");
        }
    })
    .await;
}

/// Every table, view and column that an analyst can read says what it is.
#[tokio::test]
async fn every_table_view_and_column_is_commented() {
    with_postgres(async |_, config| {
        let mut raw = connection(&config).await;
        let bare: Vec<String> = sqlx::query(
            "select c.relname || coalesce('.' || a.attname, '') as name
               from pg_class c
               left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
              where c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p', 'v')
                and not c.relispartition and c.relname not in ('schema_migrations', 'requests', 'answers')
                and (col_description(c.oid, a.attnum) is null or obj_description(c.oid) is null)",
        )
        .fetch_all(&mut raw)
        .await
        .unwrap()
        .iter()
        .map(|row| row.get("name"))
        .collect();
        assert_eq!(bare, Vec::<String>::new());
    })
    .await;
}

/// Tables of a newer version are left alone, and said to be newer.
#[tokio::test]
async fn newer_tables_are_refused() {
    with_postgres(async |store, config| {
        let mut raw = connection(&config).await;
        sqlx::query("insert into schema_migrations values (9999, 'later', now(), true, '', 0)")
            .execute(&mut raw)
            .await
            .unwrap();
        for error in [
            store.check_schema().await.unwrap_err(),
            store.migrate().await.unwrap_err(),
        ] {
            assert!(
                matches!(&error, StoreError::Schema { message } if message.contains("newer")),
                "{error}"
            );
        }
    })
    .await;
}

/// A key whose job is gone with its partition can be used again.
#[tokio::test]
async fn keys_end_with_their_partition() {
    with_postgres(async |store, config| {
        let first = plain(crate::support::store::keyed("k"));
        admit_one(&store, first.clone()).await;
        let mut raw = connection(&config).await;
        sqlx::query("truncate jobs")
            .execute(&mut raw)
            .await
            .unwrap();
        let again = plain(crate::support::store::keyed("k"));
        assert_eq!(
            store
                .admit(std::slice::from_ref(&again), LONG)
                .await
                .unwrap(),
            [Admitted::Routed]
        );
        let found = store
            .records_by_key(&again.head.tenant, &["k".to_owned()])
            .await
            .unwrap();
        assert_eq!(found[0].id, again.head.id);
    })
    .await;
}

/// A reader that waits for a job's lock while it is answered sees the answer with the end.
#[tokio::test]
async fn ended_jobs_are_read_with_their_answers() {
    with_postgres(async |store, config| {
        let job = plain(head());
        admit_one(&store, job.clone()).await;
        let mut raw = connection(&config).await;
        let mut settling = raw.begin().await.unwrap();
        sqlx::query(
            "update jobs set state = 'succeeded', source = 'computed', finish_reason = 'stop',
                    finished_at = now() where id = $1",
        )
        .bind(job.head.id.0)
        .execute(&mut *settling)
        .await
        .unwrap();
        let settler: i32 = sqlx::query_scalar("select pg_backend_pid()")
            .fetch_one(&mut *settling)
            .await
            .unwrap();
        let waiting = tokio::spawn({
            let store = store.clone();
            async move { claim_one(&store, job.head.id, false).await }
        });
        let mut watch = connection(&config).await;
        wait_until_blocked_by(&mut watch, settler).await;
        sqlx::query("insert into answers (job_id, text) values ($1, 'yes')")
            .bind(job.head.id.0)
            .execute(&mut *settling)
            .await
            .unwrap();
        settling.commit().await.unwrap();
        let Claimed::Ended(ended) = waiting.await.unwrap() else {
            panic!("it was answered");
        };
        assert_eq!(ended.answer.as_ref().unwrap().text, "yes");
        assert_eq!(*ended, record(&store, ended.id).await);
    })
    .await;
}

/// A router that comes late with a job which ended meanwhile does not make it lead again.
#[tokio::test]
async fn ended_jobs_do_not_lead() {
    with_postgres(async |store, config| {
        let job = cached("p");
        let key = cache_key("p");
        let mut raw = connection(&config).await;
        let mut entry = raw.begin().await.unwrap();
        // Another leader of this entry waits until its fate is known.
        sqlx::query(
            "insert into cache_entries (key, tenant, state, leader, lease_until, created_at)
             values ($1, 'default', 'computing', $2, now() + interval '1 hour', now())",
        )
        .bind(key.0.as_slice())
        .bind(JobId::now().0)
        .execute(&mut *entry)
        .await
        .unwrap();
        let holder: i32 = sqlx::query_scalar("select pg_backend_pid()")
            .fetch_one(&mut *entry)
            .await
            .unwrap();
        let late = tokio::spawn({
            let (store, job) = (store.clone(), job.clone());
            async move { admit_one(&store, job).await }
        });
        let mut watch = connection(&config).await;
        wait_until_blocked_by(&mut watch, holder).await;
        let first = admission(job.head.clone(), "p", route(Tier::Small, None));
        assert_eq!(admit_one(&store, first).await, Admitted::Routed);
        succeed(&store, job.head.id, "yes", None).await;
        entry.rollback().await.unwrap();
        let Admitted::Known(known) = late.await.unwrap() else {
            panic!("it is known");
        };
        assert_eq!(known.state, JobState::Succeeded);
        assert_eq!(admit_one(&store, cached("p")).await, Admitted::Routed);
    })
    .await;
}

/// A job that a router defers during a rescue is not stuck.
#[tokio::test]
async fn jobs_deferred_concurrently_are_not_stuck() {
    with_postgres(async |store, config| {
        let queued = admission(head(), "p", AdmissionDecision::Queue);
        let id = queued.head.id;
        admit_one(&store, queued).await;
        let mut raw = connection(&config).await;
        let mut routing = raw.begin().await.unwrap();
        sqlx::query("update jobs set state = 'routed', tier = 'small' where id = $1")
            .bind(id.0)
            .execute(&mut *routing)
            .await
            .unwrap();
        sqlx::query(
            "insert into deferred_jobs (job_id, tenant, queue, rank, tokens, deferred_at)
             values ($1, 'default', 'small', now(), 1, now())",
        )
        .bind(id.0)
        .execute(&mut *routing)
        .await
        .unwrap();
        let router: i32 = sqlx::query_scalar("select pg_backend_pid()")
            .fetch_one(&mut *routing)
            .await
            .unwrap();
        let sweep = tokio::spawn({
            let store = store.clone();
            let rules = RescueRules {
                stuck_after: TimeDelta::zero(),
                stuck_after_busy: TimeDelta::zero(),
                is_empty: [true; 3],
                limit: 9,
                from: None,
                looked_at_max: 1_000,
            };
            async move { store.rescue(rules).await.unwrap() }
        });
        let mut watch = connection(&config).await;
        wait_until_blocked_by(&mut watch, router).await;
        routing.commit().await.unwrap();
        assert_eq!(sweep.await.unwrap().stuck, []);
        assert_eq!(store.release(&[id], false).await.unwrap().len(), 1);
    })
    .await;
}

/// A server that is not there is one clear, transient error without the password.
#[tokio::test]
async fn unreachable_servers_are_reported_in_one_line() {
    let config = StoreConfig {
        url: promptyard::config::SecretUrl::new("postgres://me:hunter2@127.0.0.1:1/none"),
        ..postgres_config()
    };
    let error = Store::connect(&config).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    assert!(error.is_transient());
    assert!(!error.to_string().contains("hunter2"), "{error}");
}
