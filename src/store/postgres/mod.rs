//! The job database in Postgres: every batch is a handful of `UNNEST` statements in one transaction.
//!
//! Everything lives in one schema, the connections' whole `search_path`. Statements are checked at
//! compile time against the tables; `scripts/sqlx-prepare` renews what the check needs without a
//! server (`.sqlx`).
//!
//! **Invariant:** rows are locked in this order: idempotency keys, jobs, cache entries, waiting
//! jobs, each by rising key. Calls that lose a deadlock all the same are made again.
//! **Invariant:** a job that waits for a cache entry is written under the entry's row lock, and a
//! settlement takes that lock before it looks for waiting jobs, so it misses none.

mod admit;
mod attempts;
mod batch;
mod cache;
mod cache_upkeep;
mod cancel;
mod claim;
mod dead;
mod deferral;
mod insert;
mod keys;
mod learning;
mod read;
mod rescue;
mod semantic;
mod settle;
mod targets;
mod tenants;
mod text;
mod workers;

use std::{str::FromStr, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{
    AssertSqlSafe, Connection, PgConnection, PgPool,
    migrate::{Migrate, Migrator},
    postgres::{PgConnectOptions, PgPoolOptions, PgSslMode},
};
use uuid::Uuid;

use super::{
    StoreError,
    error::BackendError,
    row::{Row, job_rows},
    schema::{self, MIGRATIONS_TABLE},
};
use crate::{
    clock::Clock,
    config::{SecretUrl, StoreConfig},
};

/// Whole weeks for which partitions are made ahead.
const WEEKS_AHEAD: i32 = 2;

/// A job database in Postgres.
#[derive(Clone, Debug)]
pub struct PostgresStore {
    pool: PgPool,
    options: Arc<PgConnectOptions>,
    schema: String,
    /// Masked, for messages.
    pub(in crate::store) url: String,
    connect_timeout: Duration,
    pub(in crate::store) clock: Clock,
}

/// Leaves TLS away on the way to this same machine, unless the URL asks for it: a batch in TLS
/// records is many small writes, which sockets without TCP_NODELAY, as sqlx makes them, hold back
/// for the peer's delayed acknowledgement (40 ms). Admission was four times slower for it.
fn without_loopback_tls(options: PgConnectOptions) -> PgConnectOptions {
    let host = options.get_host();
    let is_loopback = host == "localhost"
        || host
            .parse()
            .is_ok_and(|address: std::net::IpAddr| address.is_loopback());
    if is_loopback && matches!(options.get_ssl_mode(), PgSslMode::Prefer) {
        options.ssl_mode(PgSslMode::Disable)
    } else {
        options
    }
}

fn migrator() -> Migrator {
    let mut migrator = sqlx::migrate!("./migrations/postgres");
    migrator.dangerous_set_table_name(MIGRATIONS_TABLE);
    // Its own lock would serialise the migrations of all schemas, and outlive a failed one.
    migrator.set_locking(false);
    migrator
}

impl PostgresStore {
    /// Connects.
    ///
    /// # Errors
    /// When the server cannot be reached or the URL is wrong.
    pub async fn connect(config: &StoreConfig) -> Result<Self, StoreError> {
        let url = SecretUrl::masked(&config.url);
        let options = PgConnectOptions::from_str(config.url.expose())
            .map_err(|error| BackendError::from(error).outward(&url))?
            .application_name("promptyard")
            // Compiling these short statements costs more than it gains.
            .options([("search_path", config.schema.as_str()), ("jit", "off")]);
        let options = without_loopback_tls(options);
        let connect_timeout = Duration::from_millis(config.connect_timeout_ms);
        let store = Self {
            pool: PgPoolOptions::new()
                .max_connections(config.connections_max)
                .acquire_timeout(connect_timeout)
                .connect_lazy_with(options.clone()),
            options: Arc::new(options),
            schema: config.schema.clone(),
            url,
            connect_timeout,
            clock: Clock::default(),
        };
        // The pool would try until its time is up; one connection tells at once what is wrong.
        let probe = async { Ok::<_, BackendError>(store.connection().await?.close().await?) };
        match probe.await {
            Ok(()) => Ok(store),
            Err(error) => Err(error.outward(&store.url)),
        }
    }

    async fn connection(&self) -> Result<PgConnection, BackendError> {
        let connecting = PgConnection::connect_with(self.options.as_ref());
        match tokio::time::timeout(self.connect_timeout, connecting).await {
            Ok(connection) => Ok(connection?),
            Err(_) => Err(sqlx::Error::PoolTimedOut.into()),
        }
    }

    pub(crate) async fn migrate(&self) -> Result<usize, BackendError> {
        // The lock belongs to this connection and goes with it, however this ends.
        let mut connection = self.connection().await?;
        let outcome = self.migrate_on(&mut connection).await;
        // The migrations are committed: a failed close loses nothing.
        let _ = connection.close().await;
        outcome
    }

    async fn migrate_on(&self, connection: &mut PgConnection) -> Result<usize, BackendError> {
        let lock = format!("promptyard.migrate.{}", self.schema);
        sqlx::query("select pg_advisory_lock(hashtextextended($1, 0))")
            .bind(lock)
            .execute(&mut *connection)
            .await?;
        let exists: bool = sqlx::query_scalar("select to_regnamespace($1) is not null")
            .bind(&self.schema)
            .fetch_one(&mut *connection)
            .await?;
        if !exists {
            // The configuration accepts only lower-case SQL names as a schema.
            let statement = format!("create schema \"{}\"", self.schema);
            sqlx::query(AssertSqlSafe(statement))
                .execute(&mut *connection)
                .await?;
        }
        connection.ensure_migrations_table(MIGRATIONS_TABLE).await?;
        let applied = connection.list_applied_migrations(MIGRATIONS_TABLE).await?;
        let pending = schema::pending(&migrator(), &applied)?;
        migrator().run_direct(None, &mut *connection, false).await?;
        make_partitions(connection, self.clock.now()).await?;
        Ok(pending)
    }

    pub(crate) async fn check_schema(&self) -> Result<(), BackendError> {
        let mut connection = self.pool.acquire().await?;
        let applied = connection.list_applied_migrations(MIGRATIONS_TABLE).await?;
        schema::require_complete(schema::pending(&migrator(), &applied)?)
    }

    pub(crate) async fn ensure_partitions(&self) -> Result<(), BackendError> {
        let mut connection = self.pool.acquire().await?;
        make_partitions(&mut connection, self.clock.now()).await
    }

    pub(crate) async fn probe(&self) -> Result<(), BackendError> {
        sqlx::query("select 1").execute(&self.pool).await?;
        Ok(())
    }

    pub(crate) async fn drop_all(&self) -> Result<(), BackendError> {
        let statement = format!("drop schema if exists \"{}\" cascade", self.schema);
        sqlx::query(AssertSqlSafe(statement.clone()))
            .execute(&self.pool)
            .await
            .map(|_| ())
            .map_err(BackendError::from)
    }

    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }
}

