//! Authentication by key, scopes, and request limits.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::http::{HeaderMap, StatusCode, header};
use tokio::time::Instant;

use super::error::ApiError;
use crate::{
    job::{JobRecord, Tenant},
    store::{ApiKey, KeyDigest, Scope, Scopes, Store, StoreError},
};

/// How long the look-up of a key is cached; a revoked key is accepted for as long.
const KEY_AGE: Duration = Duration::from_secs(5);
/// Most cached keys, invalid ones included.
const KEYS_MAX: usize = 10_000;
/// How long tenants' limits are cached.
const LIMITS_AGE: Duration = Duration::from_secs(2);

/// Checks keys and counts requests. Clones share one cache.
#[derive(Clone, Debug)]
pub(super) struct Access {
    needs_key: bool,
    cached: Arc<Mutex<Cached>>,
}

#[derive(Debug, Default)]
struct Cached {
    keys: HashMap<KeyDigest, (Option<ApiKey>, Instant)>,
    limits_read_at: Option<Instant>,
    buckets: HashMap<Tenant, Bucket>,
}

/// Token bucket of one tenant's requests: holds a minute's worth and refills steadily.
#[derive(Debug)]
struct Bucket {
    per_minute: u32,
    left: f64,
    filled_at: Instant,
}

impl Bucket {
    fn full(per_minute: u32, now: Instant) -> Self {
        Self {
            per_minute,
            left: per_minute.into(),
            filled_at: now,
        }
    }

    /// Takes one token, or returns the wait until there is one.
    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let rate = f64::from(self.per_minute) / 60.0;
        let gained = (now - self.filled_at).as_secs_f64() * rate;
        self.left = (self.left + gained).min(self.per_minute.into());
        self.filled_at = now;
        if self.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - self.left) / rate));
        }
        self.left -= 1.0;
        Ok(())
    }
}

impl Access {
    pub(super) fn new(needs_key: bool) -> Self {
        Self {
            needs_key,
            cached: Arc::default(),
        }
    }

    fn cached(&self) -> MutexGuard<'_, Cached> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Identifies the caller by the key of its request.
    pub(super) async fn caller(
        &self,
        headers: &HeaderMap,
        store: &Store,
    ) -> Result<Caller, ApiError> {
        if !self.needs_key {
            return Ok(Caller {
                tenant: None,
                scopes: Scopes::all(),
            });
        }
        let key = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, key)| KeyDigest::of(key.trim()));
        let Some(digest) = key else {
            return Err(ApiError::new(
                StatusCode::UNAUTHORIZED,
                "missing_api_key",
                "send a key: Authorization: Bearer KEY",
            ));
        };
        let known = self.find(digest, store).await?;
        let known = known.ok_or_else(|| {
            ApiError::new(
                StatusCode::UNAUTHORIZED,
                "invalid_api_key",
                "the key is unknown, expired or revoked",
            )
        })?;
        Ok(Caller {
            tenant: known.tenant,
            scopes: known.scopes,
        })
    }

    async fn find(&self, digest: KeyDigest, store: &Store) -> Result<Option<ApiKey>, StoreError> {
        let now = Instant::now();
        if let Some((key, at)) = self.cached().keys.get(&digest)
            && now - *at < KEY_AGE
        {
            return Ok(key.clone());
        }
        let key = store.find_key(digest).await?;
        let mut cached = self.cached();
        if cached.keys.len() >= KEYS_MAX {
            cached.keys.retain(|_, (_, at)| now - *at < KEY_AGE);
        }
        if cached.keys.len() < KEYS_MAX {
            cached.keys.insert(digest, (key.clone(), now));
        }
        Ok(key)
    }

    /// Counts a request against its tenant's limit, if it has one.
    pub(super) async fn count(&self, tenant: &Tenant, store: &Store) -> Result<(), ApiError> {
        self.refresh(store).await?;
        let taken = match self.cached().buckets.get_mut(tenant) {
            Some(bucket) => bucket.take(Instant::now()),
            None => Ok(()),
        };
        taken.map_err(|wait| {
            ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limited",
                format!("tenant {tenant} has made all the requests it may make per minute"),
            )
            .retry_after(wait)
        })
    }

    async fn refresh(&self, store: &Store) -> Result<(), StoreError> {
        let now = Instant::now();
        let is_fresh = |cached: &Cached| {
            cached
                .limits_read_at
                .is_some_and(|at| now - at < LIMITS_AGE)
        };
        if is_fresh(&self.cached()) {
            return Ok(());
        }
        let limits = store.tenants().await?;
        let mut cached = self.cached();
        cached.limits_read_at = Some(now);
        let mut buckets = HashMap::new();
        for one in limits {
            let Some(per_minute) = one.requests_per_minute else {
                continue;
            };
            let same = cached
                .buckets
                .remove(&one.tenant)
                .filter(|bucket| bucket.per_minute == per_minute);
            let bucket = same.unwrap_or_else(|| Bucket::full(per_minute, now));
            buckets.insert(one.tenant, bucket);
        }
        cached.buckets = buckets;
        Ok(())
    }
}

