//! Errors inside a backend, sorted by what the caller does next.

use std::{future::Future, time::Duration};

use rand::RngExt;
use sqlx::migrate::MigrateError;

use super::{StoreError, row::BadRow};

/// Times a call is tried when it loses against concurrent ones.
const TRIES_MAX: u32 = 8;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackendError {
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    #[error("migration {0}: {1}")]
    Migration(i64, sqlx::Error),
    /// The tables are of another version.
    #[error("{0}")]
    Schema(String),
    #[error(transparent)]
    BadRow(#[from] BadRow),
    #[error("a cached answer cannot be read: {0}")]
    BadAnswer(#[from] serde_json::Error),
    #[error("{0}")]
    Rule(String),
}

impl BackendError {
    /// The database's own code: SQLSTATE, or SQLite's extended result code.
    fn code(&self) -> Option<String> {
        match self {
            Self::Database(sqlx::Error::Database(error))
            | Self::Migration(_, sqlx::Error::Database(error)) => error.code().map(Into::into),
            _ => None,
        }
    }

    /// The tables were migrated by a newer version.
    pub(super) fn newer(version: i64) -> Self {
        Self::Schema(format!(
            "migration {version} was applied by a newer version"
        ))
    }

    /// True when the same call is likely to work at once: deadlock, serialisation error, busy file.
    fn is_conflict(&self) -> bool {
        match self.code().as_deref() {
            Some("40001" | "40P01" | "55P03") => true,
            Some(code) => code
                .parse::<u32>()
                .is_ok_and(|code| matches!(code & 0xff, 5 | 6)),
            None => false,
        }
    }

    /// The error that callers see; `url` is without a password.
    pub(super) fn outward(self, url: &str) -> StoreError {
        let (sort, message) = match &self {
            Self::Schema(message) => (Sort::Schema, message.clone()),
            Self::Database(error) | Self::Migration(_, error) => match error {
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed => (Sort::Unreachable, self.to_string()),
                sqlx::Error::Database(error) => {
                    let message = error.message();
                    let sort = sort(self.code().as_deref().unwrap_or_default(), message);
                    match (&self, &sort) {
                        (Self::Migration(version, _), Sort::Refused) => {
                            (sort, format!("migration {version}: {message}"))
                        }
                        _ => (sort, message.to_owned()),
                    }
                }
                _ => (Sort::Refused, self.to_string()),
            },
            _ => (Sort::Refused, self.to_string()),
        };
        match sort {
            Sort::Unreachable => StoreError::Unreachable {
                url: url.to_owned(),
                message,
            },
            Sort::Schema => StoreError::Schema { message },
            Sort::Storage => StoreError::Storage { message },
            Sort::Refused => StoreError::Refused { message },
        }
    }
}

impl From<MigrateError> for BackendError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Execute(error) => Self::Database(error),
            MigrateError::ExecuteMigration(error, version) => Self::Migration(version, error),
            MigrateError::VersionMissing(version) => Self::newer(version),
            other => Self::Schema(other.to_string()),
        }
    }
}

/// What the caller does next.
enum Sort {
    Unreachable,
    Schema,
    Storage,
    Refused,
}

/// Sorts a code of either database: SQLSTATEs have five characters, SQLite's are smaller numbers.
fn sort(code: &str, message: &str) -> Sort {
    if code.len() == 5 {
        return match &code[..2] {
            "08" | "28" | "40" | "55" => Sort::Unreachable,
            "3D" | "57" => Sort::Unreachable,
            "42" if matches!(code, "42P01" | "42703" | "42883") => Sort::Schema,
            "3F" => Sort::Schema,
            "53" if code == "53300" => Sort::Unreachable,
            "53" | "58" | "XX" => Sort::Storage,
            "25" if code == "25006" => Sort::Storage,
            _ => Sort::Refused,
        };
    }
    match code.parse::<u32>().map(|code| code & 0xff) {
        Ok(5 | 6) => Sort::Unreachable,
        Ok(8 | 10 | 11 | 13 | 14 | 26) => Sort::Storage,
        _ if message.starts_with("no such table") || message.starts_with("no such column") => {
            Sort::Schema
        }
        _ => Sort::Refused,
    }
}

/// Repeats a call while it loses against concurrent ones, after pauses that set rivals apart.
pub(super) async fn retry<T, F>(attempt: impl Fn() -> F) -> Result<T, BackendError>
where
    F: Future<Output = Result<T, BackendError>>,
{
    for tries in 1..TRIES_MAX {
        match attempt().await {
            Err(error) if error.is_conflict() => {}
            outcome => return outcome,
        }
        let pause_ms = rand::rng().random_range(1..=4u64 << tries);
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
    }
    attempt().await
}
