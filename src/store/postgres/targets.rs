//! Targets that are set while routers run.

use super::PostgresStore;
use crate::{
    config::{RouteTarget, TargetScope},
    store::{ScopedTarget, error::BackendError},
};

impl PostgresStore {
    pub(crate) async fn route_targets(&self) -> Result<Vec<ScopedTarget>, BackendError> {
        let rows = sqlx::query!(
            "select scope, target, changed_at from route_targets order by scope collate \"C\""
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|row| ScopedTarget::read(&row.scope, &row.target, row.changed_at))
            .collect::<Result<Vec<_>, _>>()
            .map_err(BackendError::Rule)
    }

    pub(crate) async fn set_route_target(
        &self,
        scope: &TargetScope,
        target: RouteTarget,
    ) -> Result<(), BackendError> {
        sqlx::query!(
            "insert into route_targets (scope, target, changed_at) values ($1, $2, $3)
                 on conflict (scope) do update
                set target = excluded.target, changed_at = excluded.changed_at",
            scope.to_string(),
            target.to_string(),
            self.clock.now()
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    pub(crate) async fn unset_route_target(
        &self,
        scope: &TargetScope,
    ) -> Result<bool, BackendError> {
        let gone = sqlx::query!(
            "delete from route_targets where scope = $1",
            scope.to_string()
        )
        .execute(&self.pool)
        .await?;
        Ok(gone.rows_affected() > 0)
    }
}
