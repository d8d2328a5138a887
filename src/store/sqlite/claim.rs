//! Claims: an attempt is on record before it runs.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::{SqliteStore, admit, attempts, cache, dead, find_row, single};
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

impl SqliteStore {
    pub(crate) async fn claim(
        &self,
        claimant: &Claimant,
        claims: &[Claim],
    ) -> Result<Vec<Claimed>, BackendError> {
        let mut transaction = self.begin().await?;
        let now = self.clock.now();
        let mut seen = HashSet::new();
        let mut outcomes = Vec::with_capacity(claims.len());
        for claim in claims {
            let outcome = match find_row(&mut transaction, claim.job.0).await? {
                None => Claimed::Unknown,
                Some(row) if !seen.insert(row.id) && row.is_open() => Claimed::Busy,
                Some(row) => {
                    claim_one(&mut transaction, claimant, row, claim.redelivered, now).await?
                }
            };
            outcomes.push(outcome);
        }
        transaction.commit().await?;
        Ok(outcomes)
    }

    pub(crate) async fn end(
        &self,
        endings: &[(JobHead, JobState, Reason)],
    ) -> Result<Vec<JobRecord>, BackendError> {
        let mut transaction = self.begin().await?;
        let now = self.clock.now();
        let mut records = Vec::with_capacity(endings.len());
        for (head, state, reason) in endings {
            records.push(end_one(&mut transaction, head, *state, reason, now).await?);
        }
        transaction.commit().await?;
        Ok(records)
    }
}

async fn claim_one(
    connection: &mut SqliteConnection,
    claimant: &Claimant,
    row: Row,
    redelivered: bool,
    now: DateTime<Utc>,
) -> Result<Claimed, BackendError> {
    let is_alive = is_alive(connection, &row, now).await?;
    let step = rules::claim_step(&row, redelivered, is_alive, claimant, now);
    match step {
        ClaimStep::Busy => Ok(Claimed::Busy),
        ClaimStep::Elsewhere(tier) => Ok(Claimed::Elsewhere(tier)),
        ClaimStep::Ended => Ok(Claimed::Ended(Box::new(row.into_record()?))),
        ClaimStep::Run {
            attempt,
            lost,
            last,
        } => {
            if lost {
                mark_lost(connection, &row, now).await?;
            }
            begin_attempt(connection, claimant, row.id, attempt, now).await?;
            Ok(Claimed::Run {
                attempt: u32::try_from(attempt).unwrap_or(u32::MAX),
                poison_candidate: lost,
                last,
            })
        }
        ClaimStep::End {
            state,
            reason,
            lost,
            keep_dead_letters,
        } => {
            if lost {
                mark_lost(connection, &row, now).await?;
            }
            let row = write_end(connection, row, state, &reason, now).await?;
            if keep_dead_letters && row.is_unanswered() {
                dead::quarantine(connection, &row, &reason, now).await?;
            }
            Ok(Claimed::Ended(Box::new(row.into_record()?)))
        }
    }
}

async fn end_one(
    connection: &mut SqliteConnection,
    head: &JobHead,
    state: JobState,
    reason: &Reason,
    now: DateTime<Utc>,
) -> Result<JobRecord, BackendError> {
    let mut known = find_row(connection, head.id.0).await?;
    if known.is_none()
        && let Some(owner) = admit::owner(connection, head).await?
    {
        known = find_row(connection, owner).await?;
    }
    let Some(row) = known else {
        let job = NewJob {
            head,
            request: None,
            digest: None,
            fate: Fate::Ended(state, reason),
        };
        admit::own_key(connection, head).await?;
        admit::write(connection, &job, now).await?;
        return Ok(job.record(now));
    };
    if !row.is_open() || is_alive(connection, &row, now).await? {
        return Ok(row.into_record()?);
    }
    if row.state == JobState::Running {
        mark_lost(connection, &row, now).await?;
    }
    let row = write_end(connection, row, state, reason, now).await?;
    Ok(row.into_record()?)
}

/// True while a running job's lease holds, by the claim or by a later heartbeat.
pub(super) async fn is_alive(
    connection: &mut SqliteConnection,
    row: &Row,
    now: DateTime<Utc>,
) -> Result<bool, BackendError> {
    if row.state != JobState::Running {
        return Ok(false);
    }
    if row.lease_until.is_some_and(|until| until > now) {
        return Ok(true);
    }
    let lease: Option<DateTime<Utc>> =
        sqlx::query_scalar("select lease_until from workers where worker = ?1")
            .bind(&row.worker)
            .fetch_optional(connection)
            .await?;
    Ok(lease.is_some_and(|until| until > now))
}

/// Marks the latest attempt, whose worker vanished.
pub(super) async fn mark_lost(
    connection: &mut SqliteConnection,
    row: &Row,
    now: DateTime<Utc>,
) -> Result<(), BackendError> {
    let lost = records::lost(row.id, row.attempts, now);
    single::execute(connection, lost, records::MARK_LOST).await?;
    Ok(())
}

async fn begin_attempt(
    connection: &mut SqliteConnection,
    claimant: &Claimant,
    id: Uuid,
    attempt: i32,
    now: DateTime<Utc>,
) -> Result<(), BackendError> {
    let claimed = records::claimed(claimant, id, attempt, now);
    single::execute(connection, claimed, records::CLAIM_JOB).await?;
    let attempt = records::attempt(claimant, id, attempt, now);
    single::insert(connection, "attempts", Some(attempt), "").await
}

/// Writes an end without an answer of its own (an escalated one serves instead) and gives up the job's cache entry.
pub(super) async fn write_end(
    connection: &mut SqliteConnection,
    row: Row,
    state: JobState,
    reason: &Reason,
    now: DateTime<Utc>,
) -> Result<Row, BackendError> {
    let end = records::end(row.id, state, reason, now);
    single::execute(connection, end, records::END_JOB).await?;
    if let Some(key) = row.cache_key() {
        cache::give_up(connection, &key, row.id).await?;
    }
    let row = row.ended(state, reason, now);
    attempts::fall_back(connection, row).await
}
