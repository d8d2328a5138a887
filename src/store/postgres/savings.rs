//! What was left out of prompts, written beside their settlements.

use sqlx::PgConnection;
use uuid::Uuid;

use super::super::{Settlement, error::BackendError};

/// Writes what the settled attempts saved, fenced as the settlement itself is. Few jobs save
/// anything, so the statement runs only where one did; it runs before the rows are settled and
/// returned.
pub(super) async fn write_savings(
    connection: &mut PgConnection,
    settlements: &[&Settlement],
) -> Result<(), BackendError> {
    let saving: Vec<_> = settlements.iter().filter(|s| !s.saved.is_empty()).collect();
    if saving.is_empty() {
        return Ok(());
    }
    let number = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    let ids: Vec<Uuid> = saving.iter().map(|s| s.job.0).collect();
    let attempts: Vec<i32> = saving.iter().map(|s| number(s.attempt)).collect();
    let cleaned: Vec<i32> = saving
        .iter()
        .map(|s| number(s.saved.cleaned_tokens))
        .collect();
    let pruned: Vec<i32> = saving
        .iter()
        .map(|s| number(s.saved.pruned_tokens))
        .collect();
    sqlx::query!(
        "update jobs j
            set cleaned_tokens = n.cleaned, pruned_tokens = n.pruned
           from unnest($1::uuid[], $2::int4[], $3::int4[], $4::int4[]) as n (id, attempt, cleaned, pruned)
          where j.id = n.id and j.attempts = n.attempt and j.state = 'running'",
        &ids,
        &attempts,
        &cleaned,
        &pruned,
    )
    .execute(connection)
    .await?;
    Ok(())
}
