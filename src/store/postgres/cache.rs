//! Cache entries: taking the lead, reading, filling, giving up.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    job::{Answer, CacheKey, JobId},
    store::{
        error::BackendError,
        rules::{Entry, Hit, after},
    },
};

/// A job that wants its key's answer, and how many of its batch do.
pub(super) struct Bid<'a> {
    pub key: CacheKey,
    pub tenant: &'a str,
    /// The job that leads if none does.
    pub job: JobId,
    /// Jobs that a ready entry answers at once.
    pub wanted: i64,
}

/// Makes each bid's job its entry's leader where no other job leads and no fresh answer is there;
/// returns the keys that were won. Locks every entry, won or not, until the transaction ends.
pub(super) async fn lead(
    connection: &mut PgConnection,
    bids: &[Bid<'_>],
    now: DateTime<Utc>,
    lease: Duration,
) -> Result<Vec<CacheKey>, BackendError> {
    debug_assert!(
        bids.is_sorted_by(|a, b| a.key.0 < b.key.0),
        "locks are taken in order"
    );
    let keys: Vec<&[u8]> = bids.iter().map(|bid| bid.key.0.as_slice()).collect();
    let tenants: Vec<&str> = bids.iter().map(|bid| bid.tenant).collect();
    let leaders: Vec<Uuid> = bids.iter().map(|bid| bid.job.0).collect();
    let won = sqlx::query_scalar!(
        "insert into cache_entries as e (key, tenant, state, leader, lease_until, created_at)
         select n.key, n.tenant, 'computing', n.leader, $4, $5
           from unnest($1::bytea[], $2::text[], $3::uuid[]) as n (key, tenant, leader)
             on conflict (key) do update
            set state = 'computing', leader = excluded.leader, lease_until = excluded.lease_until,
                model = null, revision = null, answer = null, created_at = excluded.created_at,
                expires_at = null
          where (e.state = 'computing' and e.lease_until < $5)
             or (e.state = 'ready' and e.expires_at <= $5)
         returning key",
        &keys as &[&[u8]],
        &tenants as &[&str],
        &leaders,
        after(now, lease),
        now
    )
    .fetch_all(connection)
    .await?;
    Ok(won.into_iter().filter_map(to_key).collect())
}

/// What each bid's key leads to: its own job where it won the lead. Returns those keys too.
pub(super) async fn settle_bids(
    connection: &mut PgConnection,
    bids: &[Bid<'_>],
    now: DateTime<Utc>,
    lease: Duration,
) -> Result<(HashMap<CacheKey, Entry>, HashSet<CacheKey>), BackendError> {
    let mut entries = HashMap::with_capacity(bids.len());
    let mut won = HashSet::new();
    if bids.is_empty() {
        return Ok((entries, won));
    }
    let jobs: HashMap<CacheKey, &Bid<'_>> = bids.iter().map(|bid| (bid.key, bid)).collect();
    for key in lead(connection, bids, now, lease).await? {
        if let Some(bid) = jobs.get(&key) {
            entries.insert(key, Entry::Led(bid.job));
            won.insert(key);
        }
    }
    let others: Vec<&[u8]> = bids
        .iter()
        .filter(|bid| !entries.contains_key(&bid.key))
        .map(|bid| bid.key.0.as_slice())
        .collect();
    if others.is_empty() {
        return Ok((entries, won));
    }
    let found = sqlx::query!(
        "select key, leader, answer from cache_entries where key = any($1)",
        &others as &[&[u8]]
    )
    .fetch_all(&mut *connection)
    .await?;
    let (mut hit_keys, mut hit_counts) = (Vec::new(), Vec::new());
    for row in found {
        let leader = JobId(row.leader);
        let Some(key) = to_key(row.key) else { continue };
        let entry = match row.answer {
            None => Entry::Led(leader),
            Some(answer) => {
                hit_keys.push(key.0.to_vec());
                hit_counts.push(jobs.get(&key).map_or(0, |bid| bid.wanted));
                Entry::Ready(Hit::exact(serde_json::from_str(&answer)?, leader))
            }
        };
        entries.insert(key, entry);
    }
    count_hits(connection, &hit_keys, &hit_counts, now).await?;
    Ok((entries, won))
}

/// Adds to what entries were of use for.
async fn count_hits(
    connection: &mut PgConnection,
    keys: &[Vec<u8>],
    counts: &[i64],
    now: DateTime<Utc>,
) -> Result<(), BackendError> {
    if !keys.is_empty() {
        sqlx::query!(
            "update cache_entries e set hits = e.hits + n.hits, last_hit_at = $3
               from unnest($1::bytea[], $2::int8[]) as n (key, hits)
              where e.key = n.key",
            keys,
            counts,
            now
        )
        .execute(connection)
        .await?;
    }
    Ok(())
}

/// The answers of those of the entries that are ready, and the jobs that computed them; other entries
/// stay as they are.
pub(super) async fn take(
    connection: &mut PgConnection,
    keys: &[CacheKey],
    now: DateTime<Utc>,
) -> Result<HashMap<CacheKey, (Answer, JobId)>, BackendError> {
    let mut wanted: HashMap<CacheKey, i64> = HashMap::new();
    for key in keys {
        *wanted.entry(*key).or_default() += 1;
    }
    if wanted.is_empty() {
        return Ok(HashMap::new());
    }
    let keys: Vec<&[u8]> = wanted.keys().map(|key| key.0.as_slice()).collect();
    let found = sqlx::query!(
        r#"select key, leader, answer as "answer!" from cache_entries
            where key = any($1) and state = 'ready' and expires_at > $2"#,
        &keys as &[&[u8]],
        now
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut taken = HashMap::with_capacity(found.len());
    let (mut hit_keys, mut hit_counts) = (Vec::new(), Vec::new());
    for row in found {
        let Some(key) = to_key(row.key) else { continue };
        hit_keys.push(key.0.to_vec());
        hit_counts.push(wanted[&key]);
        let answer = serde_json::from_str(&row.answer)?;
        taken.insert(key, (answer, JobId(row.leader)));
    }
    // These entries are not locked in the order of all entries, so a lock is not waited for: rather
    // is a count too low.
    let free: Vec<Vec<u8>> = sqlx::query_scalar!(
        "select key from cache_entries where key = any($1) for update skip locked",
        &hit_keys
    )
    .fetch_all(&mut *connection)
    .await?;
    let (keys, counts): (Vec<_>, Vec<_>) = hit_keys
        .into_iter()
        .zip(hit_counts)
        .filter(|(key, _)| free.contains(key))
        .unzip();
    count_hits(connection, &keys, &counts, now).await?;
    Ok(taken)
}

/// Locks the entries that are there, so that no job decides to wait for them meanwhile.
pub(super) async fn lock(
    connection: &mut PgConnection,
    keys: &[&[u8]],
) -> Result<(), BackendError> {
    if !keys.is_empty() {
        sqlx::query!(
            "select key from cache_entries where key = any($1) order by key for update",
            keys as &[&[u8]]
        )
        .fetch_all(connection)
        .await?;
    }
    Ok(())
}

/// An answer for an entry.
pub(super) struct Filling<'a> {
    pub key: CacheKey,
    pub tenant: &'a str,
    pub job: JobId,
    pub answer: &'a Answer,
}

/// Puts answers into their entries, whichever job leads them; keys must differ.
pub(super) async fn fill(
    connection: &mut PgConnection,
    fillings: &[Filling<'_>],
    now: DateTime<Utc>,
    ttl: Duration,
) -> Result<(), BackendError> {
    if fillings.is_empty() {
        return Ok(());
    }
    let keys: Vec<&[u8]> = fillings.iter().map(|f| f.key.0.as_slice()).collect();
    let tenants: Vec<&str> = fillings.iter().map(|f| f.tenant).collect();
    let jobs: Vec<Uuid> = fillings.iter().map(|f| f.job.0).collect();
    let models: Vec<_> = fillings
        .iter()
        .map(|f| super::text::encode(&f.answer.model))
        .collect();
    let revisions: Vec<_> = fillings
        .iter()
        .map(|f| super::text::encode(&f.answer.revision))
        .collect();
    let answers: Vec<String> = fillings
        .iter()
        .map(|f| serde_json::to_string(f.answer))
        .collect::<Result<_, _>>()?;
    sqlx::query!(
        "insert into cache_entries (key, tenant, state, leader, model, revision, answer, created_at, expires_at)
         select n.key, n.tenant, 'ready', n.job, n.model, n.revision, n.answer, $7, $8
           from unnest($1::bytea[], $2::text[], $3::uuid[], $4::text[], $5::text[], $6::text[])
                as n (key, tenant, job, model, revision, answer)
             on conflict (key) do update
            set state = 'ready', leader = excluded.leader, lease_until = null, model = excluded.model,
                revision = excluded.revision, answer = excluded.answer, created_at = excluded.created_at,
                expires_at = excluded.expires_at",
        &keys as &[&[u8]],
        &tenants as &[&str],
        &jobs,
        &models as &[std::borrow::Cow<'_, str>],
        &revisions as &[std::borrow::Cow<'_, str>],
        &answers,
        now,
        after(now, ttl)
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes the entries that these jobs lead without an answer, so that waiting jobs take over.
pub(super) async fn give_up(
    connection: &mut PgConnection,
    led: &[(CacheKey, Uuid)],
) -> Result<(), BackendError> {
    if led.is_empty() {
        return Ok(());
    }
    let mut led = led.to_vec();
    led.sort_by_key(|(key, _)| key.0);
    let (keys, jobs): (Vec<Vec<u8>>, Vec<Uuid>) =
        led.iter().map(|(key, job)| (key.0.to_vec(), *job)).unzip();
    sqlx::query!(
        "delete from cache_entries e using unnest($1::bytea[], $2::uuid[]) as n (key, leader)
          where e.key = n.key and e.leader = n.leader and e.state = 'computing'",
        &keys,
        &jobs
    )
    .execute(connection)
    .await?;
    Ok(())
}

pub(super) fn to_key(bytes: Vec<u8>) -> Option<CacheKey> {
    bytes.try_into().ok().map(CacheKey)
}
