//! The job database in a SQLite file: plain statements, one immediate transaction a batch.
//!
//! One connection writes, so that batches queue up inside the process instead of polling the file's
//! lock; others read beside it (WAL). Ids are 16-byte blobs. Times are RFC 3339 text in UTC as sqlx
//! writes it, whose order is that of the instants.

mod admit;
mod attempts;
mod cache;
mod cache_upkeep;
mod cancel;
mod claim;
mod dead;
mod deferral;
mod keys;
mod learning;
mod read;
mod rescue;
mod semantic;
mod settle;
mod single;
mod targets;
mod tenants;
mod workers;

use std::time::Duration;

use sqlx::{
    AssertSqlSafe, Sqlite, SqliteConnection, SqlitePool, Transaction,
    migrate::{Migrate, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use uuid::Uuid;

use super::{
    StoreError,
    error::BackendError,
    row::{Row, job_rows},
    schema::{self, MIGRATIONS_TABLE},
};
use crate::{clock::Clock, config::StoreConfig};

/// A job database in a SQLite file.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    writer: SqlitePool,
    readers: SqlitePool,
    /// For messages; the file's name.
    pub(in crate::store) url: String,
    pub(in crate::store) clock: Clock,
}

fn migrator() -> Migrator {
    let mut migrator = sqlx::migrate!("./migrations/sqlite");
    migrator.dangerous_set_table_name(MIGRATIONS_TABLE);
    migrator
}

impl SqliteStore {
    /// Opens the file, which is made with its folder if it is missing.
    ///
    /// # Errors
    /// When the file cannot be opened or made.
    pub async fn connect(config: &StoreConfig) -> Result<Self, StoreError> {
        let url = config.url.masked();
        let outward = |error: sqlx::Error| BackendError::from(error).outward(&url);
        let timeout = Duration::from_millis(config.connect_timeout_ms);
        let path = config.sqlite_path().unwrap_or_default();
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // A commit that was reported must survive a power cut.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(timeout);
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            std::fs::create_dir_all(folder).map_err(|error| StoreError::Storage {
                message: format!("cannot make the folder {}: {error}", folder.display()),
            })?;
        }
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(timeout)
        };
        let writer = pool(1)
            .connect_with(options.clone())
            .await
            .map_err(outward)?;
        let readers = pool(config.connections_max).connect_lazy_with(options);
        Ok(Self {
            writer,
            readers,
            url,
            clock: Clock::default(),
        })
    }

    /// A transaction that holds the file's write lock from its beginning.
    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, BackendError> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }

    pub(crate) async fn migrate(&self) -> Result<usize, BackendError> {
        // All migrations or none, and one process at a time: the write lock is held throughout.
        let mut transaction = self.begin().await?;
        transaction
            .ensure_migrations_table(MIGRATIONS_TABLE)
            .await?;
        let applied = transaction
            .list_applied_migrations(MIGRATIONS_TABLE)
            .await?;
        let pending = schema::pending(&migrator(), &applied)?;
        migrator()
            .run_direct(None, &mut *transaction, false)
            .await?;
        transaction.commit().await?;
        Ok(pending)
    }

    pub(crate) async fn check_schema(&self) -> Result<(), BackendError> {
        let mut connection = self.readers.acquire().await?;
        let applied = connection.list_applied_migrations(MIGRATIONS_TABLE).await?;
        schema::require_complete(schema::pending(&migrator(), &applied)?)
    }

    /// SQLite has no partitions.
    pub(crate) async fn ensure_partitions(&self) -> Result<(), BackendError> {
        Ok(())
    }

    pub(crate) async fn probe(&self) -> Result<(), BackendError> {
        sqlx::query("select count(*) from sqlite_master")
            .execute(&self.readers)
            .await?;
        Ok(())
    }

    /// Drops the tables and views with all data; the file stays.
    pub(crate) async fn drop_all(&self) -> Result<(), BackendError> {
        let mut transaction = self.begin().await?;
        for statement in [
            "drop view if exists token_savings",
            "drop view if exists semantic_reuse",
            "drop view if exists semantic_vetoes",
            "drop view if exists latency",
            "drop view if exists route_mix",
            "drop view if exists cache_savings",
            "drop view if exists tokens",
            "drop view if exists attempt_outcomes",
            "drop view if exists tenant_usage",
            "drop view if exists dead_letter_causes",
            "drop view if exists route_decisions",
            "drop view if exists share_delivered",
            "drop view if exists score_distribution",
            "drop view if exists shadow_pairs",
            "drop view if exists shadow_costs",
            "drop view if exists escalations",
            "drop table if exists route_targets",
            "drop table if exists tenants",
            "drop table if exists deferred_jobs",
            "drop table if exists leaders",
            "drop table if exists cancelled_batches",
            "drop table if exists api_keys",
            "drop table if exists semantic_lookups",
            "drop table if exists cache_questions",
            "drop table if exists jobs",
            "drop table if exists requests",
            "drop table if exists answers",
            "drop table if exists attempt_answers",
            "drop table if exists attempts",
            "drop table if exists idempotency",
            "drop table if exists cache_entries",
            "drop table if exists dead_letters",
            "drop table if exists workers",
            "drop table if exists shadows",
            "drop table if exists feedback",
            "drop table if exists router_weights",
            "drop table if exists schema_migrations",
        ] {
            sqlx::query(statement).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    pub(crate) async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

async fn find_row(
    connection: &mut SqliteConnection,
    id: Uuid,
) -> Result<Option<Row>, BackendError> {
    let row = sqlx::query_as(select_jobs("where j.id = ?1"))
        .bind(id)
        .fetch_optional(connection)
        .await?;
    Ok(row)
}

/// Selects [`Row`]s with their texts; `rest` follows the join.
fn select_jobs(rest: &str) -> AssertSqlSafe<String> {
    let joined = "a.text, a.logprobs from jobs j left join answers a on a.job_id = j.id";
    job_rows("select", &format!("{joined} {rest}"))
}
