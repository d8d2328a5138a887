//! Workers' signs of life.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::SqliteStore;
use crate::{
    job::Tier,
    store::{
        Heartbeat, WorkerRecord,
        error::BackendError,
        rules::{after, before},
    },
};

#[derive(sqlx::FromRow)]
struct WorkerRow {
    worker: String,
    tier: Tier,
    model: String,
    revision: String,
    batch_max: i64,
    context_tokens: Option<i64>,
    running: i64,
    draining: bool,
    takes_affinity_queues: bool,
    lease_until: DateTime<Utc>,
    seen_at: DateTime<Utc>,
}

impl SqliteStore {
    pub(crate) async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<(), BackendError> {
        let claimant = &heartbeat.claimant;
        let now = self.clock.now();
        sqlx::query(
            "insert into workers (worker, tier, model, revision, batch_max, running, draining, lease_until,
                                  seen_at, context_tokens, takes_affinity_queues)
             values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
                 on conflict (worker) do update
                set tier = excluded.tier, model = excluded.model, revision = excluded.revision,
                    batch_max = excluded.batch_max, running = excluded.running,
                    draining = excluded.draining, lease_until = excluded.lease_until,
                    seen_at = excluded.seen_at, context_tokens = excluded.context_tokens,
                        takes_affinity_queues = excluded.takes_affinity_queues",
        )
        .bind(&claimant.worker)
        .bind(claimant.tier.as_str())
        .bind(&claimant.model)
        .bind(&claimant.revision)
        .bind(heartbeat.batch_max)
        .bind(heartbeat.running)
        .bind(heartbeat.draining)
        .bind(after(now, claimant.lease))
        .bind(now)
        .bind(heartbeat.context_tokens)
        .bind(heartbeat.takes_affinity_queues)
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    pub(crate) async fn workers(&self, age: Duration) -> Result<Vec<WorkerRecord>, BackendError> {
        let rows: Vec<WorkerRow> = sqlx::query_as(
            "select worker, tier, model, revision, batch_max, running, draining, seen_at,
                    context_tokens, takes_affinity_queues, lease_until
               from workers where seen_at >= ?1 order by seen_at desc, worker",
        )
        .bind(before(self.clock.now(), age))
        .fetch_all(&self.readers)
        .await?;
        let workers = rows.into_iter().map(|row| WorkerRecord {
            tier: row.tier,
            worker: row.worker,
            model: row.model,
            revision: row.revision,
            batch_max: u32::try_from(row.batch_max).unwrap_or(0),
            context_tokens: row.context_tokens.and_then(|n| u32::try_from(n).ok()),
            running: u32::try_from(row.running).unwrap_or(0),
            draining: row.draining,
            takes_affinity_queues: row.takes_affinity_queues,
            lease_until: row.lease_until,
            seen_at: row.seen_at,
        });
        Ok(workers.collect())
    }
}
