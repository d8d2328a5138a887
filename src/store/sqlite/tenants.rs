//! What tenants are entitled to.

use super::SqliteStore;
use crate::{
    job::Tenant,
    store::{TenantLimits, error::BackendError},
};

#[derive(sqlx::FromRow)]
struct TermsRow {
    tenant: Tenant,
    weight: f64,
    tokens_per_minute: Option<i64>,
    running_max: Option<i64>,
    requests_per_minute: Option<i64>,
}

impl SqliteStore {
    pub(crate) async fn tenants(&self) -> Result<Vec<TenantLimits>, BackendError> {
        let rows: Vec<TermsRow> = sqlx::query_as(
            "select tenant, weight, tokens_per_minute, running_max, requests_per_minute
               from tenants order by tenant",
        )
        .fetch_all(&self.readers)
        .await?;
        let count = |count: Option<i64>| count.and_then(|count| u32::try_from(count).ok());
        let limits = rows.into_iter().map(|row| TenantLimits {
            tenant: row.tenant,
            weight: row.weight,
            tokens_per_minute: count(row.tokens_per_minute),
            running_max: count(row.running_max),
            requests_per_minute: count(row.requests_per_minute),
        });
        Ok(limits.collect())
    }

    pub(crate) async fn set_tenant(&self, terms: &TenantLimits) -> Result<(), BackendError> {
        sqlx::query(
            "insert into tenants (tenant, weight, tokens_per_minute, running_max, requests_per_minute,
                                  changed_at)
             values (?1, ?2, ?3, ?4, ?5, ?6)
                 on conflict (tenant) do update
                set weight = excluded.weight, tokens_per_minute = excluded.tokens_per_minute,
                    running_max = excluded.running_max,
                    requests_per_minute = excluded.requests_per_minute,
                    changed_at = excluded.changed_at",
        )
        .bind(terms.tenant.as_str())
        .bind(terms.weight)
        .bind(terms.tokens_per_minute)
        .bind(terms.running_max)
        .bind(terms.requests_per_minute)
        .bind(self.clock.now())
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    pub(crate) async fn forget_tenant(&self, tenant: &Tenant) -> Result<bool, BackendError> {
        let gone = sqlx::query("delete from tenants where tenant = ?1")
            .bind(tenant.as_str())
            .execute(&self.writer)
            .await?;
        Ok(gone.rows_affected() > 0)
    }
}