async fn make_partitions(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
) -> Result<(), BackendError> {
    sqlx::query_scalar!("select make_partitions($1, $2)", now, WEEKS_AHEAD)
        .fetch_one(connection)
        .await?;
    Ok(())
}

/// The rows of these jobs, locked until the transaction ends.
async fn lock_rows(connection: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<Row>, BackendError> {
    let rows = sqlx::query_as::<_, Row>(job_rows(
        "select",
        "a.text, a.logprobs from jobs j left join answers a on a.job_id = j.id
           where j.id = any($1) order by j.id for update of j",
    ))
    .bind(ids)
    .fetch_all(&mut *connection)
    .await?;
    let mut rows: Vec<Row> = rows.into_iter().map(text::decode_row).collect();
    let bare = rows
        .iter()
        .filter(|row| !row.is_unanswered() && row.text.is_none());
    let bare: Vec<Uuid> = bare.map(|row| row.id).collect();
    if bare.is_empty() {
        return Ok(rows);
    }
    // A statement that waits for a lock then sees the locked row as it is, but what is joined to it as
    // it was when the statement began: an answer that came meanwhile takes another look.
    let answers = sqlx::query!(
        "select job_id, text, logprobs from answers where job_id = any($1)",
        &bare
    )
    .fetch_all(connection)
    .await?;
    for answer in answers {
        if let Some(row) = rows.iter_mut().find(|row| row.id == answer.job_id) {
            row.text = Some(text::decode(answer.text));
            row.logprobs = answer.logprobs;
        }
    }
    Ok(rows)
}
