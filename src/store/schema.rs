//! Whether the tables are of this version, decided alike for both backends.

use std::collections::HashMap;

use sqlx::migrate::{AppliedMigration, Migrator};

use super::error::BackendError;

/// The table in which migrations are counted; the embedded broker's tables have their own.
pub(super) const MIGRATIONS_TABLE: &str = "schema_migrations";

/// The number of migrations still to be applied.
///
/// # Errors
/// [`BackendError::Schema`] when the tables are newer than this version or were changed by hand.
pub(super) fn pending(
    migrator: &Migrator,
    applied: &[AppliedMigration],
) -> Result<usize, BackendError> {
    let known: HashMap<i64, _> = migrator
        .iter()
        .map(|migration| (migration.version, &migration.checksum))
        .collect();
    for migration in applied {
        let version = migration.version;
        match known.get(&version) {
            None => return Err(BackendError::newer(version)),
            Some(checksum) if **checksum != migration.checksum => {
                let message = format!("migration {version} was applied in another form");
                return Err(BackendError::Schema(message));
            }
            Some(_) => {}
        }
    }
    Ok(known.len().saturating_sub(applied.len()))
}

/// [`BackendError::Schema`] unless nothing is pending.
pub(super) fn require_complete(pending: usize) -> Result<(), BackendError> {
    match pending {
        0 => Ok(()),
        missing => Err(BackendError::Schema(format!(
            "{missing} migrations are not applied"
        ))),
    }
}
