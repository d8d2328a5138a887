//! What went wrong inside a backend, sorted by what the caller does next.

use std::time::Duration;

use rand::RngExt;

use super::{StoreError, row::BadRow};

/// Times a call is tried when it loses against concurrent ones.
const TRIES_MAX: u32 = 8;

/// A error inside a call.
#[derive(Debug, thiserror::Error)]
pub(super) enum BackendError {
    #[error(transparent)]
    Database(#[from] sqlx::Error),
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
            Self::Database(sqlx::Error::Database(error)) => error.code().map(|code| code.into()),
            _ => None,
        }
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

    /// The error of the seam; `url` is masked.
    pub(super) fn outward(self, url: &str) -> StoreError {
        let message = self.to_string();
        let unreachable = |message| StoreError::Unreachable {
            url: url.to_owned(),
            message,
        };
        match &self {
            Self::Database(error) => match error {
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed => unreachable(message),
                sqlx::Error::Database(error) => {
                    let message = error.message().to_owned();
                    match sort(self.code().as_deref().unwrap_or_default(), &message) {
                        Sort::Unreachable => unreachable(message),
                        Sort::Schema => StoreError::Schema { message },
                        Sort::Storage => StoreError::Storage { message },
                        Sort::Refused => StoreError::Refused { message },
                    }
                }
                _ => StoreError::Refused { message },
            },
            _ => StoreError::Refused { message },
        }
    }
}

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

/// Counts the tries of a call that may lose against concurrent ones.
#[derive(Debug, Default)]
pub(super) struct Tries {
    begun: u32,
}

impl Tries {
    /// True when the call should be made again, after a pause that sets rivals apart.
    pub(super) async fn again(&mut self, error: &BackendError) -> bool {
        self.begun += 1;
        if !error.is_conflict() || self.begun >= TRIES_MAX {
            return false;
        }
        let most_ms = 4u64 << self.begun;
        let pause_ms = rand::rng().random_range(1..=most_ms);
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        true
    }
}

/// Makes a call again while it loses against concurrent ones, then turns its error outward.
macro_rules! persistent {
    ($store:expr, $call:expr) => {{
        let mut tries = $crate::store::error::Tries::default();
        loop {
            match $call.await {
                Ok(value) => break Ok(value),
                Err(error) if tries.again(&error).await => {}
                Err(error) => break Err(error.outward(&$store.url)),
            }
        }
    }};
}
pub(super) use persistent;
