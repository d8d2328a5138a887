//! Settlements: fenced by the attempt, shared with the jobs that wait, all in one transaction.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::{SqliteStore, admit::insert_text, attempts, cache, dead, find_row, single};
use crate::{
    job::{CacheKey, JobRecord, JobState, RoutedJob},
    store::{
        AttemptOutcome, Settled, Settlement,
        effect::{Effect, Given},
        error::BackendError,
        records,
        row::{Row, job_rows},
    },
};

impl SqliteStore {
    pub(crate) async fn settle(
        &self,
        settlements: &[Settlement],
        ttl: Duration,
    ) -> Result<Vec<Settled>, BackendError> {
        let mut transaction = self.begin().await?;
        let now = self.clock.now();
        let mut outcomes = Vec::with_capacity(settlements.len());
        for settlement in settlements {
            outcomes.push(settle_one(&mut transaction, settlement, now, ttl).await?);
        }
        transaction.commit().await?;
        Ok(outcomes)
    }

    pub(crate) async fn take_over_flights(
        &self,
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<RoutedJob>, BackendError> {
        let mut transaction = self.begin().await?;
        let now = self.clock.now();
        // Ids sort by time, so the smallest is the oldest.
        let rows: Vec<Row> = sqlx::query_as(job_rows(
            "select",
            "null as text, null as logprobs
               from (select waits_for, min(id) as id from jobs
                      where waits_for is not null and state = 'routed' group by waits_for) w
               join jobs j on j.id = w.id
               left join cache_entries e on e.key = w.waits_for
              where e.key is null or (e.state = 'computing' and e.lease_until < ?1)
                 or (e.state = 'ready' and e.expires_at <= ?1)
              order by j.id limit ?2",
        ))
        .bind(now)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&mut *transaction)
        .await?;
        let mut promoted = Vec::with_capacity(rows.len());
        for row in rows {
            let request = dead::request(&mut transaction, row.id).await?;
            let (Some(key), Some(request)) = (row.cache_key(), request) else {
                continue;
            };
            if cache::lead(
                &mut transaction,
                &key,
                row.tenant.as_str(),
                row.id,
                now,
                lease,
            )
            .await?
            {
                promoted.push(row.routed_job(&request)?);
            }
        }
        transaction.commit().await?;
        Ok(promoted)
    }
}

async fn settle_one(
    connection: &mut SqliteConnection,
    settlement: &Settlement,
    now: DateTime<Utc>,
    ttl: Duration,
) -> Result<Settled, BackendError> {
    let effect = Effect::of(&settlement.outcome);
    if let Some(savings) = records::savings(settlement) {
        single::execute(connection, savings, records::WRITE_SAVINGS).await?;
    }
    let is_cancelled = effect.state == JobState::Cancelled;
    if is_cancelled
        || single::execute(
            connection,
            records::ended(settlement, &effect, now),
            records::END_ATTEMPT,
        )
        .await?
            == 0
    {
        let late = AttemptOutcome::superseded(effect.generated);
        attempts::write(connection, settlement, &Effect::of(&late)).await?;
        return Ok(Settled::Fenced);
    }
    let id = settlement.job.0;
    if let Some(answer) = effect.answer {
        insert_text(connection, id, answer).await?;
    }
    attempts::write(connection, settlement, &effect).await?;
    let Some(row) = find_row(connection, id).await? else {
        return Err(BackendError::Rule(
            "a job that exists cannot be found".to_owned(),
        ));
    };
    let row = attempts::fall_back(connection, row).await?;
    if let (true, Some(reason)) = (
        effect.keep_dead_letters && row.is_unanswered(),
        effect.reason,
    ) {
        dead::quarantine(connection, &row, reason, now).await?;
    }
    let mut shared = Vec::new();
    if let Some(key) = &settlement.cache_key {
        if let Some(answer) = effect.answer.filter(|_| settlement.reusable) {
            cache::fill(connection, key, row.tenant.as_str(), id, answer, (now, ttl)).await?;
        }
        if let Some(given) = effect.given(settlement.job) {
            shared = share(connection, key, given, now).await?;
        }
        if effect.answer.is_some() || effect.gives_up() {
            // A filled entry stays: only one that still computes is given up.
            cache::give_up(connection, key, id).await?;
            // A job that took over the flight meanwhile may have led the entry.
            for record in &shared {
                cache::give_up(connection, key, record.id.0).await?;
            }
        }
    }
    Ok(Settled::Committed {
        record: Box::new(row.into_record()?),
        shared,
    })
}

/// Gives an answer to the jobs that wait for it.
async fn share(
    connection: &mut SqliteConnection,
    key: &CacheKey,
    given: Given<'_>,
    now: DateTime<Utc>,
) -> Result<Vec<JobRecord>, BackendError> {
    let waiting: Vec<Uuid> = sqlx::query_scalar(
        "select j.id from jobs j left join semantic_lookups l on l.job_id = j.id
          where j.waits_for = ?1 and j.state = 'routed' and (?2 is null or l.entry = ?2)
          order by j.id",
    )
    .bind(key.0.as_slice())
    .bind(given.only_of.map(|entry| entry.0.to_vec()))
    .fetch_all(&mut *connection)
    .await?;
    let mut records = Vec::with_capacity(waiting.len());
    for id in waiting {
        let row = records::shared(id, &given, now);
        single::execute(connection, row, records::SHARE).await?;
        insert_text(connection, id, given.answer).await?;
        if let Some(row) = find_row(connection, id).await? {
            records.push(row.into_record()?);
        }
    }
    Ok(records)
}
