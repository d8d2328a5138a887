//! Keys of the HTTP interface.

use uuid::Uuid;

use super::{PostgresStore, text};
use crate::store::{ApiKey, KeyDigest, error::BackendError};

fn decode_name(key: ApiKey) -> ApiKey {
    ApiKey {
        name: text::decode(key.name),
        ..key
    }
}

impl PostgresStore {
    pub(crate) async fn add_key(
        &self,
        key: &ApiKey,
        digest: KeyDigest,
    ) -> Result<(), BackendError> {
        sqlx::query!(
            "insert into api_keys (id, name, tenant, scopes, digest, created_at, expires_at, revoked_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8)",
            key.id,
            &*text::encode(&key.name),
            key.tenant.as_ref().map(|tenant| tenant.as_str()),
            key.scopes.to_string(),
            digest.as_bytes(),
            key.created_at,
            key.expires_at,
            key.revoked_at
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    pub(crate) async fn keys(&self) -> Result<Vec<ApiKey>, BackendError> {
        let rows = sqlx::query_as!(
            ApiKey,
            r#"select id, name, tenant as "tenant: _", scopes as "scopes: _", created_at, expires_at, revoked_at
               from api_keys order by created_at, id"#
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(decode_name).collect())
    }

    pub(crate) async fn find_key(&self, digest: KeyDigest) -> Result<Option<ApiKey>, BackendError> {
        let row = sqlx::query_as!(
            ApiKey,
            r#"select id, name, tenant as "tenant: _", scopes as "scopes: _", created_at, expires_at, revoked_at from api_keys
              where digest = $1 and revoked_at is null and (expires_at is null or expires_at > $2)"#,
            digest.as_bytes(),
            self.clock.now()
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(decode_name))
    }

    pub(crate) async fn revoke_key(&self, id: Uuid) -> Result<bool, BackendError> {
        let done = sqlx::query!(
            "update api_keys set revoked_at = $2 where id = $1 and revoked_at is null",
            id,
            self.clock.now()
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() > 0)
    }
}