/// Who sent a request, and what they may do.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    tenant: Option<Tenant>,
    scopes: Scopes,
}

impl Caller {
    /// Refuses a caller whose key lacks a scope.
    pub(super) fn needs(&self, scope: Scope) -> Result<(), ApiError> {
        if self.scopes.contain(scope) {
            return Ok(());
        }
        Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "scope_missing",
            format!("the key lacks the scope {}", scope.as_str()),
        ))
    }

    /// Refuses a caller whose key is restricted to one tenant.
    pub(super) fn needs_all_tenants(&self) -> Result<(), ApiError> {
        match &self.tenant {
            None => Ok(()),
            Some(own) => Err(tenant_forbidden(own)),
        }
    }

    /// The tenant that a request acts for: the key's, if it is restricted to one.
    pub(super) fn tenant(&self, named: Option<Tenant>) -> Result<Tenant, ApiError> {
        match (&self.tenant, named) {
            (Some(own), Some(named)) if named != *own => Err(tenant_forbidden(own)),
            (Some(own), _) => Ok(own.clone()),
            (None, named) => Ok(named.unwrap_or_default()),
        }
    }

    /// The tenant whose rows a request reads or changes; `None` means all tenants.
    pub(super) fn rows_of(&self, named: Option<Tenant>) -> Result<Option<Tenant>, ApiError> {
        match &self.tenant {
            Some(_) => self.tenant(named).map(Some),
            None => Ok(named),
        }
    }

    /// True when the caller may see a job.
    pub(super) fn sees(&self, record: &JobRecord) -> bool {
        self.tenant.as_ref().is_none_or(|own| *own == record.tenant)
    }
}

fn tenant_forbidden(own: &Tenant) -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        "tenant_forbidden",
        format!("the key is restricted to tenant {own}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_bucket_holds_a_minute_and_refills() {
        let mut bucket = Bucket::full(6, Instant::now());
        for _ in 0..6 {
            assert_eq!(bucket.take(Instant::now()), Ok(()));
        }
        let wait = bucket.take(Instant::now()).expect_err("empty");
        assert_eq!(wait, Duration::from_secs(10));
        tokio::time::advance(wait).await;
        assert_eq!(bucket.take(Instant::now()), Ok(()));
        assert!(bucket.take(Instant::now()).is_err());
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert!((0..6).all(|_| bucket.take(Instant::now()).is_ok()));
        assert!(
            bucket.take(Instant::now()).is_err(),
            "no more than a minute"
        );
    }

    #[test]
    fn a_tenants_key_is_refused_for_other_tenants() {
        let tenant = |name: &str| -> Tenant { name.parse().expect("a name") };
        let own = Caller {
            tenant: Some(tenant("a")),
            scopes: "read".parse().expect("scopes"),
        };
        assert_eq!(own.tenant(None).expect("its own"), tenant("a"));
        assert_eq!(own.rows_of(None).expect("its own"), Some(tenant("a")));
        assert!(own.tenant(Some(tenant("b"))).is_err());
        assert!(own.rows_of(Some(tenant("b"))).is_err());
        assert!(own.needs_all_tenants().is_err());
        assert!(own.needs(Scope::Read).is_ok() && own.needs(Scope::Submit).is_err());
    }
}
