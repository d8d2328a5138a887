//! Targets that are set while routers run.

use chrono::{DateTime, Utc};

use super::SqliteStore;
use crate::{
    config::{RouteTarget, TargetScope},
    store::{
        ScopedTarget, StoreError,
        error::{BackendError, persistent},
    },
};

impl SqliteStore {
    /// The targets that the ledger holds; see [`crate::store::Store::route_targets`].
    ///
    /// # Errors
    /// When the file cannot be read, or a row holds no target.
    pub async fn route_targets(&self) -> Result<Vec<ScopedTarget>, StoreError> {
        persistent!(self, async {
            let rows: Vec<(String, String, DateTime<Utc>)> = sqlx::query_as(
                "select scope, target, changed_at from route_targets order by scope",
            )
            .fetch_all(&self.readers)
            .await?;
            rows.into_iter()
                .map(|(scope, target, changed_at)| ScopedTarget::read(&scope, &target, changed_at))
                .collect::<Result<Vec<_>, _>>()
                .map_err(BackendError::Rule)
        })
    }

    /// Sets a scope's target.
    ///
    /// # Errors
    /// When nothing was written.
    pub async fn set_route_target(
        &self,
        scope: &TargetScope,
        target: RouteTarget,
    ) -> Result<(), StoreError> {
        persistent!(self, async {
            sqlx::query(
                "insert into route_targets (scope, target, changed_at) values (?1, ?2, ?3)
                     on conflict (scope) do update
                    set target = excluded.target, changed_at = excluded.changed_at",
            )
            .bind(scope.to_string())
            .bind(target.to_string())
            .bind(self.clock.now())
            .execute(&self.writer)
            .await?;
            Ok::<_, BackendError>(())
        })
    }

    /// Removes a scope's target; false when it had none.
    ///
    /// # Errors
    /// When nothing was written.
    pub async fn unset_route_target(&self, scope: &TargetScope) -> Result<bool, StoreError> {
        persistent!(self, async {
            let gone = sqlx::query("delete from route_targets where scope = ?1")
                .bind(scope.to_string())
                .execute(&self.writer)
                .await?;
            Ok::<_, BackendError>(gone.rows_affected() > 0)
        })
    }
}
