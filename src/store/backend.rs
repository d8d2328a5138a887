//! What a database implements, and the calls of [`Store`], declared once.

use std::{
    fmt,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use metrics::{counter, histogram};
use uuid::Uuid;

use super::{
    Admission, Admitted, ApiKey, AttemptRecord, CacheFilter, CacheLimits, CacheStats, CacheUpkeep,
    CancelFilter, CancelledBatch, Claim, Claimant, Claimed, DeadFilter, DeadLetter, DeadResolution,
    DecisionRecord, DeferredJob, DeferredQueue, Feedback, Heartbeat, KeyDigest, KnownQuestion,
    Overview, PairRow, PastDecision, Recheck, RecheckOutcome, RecordFilter, Released, RescueRules,
    Rescued, ScopedTarget, Settled, Settlement, StoreError, StoredWeights, TenantLimits,
    TenantLoad, TierCost, WorkerRecord,
    error::{BackendError, retry},
    postgres::PostgresStore,
    sqlite::SqliteStore,
};
use crate::{
    clock::Clock,
    config::{RouteTarget, StoreConfig, TargetScope},
    job::{
        Answer, CacheKey, Job, JobHead, JobId, JobRecord, JobState, Reason, RoutedJob, Tenant, Tier,
    },
    metrics::{STORE_ERRORS, STORE_SECONDS},
};

/// How long a readiness probe waits for the database.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// The job database: Postgres or a SQLite file. Cheap to clone; clones share connections.
///
/// Every call retries lost conflicts (deadlock, serialisation, busy file), records its duration and
/// failures by name, and turns the database's errors into [`StoreError`].
#[derive(Clone, Debug)]
pub struct Store {
    backend: Arc<dyn Backend>,
}

impl Store {
    /// Connects without touching the tables: see [`Store::migrate`].
    ///
    /// # Errors
    /// When the database cannot be reached or the file cannot be opened.
    pub async fn connect(config: &StoreConfig) -> Result<Self, StoreError> {
        let backend: Arc<dyn Backend> = if config.url.has_scheme(&["sqlite"]) {
            Arc::new(SqliteStore::connect(config).await?)
        } else {
            Arc::new(PostgresStore::connect(config).await?)
        };
        Ok(Self { backend })
    }

    /// Takes the time from `clock`; clones made before keep theirs.
    #[must_use]
    pub fn with_clock(self, clock: Clock) -> Self {
        Self {
            backend: self.backend.with_clock(clock),
        }
    }

    /// The clock that leases, deadlines and latencies are measured by.
    pub fn clock(&self) -> &Clock {
        self.backend.clock()
    }

    /// True for a SQLite file, which one process owns; false for a database server.
    pub fn is_embedded(&self) -> bool {
        self.backend.is_embedded()
    }

    /// True while the database answers; drives `/readyz`.
    pub async fn is_reachable(&self) -> bool {
        let probe = tokio::time::timeout(PROBE_TIMEOUT, self.backend.probe());
        matches!(probe.await, Ok(Ok(())))
    }

    /// Closes the connections.
    pub async fn close(&self) {
        self.backend.close().await;
    }

    /// Runs a call until it no longer loses conflicts; measures it and maps its error.
    async fn call<T, F>(&self, name: &'static str, attempt: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, BackendError>>,
    {
        let started = Instant::now();
        let outcome = retry(attempt).await;
        histogram!(STORE_SECONDS, "call" => name).record(started.elapsed());
        outcome.map_err(|error| {
            counter!(STORE_ERRORS, "call" => name).increment(1);
            error.outward(self.backend.url())
        })
    }
}

/// Declares each call once: as a method of [`Backend`], its two implementations (which are the
/// inherent methods of the same name, in files by subject), and the public method of [`Store`].
/// `skip if` names calls that have nothing to do and return the default without reaching the
/// database.
macro_rules! calls {
    ($(
        $(#[$doc:meta])*
        fn $name:ident($($arg:ident: $ty:ty),* $(,)?) -> $out:ty $(, skip if $idle:expr)?;
    )*) => {
        /// A job database. [`Store`] documents the calls; every call that changes state does so
        /// in one transaction.
        pub(super) trait Backend: fmt::Debug + Send + Sync {
            /// The URL or file name for messages, without a password.
            fn url(&self) -> &str;
            fn clock(&self) -> &Clock;
            fn with_clock(&self, clock: Clock) -> Arc<dyn Backend>;
            fn is_embedded(&self) -> bool;
            fn probe(&self) -> BoxFuture<'_, Result<(), BackendError>>;
            fn close(&self) -> BoxFuture<'_, ()>;
            $(fn $name<'a>(&'a self, $($arg: $ty),*) -> BoxFuture<'a, Result<$out, BackendError>>;)*
        }

        #[expect(
            clippy::needless_lifetimes,
            reason = "only some calls have arguments with this lifetime"
        )]
        impl Store {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// When the database cannot be reached or refuses; nothing has changed then.
                pub async fn $name<'a>(&'a self, $($arg: $ty),*) -> Result<$out, StoreError> {
                    $(if $idle { return Ok(Default::default()); })?
                    self.call(stringify!($name), || self.backend.$name($($arg),*)).await
                }
            )*
        }

        impl Backend for PostgresStore {
            implement!(PostgresStore, false);
            $(fn $name<'a>(&'a self, $($arg: $ty),*) -> BoxFuture<'a, Result<$out, BackendError>> {
                Box::pin(PostgresStore::$name(self, $($arg),*))
            })*
        }

        impl Backend for SqliteStore {
            implement!(SqliteStore, true);
            $(fn $name<'a>(&'a self, $($arg: $ty),*) -> BoxFuture<'a, Result<$out, BackendError>> {
                Box::pin(SqliteStore::$name(self, $($arg),*))
            })*
        }
    };
}

