//! What tenants are entitled to.

use super::PostgresStore;
use crate::{
    job::Tenant,
    store::{TenantLimits, error::BackendError},
};

impl PostgresStore {
    pub(crate) async fn tenants(&self) -> Result<Vec<TenantLimits>, BackendError> {
        let rows = sqlx::query!(
            r#"select tenant as "tenant: Tenant", weight, tokens_per_minute, running_max, requests_per_minute
               from tenants order by tenant collate "C""#
        )
        .fetch_all(&self.pool)
        .await?;
        let count = |count: Option<i32>| count.and_then(|count| u32::try_from(count).ok());
        let limits = rows.into_iter().map(|row| TenantLimits {
            tenant: row.tenant,
            weight: row.weight,
            tokens_per_minute: row
                .tokens_per_minute
                .and_then(|count| u32::try_from(count).ok()),
            running_max: count(row.running_max),
            requests_per_minute: count(row.requests_per_minute),
        });
        Ok(limits.collect())
    }

    pub(crate) async fn set_tenant(&self, terms: &TenantLimits) -> Result<(), BackendError> {
        let count =
            |count: Option<u32>| count.map(|count| i32::try_from(count).unwrap_or(i32::MAX));
        sqlx::query!(
            "insert into tenants (tenant, weight, tokens_per_minute, running_max, requests_per_minute,
                                  changed_at)
             values ($1, $2, $3, $4, $5, $6)
                 on conflict (tenant) do update
                set weight = excluded.weight, tokens_per_minute = excluded.tokens_per_minute,
                    running_max = excluded.running_max,
                    requests_per_minute = excluded.requests_per_minute,
                    changed_at = excluded.changed_at",
            terms.tenant.as_str(),
            terms.weight,
            terms.tokens_per_minute.map(i64::from),
            count(terms.running_max),
            count(terms.requests_per_minute),
            self.clock.now()
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    pub(crate) async fn forget_tenant(&self, tenant: &Tenant) -> Result<bool, BackendError> {
        let gone = sqlx::query!("delete from tenants where tenant = $1", tenant.as_str())
            .execute(&self.pool)
            .await?;
        Ok(gone.rows_affected() > 0)
    }
}
