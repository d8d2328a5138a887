//! Claims: an attempt is on record before it runs.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{PostgresStore, attempts, batch, cache, dead, insert, lock_rows, text::encode};
use crate::{
    job::{JobHead, JobRecord, JobState, Reason},
    store::{
        Claim, Claimant, Claimed,
        error::BackendError,
        records,
        row::Row,
        rules::{self, ClaimStep, Fate, NewJob},
    },
};

/// A job that ends without an answer or an attempt's outcome.
pub(super) struct End {
    pub(super) row: Row,
    state: JobState,
    reason: Reason,
    keep_dead_letters: bool,
}

impl End {
    /// An end that leaves no dead letter.
    pub(super) fn new(row: Row, state: JobState, reason: Reason, now: DateTime<Utc>) -> Self {
        Self {
            row: row.ended(state, &reason, now),
            state,
            reason,
            keep_dead_letters: false,
        }
    }
}

impl PostgresStore {
    pub(crate) async fn claim(
        &self,
        claimant: &Claimant,
        claims: &[Claim],
    ) -> Result<Vec<Claimed>, BackendError> {
        let now = self.clock.now();
        let mut transaction = self.pool.begin().await?;
        let ids: Vec<Uuid> = claims.iter().map(|claim| claim.job.0).collect();
        let mut rows: HashMap<Uuid, Row> = lock_rows(&mut transaction, &ids)
            .await?
            .into_iter()
            .map(|row| (row.id, row))
            .collect();
        let alive = alive(&mut transaction, rows.values(), now).await?;
        let mut seen = HashSet::new();
        let (mut runs, mut lost, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        let mut outcomes = Vec::with_capacity(claims.len());
        for claim in claims {
            let id = claim.job.0;
            let Some(row) = rows.get(&id) else {
                outcomes.push(Claimed::Unknown);
                continue;
            };
            if !seen.insert(id) && row.is_open() {
                outcomes.push(Claimed::Busy);
                continue;
            }
            let step =
                rules::claim_step(row, claim.redelivered, alive.contains(&id), claimant, now);
            outcomes.push(match step {
                ClaimStep::Busy => Claimed::Busy,
                ClaimStep::Elsewhere(tier) => Claimed::Elsewhere(tier),
                ClaimStep::Ended => Claimed::Ended(Box::new(row.clone().into_record()?)),
                ClaimStep::Run {
                    attempt,
                    lost: was_running,
                    last,
                } => {
                    if was_running {
                        lost.push((id, row.attempts));
                    }
                    runs.push((id, attempt));
                    Claimed::Run {
                        attempt: u32::try_from(attempt).unwrap_or(u32::MAX),
                        poison_candidate: was_running,
                        last,
                    }
                }
                ClaimStep::End {
                    state,
                    reason,
                    lost: was_running,
                    keep_dead_letters,
                } => {
                    if was_running {
                        lost.push((id, row.attempts));
                    }
                    let ended = row.clone().ended(state, &reason, now);
                    let record = ended.clone().into_record()?;
                    rows.insert(id, ended.clone());
                    ends.push(End {
                        row: ended,
                        state,
                        reason,
                        keep_dead_letters,
                    });
                    Claimed::Ended(Box::new(record))
                }
            });
        }
        mark_lost(&mut transaction, &lost, now).await?;
        begin_attempts(&mut transaction, claimant, &runs, now).await?;
        let answered = write_ends(&mut transaction, &ends, now).await?;
        transaction.commit().await?;
        for outcome in &mut outcomes {
            if let Claimed::Ended(record) = outcome
                && let Some(row) = answered.get(&record.id.0)
            {
                **record = row.clone().into_record()?;
            }
        }
        Ok(outcomes)
    }

    pub(crate) async fn end(
        &self,
        endings: &[(JobHead, JobState, Reason)],
    ) -> Result<Vec<JobRecord>, BackendError> {
        let now = self.clock.now();
        let mut transaction = self.pool.begin().await?;
        let owners = owners(&mut transaction, endings).await?;
        let jobs: Vec<NewJob<'_>> = endings
            .iter()
            .filter(|(head, ..)| !owners.contains_key(&head.id.0))
            .map(|(head, state, reason)| NewJob {
                head,
                request: None,
                digest: None,
                fate: Fate::Ended(*state, reason),
            })
            .collect();
        let mut unknown = insert::insert_jobs(&mut transaction, &jobs, now).await?;
        let ids: Vec<Uuid> = endings
            .iter()
            .map(|(head, ..)| owners.get(&head.id.0).copied().unwrap_or(head.id.0))
            .collect();
        let mut rows: HashMap<Uuid, Row> = lock_rows(&mut transaction, &ids)
            .await?
            .into_iter()
            .map(|row| (row.id, row))
            .collect();
        let alive = alive(&mut transaction, rows.values(), now).await?;
        let (mut lost, mut ends) = (Vec::new(), Vec::new());
        for (id, (_, state, reason)) in ids.iter().copied().zip(endings) {
            let Some(row) = rows.get(&id) else { continue };
            if unknown.remove(&id) || !row.is_open() || alive.contains(&id) {
                continue;
            }
            if row.state == JobState::Running {
                lost.push((id, row.attempts));
            }
            let ended = row.clone().ended(*state, reason, now);
            rows.insert(id, ended.clone());
            let (state, reason) = (*state, reason.clone());
            ends.push(End {
                row: ended,
                state,
                reason,
                keep_dead_letters: false,
            });
        }
        mark_lost(&mut transaction, &lost, now).await?;
        let answered = write_ends(&mut transaction, &ends, now).await?;
        rows.extend(answered);
        transaction.commit().await?;
        ids.iter()
            .filter_map(|id| rows.get(id))
            .map(|row| row.clone().into_record().map_err(BackendError::from))
            .collect()
    }
}

/// The running jobs whose lease holds, by the claim or by a later heartbeat.
pub(super) async fn alive(
    connection: &mut PgConnection,
    rows: impl Iterator<Item = &Row>,
    now: DateTime<Utc>,
) -> Result<HashSet<Uuid>, BackendError> {
    let running: Vec<&Row> = rows.filter(|row| row.state == JobState::Running).collect();
    if running.is_empty() {
        return Ok(HashSet::new());
    }
    let names: Vec<&str> = running
        .iter()
        .filter_map(|row| row.worker.as_deref())
        .collect();
    let workers: HashSet<String> = sqlx::query_scalar!(
        "select worker from workers where worker = any($1) and lease_until > $2",
        &names as &[&str],
        now
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .collect();
    let holds = |row: &&Row| {
        row.lease_until.is_some_and(|until| until > now)
            || row
                .worker
                .as_ref()
                .is_some_and(|worker| workers.contains(worker))
    };
    Ok(running
        .into_iter()
        .filter(holds)
        .map(|row| row.id)
        .collect())
}

/// Marks attempts whose worker vanished.
pub(super) async fn mark_lost(
    connection: &mut PgConnection,
    lost: &[(Uuid, i32)],
    now: DateTime<Utc>,
) -> Result<(), BackendError> {
    let rows: Vec<_> = lost
        .iter()
        .map(|(id, attempt)| records::lost(*id, *attempt, now))
        .collect();
    batch::execute(connection, &rows, records::MARK_LOST).await
}

/// Records new attempts; the jobs' rows are locked.
async fn begin_attempts(
    connection: &mut PgConnection,
    claimant: &Claimant,
    runs: &[(Uuid, i32)],
    now: DateTime<Utc>,
) -> Result<(), BackendError> {
    let claimed: Vec<_> = runs
        .iter()
        .map(|(id, attempt)| records::claimed(claimant, *id, *attempt, now))
        .collect();
    batch::execute(connection, &claimed, records::CLAIM_JOB).await?;
    let attempts = runs
        .iter()
        .map(|(id, attempt)| records::attempt(claimant, *id, *attempt, now));
    batch::insert(connection, "attempts", attempts, "").await
}

/// Writes ends without an answer of their own: the jobs, their cache entries and their dead letters.
/// Returns the jobs for which an escalated answer serves instead.
pub(super) async fn write_ends(
    connection: &mut PgConnection,
    ends: &[End],
    now: DateTime<Utc>,
) -> Result<HashMap<Uuid, Row>, BackendError> {
    if ends.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<_> = ends
        .iter()
        .map(|end| records::end(end.row.id, end.state, &end.reason, now))
        .collect();
    batch::execute(connection, &rows, records::END_JOB).await?;
    let led: Vec<_> = ends
        .iter()
        .filter_map(|end| Some((end.row.cache_key()?, end.row.id)))
        .collect();
    cache::give_up(connection, &led).await?;
    let answered = attempts::fall_back(connection, ends.iter().map(|end| &end.row)).await?;
    let spent: Vec<_> = ends
        .iter()
        .filter(|end| end.keep_dead_letters && !answered.contains_key(&end.row.id))
        .map(|end| (&end.row, &end.reason))
        .collect();
    dead::quarantine(connection, &spent, now).await?;
    Ok(answered)
}

/// The jobs that own the keys of endings under another id. Keys that nobody owns are taken.
async fn owners(
    connection: &mut PgConnection,
    endings: &[(JobHead, JobState, Reason)],
) -> Result<HashMap<Uuid, Uuid>, BackendError> {
    let mut keyed: Vec<(&str, &str, Uuid)> = endings
        .iter()
        .filter_map(|(head, ..)| Some((head.tenant.as_str(), head.key.as_deref()?, head.id.0)))
        .collect();
    if keyed.is_empty() {
        return Ok(HashMap::new());
    }
    keyed.sort_unstable();
    let tenants: Vec<&str> = keyed.iter().map(|(tenant, ..)| *tenant).collect();
    let keys: Vec<_> = keyed.iter().map(|(_, key, _)| encode(key)).collect();
    let ids: Vec<Uuid> = keyed.iter().map(|(.., id)| *id).collect();
    sqlx::query!(
        "insert into idempotency (tenant, key, job_id)
         select n.tenant, n.key, n.id
           from unnest($1::text[], $2::text[], $3::uuid[]) as n (tenant, key, id)
          where not exists (select from jobs j where j.id = n.id)
             on conflict (tenant, key) do nothing",
        &tenants as &[&str],
        &keys as &[std::borrow::Cow<'_, str>],
        &ids
    )
    .execute(&mut *connection)
    .await?;
    let rows = sqlx::query!(
        r#"select n.id as "id!", i.job_id
             from unnest($1::text[], $2::text[], $3::uuid[]) as n (tenant, key, id)
             join idempotency i on i.tenant = n.tenant and i.key = n.key
            where i.job_id <> n.id and not exists (select from jobs j where j.id = n.id)
              and (i.job_id = any($3) or exists (select from jobs j where j.id = i.job_id))"#,
        &tenants as &[&str],
        &keys as &[std::borrow::Cow<'_, str>],
        &ids
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.job_id)).collect())
}
