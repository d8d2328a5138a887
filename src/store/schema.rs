//! Whether the tables are of this version, told alike for both backends.

use std::collections::HashMap;

use sqlx::migrate::{AppliedMigration, MigrateError, Migrator};

use super::StoreError;

/// The number of migrations still to be applied.
///
/// # Errors
/// [`StoreError::Schema`] when the tables are newer than this version or were changed by hand.
pub(super) fn pending(
    migrator: &Migrator,
    applied: &[AppliedMigration],
) -> Result<usize, StoreError> {
    let known: HashMap<i64, _> = migrator
        .iter()
        .map(|migration| (migration.version, &migration.checksum))
        .collect();
    for migration in applied {
        match known.get(&migration.version) {
            None => {
                return Err(newer(migration.version));
            }
            Some(checksum) if **checksum != migration.checksum => {
                return Err(StoreError::Schema {
                    message: format!(
                        "migration {} was applied in another form",
                        migration.version
                    ),
                });
            }
            Some(_) => {}
        }
    }
    Ok(known.len().saturating_sub(applied.len()))
}

/// [`StoreError::Schema`] unless nothing is pending.
pub(super) fn require_complete(pending: usize) -> Result<(), StoreError> {
    match pending {
        0 => Ok(()),
        missing => Err(StoreError::Schema {
            message: format!("{missing} migrations are not applied"),
        }),
    }
}

fn newer(version: i64) -> StoreError {
    StoreError::Schema {
        message: format!("migration {version} was applied by a newer version"),
    }
}

/// Sorts out why migrating failed; `database` maps errors of the database itself.
pub(super) fn migrate_fault(
    error: MigrateError,
    database: impl FnOnce(sqlx::Error) -> StoreError,
) -> StoreError {
    match error {
        MigrateError::Execute(error) => database(error),
        MigrateError::ExecuteMigration(error, version) => match database(error) {
            StoreError::Refused { message } => StoreError::Refused {
                message: format!("migration {version}: {message}"),
            },
            other => other,
        },
        MigrateError::VersionMissing(version) => newer(version),
        other => StoreError::Schema {
            message: other.to_string(),
        },
    }
}
