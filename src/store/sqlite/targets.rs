//! Targets that are set while routers run.

use chrono::{DateTime, Utc};

use super::SqliteStore;
use crate::{
    config::{RouteTarget, TargetScope},
    store::{ScopedTarget, error::BackendError},
};

impl SqliteStore {
    pub(crate) async fn route_targets(&self) -> Result<Vec<ScopedTarget>, BackendError> {
        let rows: Vec<(String, String, DateTime<Utc>)> =
            sqlx::query_as("select scope, target, changed_at from route_targets order by scope")
                .fetch_all(&self.readers)
                .await?;
        rows.into_iter()
            .map(|(scope, target, changed_at)| ScopedTarget::read(&scope, &target, changed_at))
            .collect::<Result<Vec<_>, _>>()
            .map_err(BackendError::Rule)
    }

    pub(crate) async fn set_route_target(
        &self,
        scope: &TargetScope,
        target: RouteTarget,
    ) -> Result<(), BackendError> {
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
        Ok(())
    }

    pub(crate) async fn unset_route_target(
        &self,
        scope: &TargetScope,
    ) -> Result<bool, BackendError> {
        let gone = sqlx::query("delete from route_targets where scope = ?1")
            .bind(scope.to_string())
            .execute(&self.writer)
            .await?;
        Ok(gone.rows_affected() > 0)
    }
}