/// The methods of [`Backend`] that are not calls.
macro_rules! implement {
    ($backend:ident, $is_embedded:literal) => {
        fn url(&self) -> &str {
            &self.url
        }

        fn clock(&self) -> &Clock {
            &self.clock
        }

        fn with_clock(&self, clock: Clock) -> Arc<dyn Backend> {
            let mut backend = self.clone();
            backend.clock = clock;
            Arc::new(backend)
        }

        fn is_embedded(&self) -> bool {
            $is_embedded
        }

        fn probe(&self) -> BoxFuture<'_, Result<(), BackendError>> {
            Box::pin($backend::probe(self))
        }

        fn close(&self) -> BoxFuture<'_, ()> {
            Box::pin($backend::close(self))
        }
    };
}

calls! {
    /// Brings the tables to this version; safe to run from several processes at once.
    /// Returns the number of migrations applied.
    fn migrate() -> usize;

    /// Fails with [`StoreError::Schema`] unless the tables are of this version.
    fn check_schema() -> ();

    /// Creates the partitions for the coming weeks; SQLite has none. Call at start and daily.
    fn ensure_partitions() -> ();

    /// Drops the schema (Postgres) or the tables (SQLite) with all data. For tests.
    fn drop_all() -> ();

    /// Writes incoming jobs; returns one outcome for each, in order. Later admissions of a batch
    /// see earlier ones. A cache key leads to a hit (fresh entry), to waiting (an identical job
    /// leads and its lease runs) or to leading.
    fn admit(admissions: &'a [Admission], cache_lease: Duration) -> Vec<Admitted>,
        skip if admissions.is_empty();

    /// Records an attempt for each job before it runs; returns one outcome for each, in order. A
    /// job past its deadline expires; one without attempts left fails and leaves a dead letter.
    fn claim(claimant: &'a Claimant, claims: &'a [Claim]) -> Vec<Claimed>,
        skip if claims.is_empty();

    /// Ends attempts; returns one outcome for each, in order. A success with a cache key fills the
    /// entry and settles the jobs that wait for it. Any other end of the job, and its escalation,
    /// releases the entry to a waiting job. A job requeued on its tier keeps leading.
    fn settle(settlements: &'a [Settlement], cache_ttl: Duration) -> Vec<Settled>,
        skip if settlements.is_empty();

    /// Ends jobs whose messages the broker dead-lettered; returns their records, in order. Terminal
    /// jobs stay as they are, and so do running ones whose lease holds. Unknown jobs (by id, then
    /// by tenant and key) are written.
    fn end(endings: &'a [(JobHead, JobState, Reason)]) -> Vec<JobRecord>,
        skip if endings.is_empty();

    /// Makes the oldest waiting job of each cache key without a live leader the new leader, and
    /// returns those jobs for publishing. A job is returned again until a worker claims it.
    fn take_over_flights(limit: usize, cache_lease: Duration) -> Vec<RoutedJob>;

    /// Records a worker's heartbeat, which extends the leases of all its jobs.
    fn heartbeat(heartbeat: &'a Heartbeat) -> ();

    /// The workers seen within `age`, most recent first.
    fn workers(age: Duration) -> Vec<WorkerRecord>;

    /// The records of those of these jobs that exist, in no particular order.
    fn records(ids: &'a [JobId]) -> Vec<JobRecord>;

    /// The records of the jobs that own these idempotency keys.
    fn records_by_key(tenant: &'a Tenant, keys: &'a [String]) -> Vec<JobRecord>;

    /// Terminal records by rising (finished_at, id), without shadow copies.
    fn finished(filter: &'a RecordFilter, limit: usize) -> Vec<JobRecord>;

    /// A job with its request, as admitted.
    fn job(id: JobId) -> Option<Job>;

    /// A job's attempts, oldest first.
    fn attempts(id: JobId) -> Vec<AttemptRecord>;

    /// Figures for `promptyard status`.
    fn overview() -> Overview;

    /// Keeps dead letters; ignores those whose id is known.
    fn keep_dead_letters(letters: &'a [DeadLetter]) -> ();

    /// Unresolved dead letters, oldest first.
    fn dead_letters(filter: &'a DeadFilter, limit: usize) -> Vec<DeadLetter>;

    /// Marks dead letters as resolved; returns how many were unresolved before.
    fn resolve_dead(ids: &'a [Uuid], resolution: DeadResolution) -> u64;

    /// Acquires or renews the leadership of a role for `lease`; false while another holder has it.
    fn acquire_leadership(role: &'static str, holder: &'a str, lease: Duration) -> bool;

    /// The deferred jobs that are due for a queue: for each tenant the first `each` by rank.
    fn deferred(queue: DeferredQueue, each: usize) -> Vec<DeferredJob>;

    /// The tenants with jobs deferred for a tier.
    fn deferred_tenants() -> Vec<(DeferredQueue, Tenant)>;

    /// Deferred jobs for each queue, in the order of [`DeferredQueue::ALL`]; counted up to `most`.
    fn deferred_counts(most: u32) -> [u32; 3];

    /// Releases deferred jobs and returns the messages to publish; forgets jobs that have ended.
    /// `again` includes jobs released before, for calls whose outcome was lost.
    fn release(jobs: &'a [JobId], again: bool) -> Vec<Released>, skip if jobs.is_empty();

    /// Records that the broker has the messages of released jobs.
    fn note_published(jobs: &'a [JobId]) -> (), skip if jobs.is_empty();

    /// Jobs released at least `released_for` ago that are neither published nor seen by their next
    /// stage, earliest release first: their router may have died.
    fn unpublished(released_for: Duration, limit: usize) -> Vec<JobId>;

    /// Forgets released jobs that no longer count against a limit; returns the remaining load.
    fn tenant_loads() -> Vec<TenantLoad>;

    /// The limits of the tenants that have some, by name.
    fn tenants() -> Vec<TenantLimits>;

    /// Sets a tenant's limits.
    fn set_tenant(limits: &'a TenantLimits) -> ();

    /// Resets a tenant to the defaults; false when it had them.
    fn forget_tenant(tenant: &'a Tenant) -> bool;

    /// Expires overdue jobs that nobody runs, closes attempts of cancelled jobs whose worker is
    /// gone, and finds stuck jobs.
    fn rescue(rules: RescueRules) -> Rescued;

    /// Cancels unfinished jobs, at most `limit` of a submission, and returns their records. A
    /// cancelled submission is remembered ([`Store::cancelled_batches`]); running attempts learn of
    /// it through [`Store::superseded`].
    fn cancel(filter: &'a CancelFilter, limit: usize) -> Vec<JobRecord>;

    /// The submissions cancelled since an instant.
    fn cancelled_batches(since: DateTime<Utc>) -> Vec<CancelledBatch>;

    /// The jobs of these attempts that have ended or have a newer attempt.
    fn superseded(attempts: &'a [(JobId, u32)]) -> Vec<JobId>;

    /// Deletes expired, stale, abandoned and surplus cache entries in small steps, but none that
    /// jobs compute or wait for. `None` when another process is doing it.
    fn tend_cache(limits: CacheLimits) -> Option<CacheUpkeep>;

    /// Cached answers by tenant, model and revision, most entries first.
    fn cache_stats() -> Vec<CacheStats>;

    /// The number of cached answers that match a filter.
    fn count_cached(filter: &'a CacheFilter) -> u64;

    /// Deletes the cached answers that match a filter; returns their number. Jobs answered from
    /// them keep their answers.
    fn drop_cached(filter: &'a CacheFilter) -> u64;

    /// The jobs with a reply queue that were settled together with these, by their answers.
    fn answered_along(jobs: &'a [JobId]) -> Vec<JobRecord>, skip if jobs.is_empty();

    /// Keeps an API key under the digest of its secret.
    fn add_key(key: &'a ApiKey, digest: KeyDigest) -> ();

    /// Every API key, oldest first.
    fn keys() -> Vec<ApiKey>;

    /// The API key of this digest, if it is valid now.
    fn find_key(digest: KeyDigest) -> Option<ApiKey>;

    /// Revokes an API key; false when it does not exist or was revoked before.
    fn revoke_key(id: Uuid) -> bool;

    /// Keeps feedback on answers; returns one flag for each, in order: false when `tenant` has no
    /// such job. A source's later feedback on a job replaces its earlier one.
    fn record_feedback(tenant: &'a Tenant, feedback: &'a [Feedback]) -> Vec<bool>,
        skip if feedback.is_empty();

    /// Closes shadow copies that have ended and draws that need none; returns the number of copies
    /// still open.
    fn close_shadows() -> u64;

    /// Drawn jobs that the small tier has answered and that have no copy yet, and those whose copy
    /// was made more than `stuck_after` ago but never claimed: its message may be lost.
    fn due_shadows(limit: usize, stuck_after: Duration) -> Vec<Job>;

    /// Scores of the last `limit` jobs of the past week whose tier the router chose with `scorer`,
    /// oldest first.
    fn past_decisions(scorer: &'a str, limit: usize) -> Vec<PastDecision>;

    /// Cost of the last `limit` computed jobs of the past hour, by tier.
    fn tier_costs(limit: usize) -> Vec<TierCost>;

    /// Jobs that both tiers answered, latest first. `for_training` adds the requests, and escalated
    /// jobs with an answer from small. Those are no sample of the traffic, since small was unsure of
    /// them: do not estimate quality from them.
    fn pairs(limit: usize, for_training: bool) -> Vec<PairRow>;

    /// The routing decision about a job; `None` when the job does not exist.
    fn decision(id: JobId) -> Option<DecisionRecord>;

    /// Keeps trained weights, replacing those of the same version; `promote` activates them.
    fn put_weights(weights: &'a StoredWeights, promote: bool) -> ();

    /// The active weights, if any.
    fn active_weights() -> Option<StoredWeights>;

    /// The targets set at run time, by scope; they override the configuration's.
    fn route_targets() -> Vec<ScopedTarget>;

    /// Sets a scope's target, replacing an earlier one.
    fn set_route_target(scope: &'a TargetScope, target: RouteTarget) -> ();

    /// Removes a scope's target, so that the configuration applies; false when it had none.
    fn unset_route_target(scope: &'a TargetScope) -> bool;

    /// Questions of an encoder with a ready answer whose row or answer changed at or after an
    /// instant, latest first.
    fn known_questions(embedder: &'a str, since: DateTime<Utc>, limit: usize) -> Vec<KnownQuestion>;

    /// The answer in a cache entry and the job that computed it, while it may be reused.
    fn cached(key: CacheKey) -> Option<(Answer, JobId)>;

    /// Closes rechecks that have nothing to run; returns the number still open.
    fn open_rechecks() -> u64;

    /// Jobs answered from another question that are to be rerun, with their tier, and those whose
    /// copy was made more than `stuck_after` ago but never claimed.
    fn due_rechecks(limit: usize, stuck_after: Duration) -> Vec<(Job, Tier)>;

    /// Rechecks whose copy has ended and that are not judged yet.
    fn ended_rechecks(limit: usize) -> Vec<Recheck>;

    /// Writes the outcomes of rechecks; returns those not judged before, so that each counts once.
    fn settle_rechecks(outcomes: &'a [RecheckOutcome]) -> Vec<JobId>,
        skip if outcomes.is_empty();
}
