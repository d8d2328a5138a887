//! Whether the tables are of this version, told alike for both backends.

use std::collections::HashMap;

use sqlx::migrate::{AppliedMigration, MigrateError, Migrator};

use super::StoreFault;

/// The number of migrations still to be applied.
///
/// # Errors
/// [`StoreFault::Schema`] when the tables are newer than this version or were changed by hand.
pub(super) fn pending(
    migrator: &Migrator,
    applied: &[AppliedMigration],
) -> Result<usize, StoreFault> {
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
                return Err(StoreFault::Schema {
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

/// [`StoreFault::Schema`] unless nothing is pending.
pub(super) fn require_complete(pending: usize) -> Result<(), StoreFault> {
    match pending {
        0 => Ok(()),
        missing => Err(StoreFault::Schema {
            message: format!("{missing} migrations are not applied"),
        }),
    }
}

fn newer(version: i64) -> StoreFault {
    StoreFault::Schema {
        message: format!("migration {version} was applied by a newer version"),
    }
}

/// Sorts out why migrating failed; `database` maps faults of the database itself.
pub(super) fn migrate_fault(
    fault: MigrateError,
    database: impl FnOnce(sqlx::Error) -> StoreFault,
) -> StoreFault {
    match fault {
        MigrateError::Execute(fault) => database(fault),
        MigrateError::ExecuteMigration(fault, version) => match database(fault) {
            StoreFault::Refused { message } => StoreFault::Refused {
                message: format!("migration {version}: {message}"),
            },
            other => other,
        },
        MigrateError::VersionMissing(version) => newer(version),
        other => StoreFault::Schema {
            message: other.to_string(),
        },
    }
}
