//! Keys of the HTTP interface.

use uuid::Uuid;

use super::SqliteStore;
use crate::store::{ApiKey, KeyDigest, error::BackendError};

impl SqliteStore {
    pub(crate) async fn add_key(
        &self,
        key: &ApiKey,
        digest: KeyDigest,
    ) -> Result<(), BackendError> {
        sqlx::query(
            "insert into api_keys (id, name, tenant, scopes, digest, created_at, expires_at, revoked_at)
             values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )
        .bind(key.id)
        .bind(&key.name)
        .bind(key.tenant.as_ref().map(|tenant| tenant.as_str()))
        .bind(key.scopes.to_string())
        .bind(digest.as_bytes())
        .bind(key.created_at)
        .bind(key.expires_at)
        .bind(key.revoked_at)
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    pub(crate) async fn keys(&self) -> Result<Vec<ApiKey>, BackendError> {
        let rows: Vec<ApiKey> = sqlx::query_as(
            "select id, name, tenant, scopes, created_at, expires_at, revoked_at
               from api_keys order by created_at, id",
        )
        .fetch_all(&self.readers)
        .await?;
        Ok(rows)
    }

    pub(crate) async fn find_key(&self, digest: KeyDigest) -> Result<Option<ApiKey>, BackendError> {
        let row: Option<ApiKey> = sqlx::query_as(
            "select id, name, tenant, scopes, created_at, expires_at, revoked_at from api_keys
              where digest = ?1 and revoked_at is null and (expires_at is null or expires_at > ?2)",
        )
        .bind(digest.as_bytes())
        .bind(self.clock.now())
        .fetch_optional(&self.readers)
        .await?;
        Ok(row)
    }

    pub(crate) async fn revoke_key(&self, id: Uuid) -> Result<bool, BackendError> {
        let done =
            sqlx::query("update api_keys set revoked_at = ?2 where id = ?1 and revoked_at is null")
                .bind(id)
                .bind(self.clock.now())
                .execute(&self.writer)
                .await?;
        Ok(done.rows_affected() > 0)
    }
}
