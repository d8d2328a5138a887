//! What was left out of a prompt, written beside its settlement.

use sqlx::SqliteConnection;

use crate::store::{Settlement, error::BackendError};

/// Writes what a settled attempt saved, fenced as the settlement itself is; before the row is
/// settled and read.
pub(super) async fn write_savings(
    connection: &mut SqliteConnection,
    settlement: &Settlement,
) -> Result<(), BackendError> {
    if settlement.saved.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "update jobs set cleaned_tokens = ?3, pruned_tokens = ?4
          where id = ?1 and attempts = ?2 and state = 'running'",
    )
    .bind(settlement.job.0)
    .bind(settlement.attempt)
    .bind(settlement.saved.cleaned_tokens)
    .bind(settlement.saved.pruned_tokens)
    .execute(connection)
    .await?;
    Ok(())
}
