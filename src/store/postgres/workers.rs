//! Workers' signs of life.

use std::time::Duration;

use super::{PostgresStore, text};
use crate::{
    job::Tier,
    store::{
        Heartbeat, WorkerRecord,
        error::BackendError,
        rules::{after, before},
    },
};

impl PostgresStore {
    pub(crate) async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<(), BackendError> {
        let claimant = &heartbeat.claimant;
        let now = self.clock.now();
        sqlx::query!(
            "insert into workers (worker, tier, model, revision, batch_max, running, draining,
                                  lease_until, seen_at, context_tokens, takes_affinity_queues)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
                 on conflict (worker) do update
                set tier = excluded.tier, model = excluded.model, revision = excluded.revision,
                    batch_max = excluded.batch_max, running = excluded.running,
                    draining = excluded.draining, lease_until = excluded.lease_until,
                    seen_at = excluded.seen_at, context_tokens = excluded.context_tokens,
                    takes_affinity_queues = excluded.takes_affinity_queues",
            claimant.worker,
            claimant.tier.as_str(),
            &*text::encode(&claimant.model),
            &*text::encode(&claimant.revision),
            i32::try_from(heartbeat.batch_max).unwrap_or(i32::MAX),
            i32::try_from(heartbeat.running).unwrap_or(i32::MAX),
            heartbeat.draining,
            after(now, claimant.lease),
            now,
            heartbeat.context_tokens.map(i64::from),
            heartbeat.takes_affinity_queues
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    pub(crate) async fn workers(&self, age: Duration) -> Result<Vec<WorkerRecord>, BackendError> {
        let rows = sqlx::query!(
            r#"select worker, tier as "tier: Tier", model, revision, batch_max, running, draining, seen_at,
                    context_tokens, takes_affinity_queues, lease_until
               from workers where seen_at >= $1 order by seen_at desc, worker"#,
            before(self.clock.now(), age)
        )
        .fetch_all(&self.pool)
        .await?;
        let workers = rows.into_iter().map(|row| WorkerRecord {
            tier: row.tier,
            worker: row.worker,
            model: text::decode(row.model),
            revision: text::decode(row.revision),
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
